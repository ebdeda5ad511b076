"""``embedworker.migrate``: from a URL, a connection or an engine of whoever has one."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import embedworker
from embedworker.database.install import _address as address
from embedworker.errors import ConfigurationError, DatabaseError


def by_url(url: str) -> None:
    embedworker.migrate(url)


def by_variable(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        embedworker.migrate()


def by_psycopg(url: str) -> None:
    with psycopg.connect(url) as connection:
        embedworker.migrate(connection)
        connection.execute("select from embed.source")  # in the transaction that was open


def by_sqlalchemy(url: str) -> None:
    engine = create_engine(url.replace("://", "+psycopg://"), poolclass=NullPool)
    with engine.begin() as connection:
        embedworker.migrate(connection)
        connection.exec_driver_sql("select from embed.source")
    embedworker.migrate(engine)


def by_creator(url: str) -> None:
    """An engine whose URL says nothing."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.connect() as connection:
        embedworker.migrate(connection)


def by_asyncpg(url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(url.replace("://", "+asyncpg://"), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(embedworker.migrate)
            await connection.exec_driver_sql("select from embed.source")

    asyncio.run(run())


@pytest.mark.parametrize(
    "migrate", [by_url, by_variable, by_psycopg, by_sqlalchemy, by_creator, by_asyncpg]
)
def test_a_database_is_set_up(migrate: Callable[[str], None], bare_database: str) -> None:
    migrate(bare_database)
    with psycopg.connect(bare_database) as connection:
        assert connection.execute("select embed.default_model()").fetchone() is not None


def test_the_address_of_each_kind_is_that_of_its_database(bare_database: str) -> None:
    def place(given: Any) -> tuple[str | None, ...]:
        found = psycopg.conninfo.conninfo_to_dict(address(given))
        return tuple(found.get(name) for name in ("host", "port", "dbname", "user", "password"))

    engine = create_engine(bare_database.replace("://", "+psycopg://"), poolclass=NullPool)
    plain = psycopg.connect(bare_database)
    with plain, engine.connect() as connection:
        expected = place(plain)
        assert expected[4]
        assert place(connection) == expected


def test_a_transaction_in_the_way_is_an_error(
    bare_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedworker.database.migrate.LOCK_TIMEOUT", 0.1)
    with psycopg.connect(bare_database) as connection:
        connection.execute("create extension vector")
        with pytest.raises(DatabaseError, match="does not let go of what"):
            embedworker.migrate(connection)
        connection.commit()
        embedworker.migrate(connection)


def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is of type int; expected a URL"):
        embedworker.migrate(5432)
