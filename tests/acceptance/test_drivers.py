"""The table of drivers in docs/search.md: each line is run with its driver."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import _new_database as new_database
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from embedworker import Worker
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.testing import wait_until_embedded

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
LONGEST = 60.0  # seconds on a machine that does much else
MATCHING = {"lang": "ko"}
BY_HAND = {"pg and postgres (JavaScript)", "JDBC"}

Ask = Callable[[str, list[Any]], list[Any]]


def lines() -> dict[str, list[str]]:
    """The placeholders of question, matching and key, by driver."""
    section = PAGE.read_text().partition("## Parameters by driver")[2].partition("\n## ")[0]
    rows = [row.strip("| \n").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    return {name: [cell.split("`")[1] for cell in cells] for name, *cells in rows[1:]}


@pytest.fixture(scope="module")
def url(server: Cluster, hash_template: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as made:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with connect(made) as connection:
            set_up_loopback(connection)
            connection.execute("create table article (id int primary key, title text, lang text)")
            connection.execute("select embed.enable('article', array['title'])")
            connection.execute("insert into article values (1, 'a', 'ko'), (2, 'b', 'en')")
        with Worker(made) as worker:
            assert worker.wait_ready(LONGEST)
            wait_until_embedded(made, "article", LONGEST)
            yield made


def by_psycopg(url: str, query: str, values: list[Any]) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode(), values).fetchall()


def by_psycopg2(url: str, query: str, values: list[Any]) -> list[Any]:
    driver = pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    return _by_cursor(driver.connect(url), query, values)


def by_pg8000(url: str, query: str, values: list[Any]) -> list[Any]:
    driver = pytest.importorskip("pg8000.dbapi", reason="pg8000 is not installed")
    given = {k: v for k, v in conninfo_to_dict(url).items() if k in ("user", "password", "host")}
    info = conninfo_to_dict(url)
    return _by_cursor(
        driver.connect(**given, port=int(str(info["port"])), database=info["dbname"]), query, values
    )


def _by_cursor(connection: Any, query: str, values: list[Any]) -> list[Any]:
    try:
        cursor = connection.cursor()
        cursor.execute(query, values)
        return [tuple(row) for row in cursor.fetchall()]
    finally:
        connection.close()


def by_asyncpg(url: str, query: str, values: list[Any]) -> list[Any]:
    import asyncpg

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    return asyncio.run(ask())


DRIVERS = {
    "psycopg 3": (by_psycopg, Jsonb(MATCHING)),
    "psycopg2": (by_psycopg2, None),
    "pg8000": (by_pg8000, MATCHING),
    "asyncpg": (by_asyncpg, None),
}


def test_every_line_is_tried() -> None:
    assert lines().keys() == DRIVERS.keys() | BY_HAND


@pytest.mark.parametrize("driver", DRIVERS)
def test_driver(url: str, driver: str) -> None:
    ask, other = DRIVERS[driver]
    question, matching, key = lines()[driver]
    values: list[Any] = [json.dumps(MATCHING)] + ([] if other is None else [other])
    for value in values:
        search = (
            f'select (hit."row").title from embed.search(null::article, {question},'
            f" matching => {matching}) as hit"
        )
        assert ask(url, search, ["which one", value]) == [("a",)]
    nearest = (
        f"select id from article_embedding order by embedding <=> (select embed.query({question}))"
    )
    assert sorted(ask(url, nearest, ["which one"])) == [(1,), (2,)]
    similar = f'select (hit."row").title from embed.similar(null::article, {key}) as hit'
    assert ask(url, similar, [1]) == [("b",)]
