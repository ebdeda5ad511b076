"""PgBouncer in transaction mode in front of the server of the tests.

pgbouncer  ``pgbouncer.url(database_url)`` is the same database through it
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from waiting import wait_until

from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import free_port

POOL = 3  # sessions of the server that all clients share
WITH_PREPARED = (1, 21)  # the version that follows prepared statements, unless told not to


class PgBouncer:
    """One process; every client is let in and becomes the server's superuser."""

    def __init__(self, program: str, folder: Path, server: Cluster, pool_mode: str) -> None:
        account = Account.unprivileged()
        self.port = free_port()
        given = conninfo_to_dict(server.url())
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": pool_mode,
            "default_pool_size": POOL,
            "logfile": folder / "log",
        }
        if _version(program) >= WITH_PREPARED:
            settings["max_prepared_statements"] = 0
        target = make_conninfo(
            "",
            host=given["host"],
            port=given["port"],
            user=given["user"],
            password=given["password"],
        )
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = {target}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        for path in (folder, configuration):
            account.own(path)
        other = not account.is_caller
        self.log = folder / "log"
        self._process = subprocess.Popen(
            [program, "-q", str(configuration)],
            user=account.uid if other else None,
            group=account.gid if other else None,
            extra_groups=[] if other else None,
            cwd=folder,
            stdin=subprocess.DEVNULL,
        )
        wait_until(self._answers, 20, f"PgBouncer on port {self.port}")

    def url(self, url: str, **more: str) -> str:
        """The same database through PgBouncer."""
        given = conninfo_to_dict(url)
        return make_conninfo("", **{**given, "host": "127.0.0.1", "port": str(self.port), **more})

    def end(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)  # at once, in this program
        self._process.wait(20)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            psycopg.connect(
                host="127.0.0.1", port=self.port, dbname="postgres", user="any", connect_timeout=2
            ).close()
        except psycopg.OperationalError:
            return False
        return True


def _version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in said.stdout.split()[1].split("."))


def _program() -> str:
    """Where PgBouncer is; the tests of it are skipped, and say so, where it is not."""
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None and os.environ.get("REQUIRE_PGBOUNCER"):
        pytest.fail("PgBouncer is not installed: apt-get install pgbouncer")
    if found is None:
        pytest.skip("PgBouncer is not installed; on Debian: apt-get install pgbouncer")
    return found


@pytest.fixture(scope="session")
def pgbouncer(server: Cluster, server_folder: Path) -> Iterator[PgBouncer]:
    yield from _run("transaction", server, server_folder)


@pytest.fixture
def session_pgbouncer(server: Cluster, server_folder: Path) -> Iterator[PgBouncer]:
    """The same in session mode."""
    yield from _run("session", server, server_folder)


def _run(pool_mode: str, server: Cluster, server_folder: Path) -> Iterator[PgBouncer]:
    program = _program()
    folder = server_folder / f"pgbouncer-{pool_mode}"
    folder.mkdir()
    running = PgBouncer(program, folder, server, pool_mode)
    yield running
    running.end()
    shutil.rmtree(folder)
