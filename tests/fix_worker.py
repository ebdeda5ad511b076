"""Real worker processes with the encoder of the tests, and a database for them.

hash_database  URL of a migrated database whose default model is the encoder of the tests
shop           an autocommit connection to it, for the part of the application
workers        ``workers.start()`` starts ``python -m embedworker.cli run --only-passages``
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from psycopg import sql
from waiting import wait_until

from embedworker import resources
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.model.catalog import TESTING_MODEL

START = 30.0  # seconds until a worker must be up on a machine that does much else
ENVIRONMENT = {
    "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
    "EMBEDWORKER_NICE": "0",
    "HF_HUB_OFFLINE": "1",
    "EMBEDWORKER_POLL_MAX": "0.2",
    "EMBEDWORKER_INDEX_AFTER_ROWS": "1000000000",
}
# Runs the command line with another folder of SQL, how a test alters one statement, and another one
# of migrations, how it is a version later.
ALTERED = """
import sys
from pathlib import Path
from embedworker.database import revision, statements
queries, migrations = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
statements.sql_folder = lambda: queries
revision.migrations_folder = lambda: migrations
from embedworker.cli.app import main
main()
"""


class WorkerProcess:
    """One process; the folders replace those its statements and migrations come from."""

    def __init__(
        self,
        url: str,
        log: Path,
        *,
        arguments: Sequence[str] = ("--only-passages",),
        environment: dict[str, str] | None = None,
        sql_folder: Path | None = None,
        migrations: Path | None = None,
    ) -> None:
        self.log = log
        started = [sys.executable, "-m", "embedworker.cli"]
        if sql_folder is not None or migrations is not None:
            queries, versions = sql_folder or resources.sql_folder(), migrations
            versions = versions or resources.migrations_folder()
            started = [sys.executable, "-c", ALTERED, str(queries), str(versions)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*started, "run", *arguments],
                env={
                    **os.environ,
                    **ENVIRONMENT,
                    "EMBEDWORKER_DATABASE_URL": url,
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.pid = self.process.pid

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} {self.process.poll()}>\n{self.output()[-2000:]}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = 20.0) -> int:
        """Ask it to end; return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its own end; return its exit code."""
        return self.process.wait(timeout)


class Workers:
    """The workers of one test; what is left of them at its end is killed."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.all: list[WorkerProcess] = []

    def start(
        self,
        *arguments: str,
        both_lanes: bool = False,
        up: bool = True,
        sql_folder: Path | None = None,
        migrations: Path | None = None,
        url: str | None = None,
        **environment: str,
    ) -> WorkerProcess:
        """Start one and wait until it has registered. ``lease="2"`` is EMBEDWORKER_LEASE=2."""
        worker = WorkerProcess(
            url or self.url,
            self.folder / f"worker{len(self.all)}.log",
            arguments=arguments or (() if both_lanes else ("--only-passages",)),
            environment={f"EMBEDWORKER_{k.upper()}": v for k, v in environment.items()},
            sql_folder=sql_folder,
            migrations=migrations,
        )
        self.all.append(worker)
        if up:
            self.wait_up(worker)
        return worker

    def wait_up(self, worker: WorkerProcess, timeout: float = START) -> None:
        with connect(self.url) as connection:

            def is_up() -> bool:
                assert worker.process.poll() is None, worker
                return (
                    connection.execute(
                        "select from embed.worker_session where pid = %s and lock_held",
                        [worker.pid],
                    ).fetchone()
                    is not None
                )

            wait_until(is_up, timeout, f"a registered {worker}")

    def end(self) -> None:
        for worker in self.all:
            worker.kill()


@pytest.fixture(scope="session")
def hash_template(server: Cluster, template: str) -> str:
    """Name of a migrated database with the encoder of the tests as its model."""
    name = "template_hash"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        use_hash_model(connection)
    return name


def use_hash_model(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ')", [TESTING_MODEL]
    )
    connection.execute("select embed.use_model(%s)", [TESTING_MODEL])


@pytest.fixture
def hash_database(server: Cluster, hash_template: str) -> Iterator[str]:
    with new_database(server, hash_template) as url:
        yield url


@pytest.fixture
def shop(hash_database: str) -> Iterator[Connection]:
    with connect(hash_database) as opened:
        yield opened


@pytest.fixture
def workers(hash_database: str, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(hash_database, tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that is not there yet; what hangs goes on when it is."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def failpoint(name: str, gate: Path | None = None) -> dict[str, str]:
    """Settings of a worker that ends, or with a gate hangs, at the named place."""
    if gate is None:
        return {"failpoint": f"{name}:kill"}
    return {"failpoint": f"{name}:hang", "failpoint_gate": str(gate)}


def wait_reached(gate: Path, timeout: float = START) -> None:
    """Wait until a worker hangs at its failpoint."""
    wait_until(gate.with_suffix(".reached").exists, timeout, "a worker at its failpoint")


def wait_claimed(connection: Connection, relation: str, claimed: int = 1) -> None:
    """Wait until workers hold so many rows of a table."""
    from oracle import queue_of

    query = sql.SQL("select count(*) from {} where claimed_by is not null").format(
        queue_of(connection, relation)
    )

    def holds() -> bool:
        row = connection.execute(query).fetchone()
        return row is not None and row[0] >= claimed

    wait_until(holds, START, f"{claimed} rows of {relation} held")


SIGSTOP, SIGCONT = signal.SIGSTOP, signal.SIGCONT
