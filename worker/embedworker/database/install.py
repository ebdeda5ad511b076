"""``embedworker.migrate``: sets up a database for a program, such as tests that create one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from alembic import context, op
from psycopg.conninfo import make_conninfo

from embedworker.database.migrate import migrate as upgrade
from embedworker.errors import ConfigurationError
from embedworker.settings import load

__all__ = ["Database", "migrate"]


Database: TypeAlias = Any
"""A URL; or a connection or engine of psycopg or SQLAlchemy, which stands for its database."""


def migrate(database: Database | None = None, *, model: str | None = None) -> list[str]:
    """Set a database up as ``embedworker migrate`` does; safe to repeat, and to run twice at once.

        engine = create_engine("postgresql+psycopg://…/test_shop")
        with engine.connect() as connection:
            embedworker.migrate(connection)

    ``database`` is a URL, or a connection or an engine of psycopg or SQLAlchemy; None is that of
    DATABASE_URL. The work is done and committed on a connection of its own, so a transaction that
    is open meanwhile must not hold what is needed, such as a ``create extension vector``.
    ``model`` becomes the default one of the database. Returns what could not be set up although
    the rest works, a sentence each.

    Raises:
        ConfigurationError: no database is named, or EMBEDWORKER_PRIMARY_HOST cannot be read.
        ServerUnavailable: no connection could be made.
        UnsupportedServer: PostgreSQL or pgvector is missing or too old.
        DatabaseError: this role may not create what is needed, or a transaction is in the way.
    """
    settings = load()
    url = settings.database_url if database is None else _address(database)
    if url is None:
        raise ConfigurationError("no database is named; give one, or set DATABASE_URL")
    with _own_alembic():
        return upgrade(
            url,
            model=model,
            loopback_host=settings.loopback_host,
            primary_host=settings.primary_host,
        )


@contextmanager
def _own_alembic() -> Iterator[None]:
    """Give a migration that called us its ``op`` and ``context`` back.

    They are Alembic's, one for the process. Ours replaces them, and takes them away at its end.
    """
    outer = [getattr(module, "_proxy", None) for module in (context, op)]
    try:
        yield
    finally:
        for proxy in outer:
            if proxy is not None:
                proxy._install_proxy()


def _address(database: Database) -> str:
    if isinstance(database, str):
        return database
    # Of an asynchronous connection or engine of SQLAlchemy, the one below.
    for name in ("sync_connection", "sync_engine"):
        database = getattr(database, name, None) or database
    held = getattr(database, "connection", None)
    driver = getattr(held, "driver_connection", None) or database
    if isinstance(driver, psycopg.BaseConnection):
        return make_conninfo(driver.info.dsn, password=driver.info.password or None)
    engine = getattr(database, "engine", None)
    if engine is not None:
        address: str = engine.url.render_as_string(hide_password=False)
        return address
    raise ConfigurationError(
        f"the database is of type {type(database).__name__}; expected a URL, or a connection or "
        "an engine of psycopg or SQLAlchemy"
    )
