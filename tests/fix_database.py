"""A real PostgreSQL for the tests, and a fresh database for each of them.

``TEST_POSTGRES=/usr/lib/postgresql/17/bin`` runs the tests on that PostgreSQL, which has pgvector.

server         a running throwaway Cluster, one for the whole run (fsync off: it may forget)
bare_database  URL of an empty database without any extension
database       URL of a migrated database
connection     an open autocommit connection to ``database``
"""

import os
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

from embedworker.database.connect import connect
from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import Installation, unpack

Connection = psycopg.Connection[tuple[Any, ...]]

TEMPLATE = "template_migrated"
MEMORY = "/dev/shm"  # noqa: S108 - the folder that mkdtemp makes there is our own
ROOM = 8 << 30  # bytes: eight times what three processes held in the middle of the slow tests
_UNSAFE_BUT_QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SMALL = {"shared_buffers": "128MB"}  # all of it is looked through for each table that is dropped
# What `migrate` has set for the template; a copy of a database does not have it.
_COPY_SETTINGS = """
    select format(
        'alter database %%I set %%s = %%L', %s::text, split_part(c, '=', 1), split_part(c, '=', 2)
    )
    from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) as c
    where d.datname = %s and s.setrole = 0
"""
_numbers = count(1)


def _memory() -> str | None:
    """Return a folder in memory that has room for all servers, and whose programs may run.

    A copy of a database is 300 files. It takes 12 ms there and 110 ms on a disk.
    """
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    runs = not found.f_flag & os.ST_NOEXEC
    return MEMORY if runs and found.f_bavail * found.f_frsize >= ROOM else None


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Where servers of this run live; not below pytest's folder, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="embedworker-test-", dir=_memory()))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installation(server_folder: Path) -> Installation:
    account = Account.unprivileged()
    given = os.environ.get("TEST_POSTGRES")
    if not given:
        return unpack(server_folder, account)
    programs = Path(given)
    if not account.can_enter(programs):
        pytest.exit(f"user id {account.uid} runs the server and may not enter {programs}", 2)
    return Installation(programs.parent)


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
        made.append(Cluster(folder, installation, options={**_SMALL, **options}))
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
    from embedworker.database.migrate import migrate

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
    from embedworker.database.loopback import set_up_loopback

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
        for (statement,) in connection.execute(_COPY_SETTINGS, [name, template]).fetchall():
            connection.execute(statement.encode())
    try:
        yield server.url(name)
    finally:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(drop.format(sql.Identifier(name)))
