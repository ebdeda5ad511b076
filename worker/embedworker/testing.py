"""Tests of an application, without a model: a pytest plugin.

    # conftest.py
    pytest_plugins = ["embedworker.testing"]

Its fixtures live as long as the run of pytest. Each may be replaced by one of the same name:

    embedworker_server     URL of a PostgreSQL server; by default an embedded one of this run
    embedworker_database   URL of a new database on it, migrated, with the model ``testing:words``
    embedworker_worker     a :class:`embedworker.Worker` of that database, ready, in this process

The model compares words (:mod:`embedworker.model.testing_words`), and :func:`alike` makes phrases
mean the same. :func:`wait_until_embedded` waits for what was committed.
"""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedworker import Worker, migrate
from embedworker.database.connect import connect
from embedworker.database.embedded import server
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import SourceError
from embedworker.model.catalog import WORDS_MODEL
from embedworker.model.testing_words import alike
from embedworker.settings import load

__all__ = [
    "alike",
    "embedworker_database",
    "embedworker_server",
    "embedworker_worker",
    "wait_until_embedded",
]

START = 60.0  # seconds that a worker may take on a machine that does much else
POLL = 0.02  # seconds between two looks at what waits


@pytest.fixture(scope="session")
def embedworker_server() -> Iterator[str]:
    """URL of a new embedded server, deleted at the end. Needs the extra ``embedded``."""
    # Not below pytest's own folder: the user that the server runs as cannot enter that of root.
    folder = Path(tempfile.mkdtemp(prefix="embedworker-"))
    folder.chmod(0o711)
    settings = load(data_dir=folder / "server")
    try:
        yield server.start(settings)
        server.stop(settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def embedworker_database(embedworker_server: str) -> Iterator[str]:
    """URL of a new database with embedworker in it, dropped at the end."""
    name = f"embedworker_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(embedworker_server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        url = make_conninfo(embedworker_server, dbname=name)
        try:
            migrate(url, model=WORDS_MODEL)
            yield url
        finally:
            connection.execute(
                sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
            )


@pytest.fixture(scope="session")
def embedworker_worker(embedworker_database: str) -> Iterator[Worker]:
    """Run a worker in this process that keeps vectors current and answers questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with Worker(embedworker_database) as worker:
            if not worker.wait_ready(START):
                raise TimeoutError(f"the worker was not ready within {START:g} s")
            yield worker


def wait_until_embedded(url: str, table: str | None = None, timeout: float = 30.0) -> None:
    """Wait until what was committed to a table, or to every enabled one, can be found.

    ``url`` is that of the database, ``table`` its name as SQL would write it, ``timeout`` seconds.

    Raises:
        SourceError: the table is not enabled, or rows were given up; with the reason of the first.
        TimeoutError: rows still wait after that time; with the state of their tables.
    """
    deadline = time.monotonic() + timeout
    with connect(url) as connection:
        while True:
            tables, waiting, states, failed, reason = fetch_one(
                connection.execute(statement("status_settled"), {"relation": table})
            )
            if table is not None and not tables:
                raise SourceError(f"{table} is not enabled; call embed.enable({table!r}, …) first")
            if failed:
                raise SourceError(f"{failed} rows were given up, the first with: {reason}")
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{waiting} rows still wait after {timeout:g} s ({states}); commit what was "
                    "written, and use the fixture embedworker_worker"
                )
            time.sleep(POLL)
