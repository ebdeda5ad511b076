"""One PostgreSQL server of our own in one folder: create, start, stop, crash."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from embedworker.database.embedded import configuration, process
from embedworker.database.embedded.account import Account
from embedworker.database.embedded.configuration import HOST
from embedworker.database.embedded.creation import SUPERUSER, check_version, create
from embedworker.database.embedded.creation import password as password_of
from embedworker.database.embedded.installation import Installation, free_port
from embedworker.errors import EmbeddedServerError

__all__ = ["Cluster"]

DATABASE = "embedworker"
START_TIMEOUT = 120.0  # seconds; covers recovery after a crash
STOP_TIMEOUT = 60.0  # seconds

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
        self.options = {**configuration.defaults(), **(options or {})}
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
        return process.running(self.data)

    def url(self, database: str | None = None, *, password: bool = True) -> str:
        """Return the superuser's URL of a database, the cluster's own if none is given.

        Without ``password`` the URL names the password file instead, which every libpq client
        reads: fit for a screen or a process list.
        """
        name = quote(database or self.database, safe="")
        if password:
            return f"postgresql://{SUPERUSER}:{password_of(self.folder)}@{HOST}:{self.port}/{name}"
        passfile = quote(str(self.passfile), safe="/")
        return f"postgresql://{SUPERUSER}@{HOST}:{self.port}/{name}?passfile={passfile}"

    def start(self) -> str:
        """Start the server unless it runs, wait until it takes connections, return its URL.

        Raises:
            EmbeddedServerError: it does not come up; the message holds the server's own words.
        """
        if not self.exists:
            create(self.folder, self.installation, sync=self.options["fsync"] != "off")
        check_version(self.folder, self.installation, self.account)
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
            _wait(lambda: not process.stands_in(self.data, pid), time.monotonic() + STOP_TIMEOUT)

    def _settle(self, deadline: float) -> int | None:
        """Return the pid of a server that is ready; None when there is none, after tidying up."""
        while (pid := self.pid) is not None:
            if process.is_ready(self.data):
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
        conf = self.data / configuration.CONF
        conf.write_text(configuration.text(self.options, port))
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

    def _create_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            name = sql.Identifier(self.database)
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(sql.SQL("create database {}").format(name))

    def _pg_ctl(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        arguments = (action, "-D", str(self.data), *arguments)
        return self.installation.run(self.account, "pg_ctl", *arguments, folder=self.data)

    def _explain(self, said: str) -> str:
        words = re.findall(r"(?:FATAL|PANIC|ERROR|HINT|LOG):\s+(.*)", said)
        reason = "; ".join(words[-3:]) or said.strip()[-500:]
        return f"the server in {self.folder} did not start: {reason}. See {self.log}"


def _wait(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL)
