"""A real PostgreSQL for the tests, and a fresh database for each of them.

server         a running throwaway Cluster, one for the whole run (fsync off: it may forget)
bare_database  URL of an empty database without any extension
database       URL of a migrated database
connection     an open autocommit connection to ``database``
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from worker.database.account import Account
from worker.database.cluster import Cluster
from worker.database.connect import connect
from worker.database.installation import Installation, unpack

TEMPLATE = "template_migrated"
_UNSAFE_BUT_QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_numbers = count(1)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where servers of this run live; not below pytest's folder, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="embedworker-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installation(server_folder: Path) -> Installation:
    return unpack(server_folder, Account.unprivileged())


@pytest.fixture(scope="session")
def new_cluster(
    server_folder: Path, installation: Installation
) -> Iterator[Callable[..., Cluster]]:
    """Make further clusters, ``new_cluster(max_connections="20")``; stopped at the end."""
    made: list[Cluster] = []

    def make(**options: str) -> Cluster:
        folder = server_folder / f"cluster{len(made)}"
        folder.mkdir()
        folder.chmod(0o711)
        made.append(Cluster(folder, installation, options=options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop("immediate")


@pytest.fixture(scope="session")
def server(new_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = new_cluster(**_UNSAFE_BUT_QUICK)
    cluster.start()
    return cluster


@pytest.fixture(scope="session")
def template(server: Cluster) -> str:
    """Name of a migrated database that others are copied from in a tenth of a second."""
    from worker.database.migrate import migrate

    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
    migrate(server.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def bare_database(server: Cluster) -> Iterator[str]:
    with _new_database(server, "template1") as url:
        yield url


@pytest.fixture
def database(server: Cluster, template: str) -> Iterator[str]:
    from worker.database.loopback import set_up_loopback

    with _new_database(server, template) as url:
        with connect(url) as connection:
            set_up_loopback(connection)  # the copy still names the template as its own database
        yield url


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database) as opened:
        yield opened


@contextmanager
def _new_database(server: Cluster, template: str) -> Iterator[str]:
    name = f"test{next(_numbers)}"
    copy = sql.SQL("create database {} template {}")
    drop = sql.SQL("drop database {} with (force)")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(copy.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield server.url(name)
    finally:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(drop.format(sql.Identifier(name)))
