"""``embedworker mcp`` through the official client: what an assistant gets, and what it does not."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import psycopg
import pytest
from fix_cli import command
from fix_roles import as_login, database_with_logins
from fix_worker import Workers
from mcp import Client, StdioServerParameters
from waiting import wait_until

from embedworker.assistant.library import Library
from embedworker.assistant.server import tools
from embedworker.database.embedded.cluster import Cluster
from embedworker.errors import SourceError
from embedworker.state.store import Store
from embedworker.testing import wait_until_embedded

EXAMPLE = Path(__file__).parents[2] / "examples" / "mcp_search.py"
TOKEN = "made-up-for-the-tests-of-mcp"
TEXTS = [
    (1, "en", "the washing machine makes a loud noise"),
    (2, "en", "bread with butter and jam"),
    (3, "ko", "세탁기에서 큰 소리가 나요"),
]
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def articles(
    server: Cluster, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database with two tables that a worker has embedded, and the login t_mcp."""
    with database_with_logins(server, template, {"mcp": None}) as url:
        workers = Workers(url, tmp_path_factory.mktemp("mcp"))
        with psycopg.connect(url, autocommit=True) as shop:
            shop.execute(
                "create table article (id bigint primary key, lang text, body text, price numeric,"
                " vec vector(384)); create table secret"
                ' ("a key" text, part integer, body text, primary key ("a key", part))'
            )
            shop.execute("select embed.enable('article', array['body'], into_column => 'vec')")
            shop.execute("select embed.enable('secret', array['body'])")
            shop.cursor().executemany(
                "insert into article (id, lang, body, price) values (%s, %s, %s, 1.50)", TEXTS
            )
            shop.execute("insert into secret values ('o''k %', 1, 'the noise of the sea')")
        try:
            workers.start(both_lanes=True)
            wait_until_embedded(url, timeout=60)
            yield url
        finally:
            workers.end()


@pytest.fixture
def ask(articles: str) -> Iterator[Ask]:
    """Calls a tool: its answer, or the text of its refusal in a list."""
    store = Store(articles, "embedworker mcp")

    def ask(tool: str, *allowed: str, **arguments: Any) -> Any:
        async def call() -> Any:
            async with Client(tools(Library(store, allowed, 10))) as client:
                return answer(await client.call_tool(tool, arguments))

        return asyncio.run(call())

    yield ask
    store.close()


def answer(result: Any) -> Any:
    texts = [part.text for part in result.content]
    return texts if result.is_error else json.loads(texts[0])


def test_an_assistant_finds_and_reads_rows_within_its_budget(ask: Ask, articles: str) -> None:
    listed = {table["table"]: table for table in ask("sources")["tables"]}
    assert listed["article"]["columns"] == {
        "id": "bigint", "lang": "text", "body": "text", "price": "numeric"
    }  # fmt: skip
    found = ask("search", table="article", question="a loud noise", k=3)
    assert found["left_out"] == 0
    (hit,) = [hit for hit in found["hits"] if hit["key"] == {"id": 1}]
    assert hit["passage"] == TEXTS[0][2]
    assert hit["row"] == {"lang": "en", "body": TEXTS[0][2], "price": 1.5}  # and no vector
    only = ask("search", table="article", question="a loud noise", matching={"lang": ["ko"]})
    assert [hit["key"] for hit in only["hits"]] == [{"id": 3}]
    few = ask("search", table="article", question="a loud noise", k=3, budget=40)
    assert 1 <= len(few["hits"]) < 3
    assert len(few["hits"]) + few["left_out"] == 3
    assert ask("similar", table="article", key=1, k=1)["hits"][0]["key"] != {"id": 1}
    row = ask("read", table="article", key={"id": 2})
    assert row == {"row": {"id": 2, "lang": "en", "body": TEXTS[1][2], "price": 1.5}, "cut": {}}
    assert ask("read", table="secret", key={"a key": "o'k %", "part": 1})["row"]["part"] == 1
    with psycopg.connect(articles, autocommit=True) as connection:
        connection.execute("insert into article values (4, 'ko', repeat('가나다라', 500))")
    part = ask("read", table="article", key=4, budget=100)
    assert 0 < part["cut"]["body"] < 120
    rest = ask("read", table="article", key=4, start=part["cut"]["body"], budget=9000)
    assert part["row"]["body"] + rest["row"]["body"] == "가나다라" * 500
    states = {table["table"]: table for table in ask("status")["tables"]}
    assert (states["secret"]["coverage"], states["secret"]["failed"]) == (1, 0)


def test_what_is_refused_says_why_and_what_to_do(ask: Ask) -> None:
    (said,) = ask("search", "article", table="secret", question="noise")
    assert said.endswith("'secret' is no table that can be searched here; there are: article")
    assert [t["table"] for t in ask("sources", "article")["tables"]] == ["article"]
    (said,) = ask("search", table="article", question="noise", matching={"colour": "red"})
    assert "has no column 'colour'" in said
    assert "It has: id, lang" in said  # the hint
    assert "give the values of a key, part by name" in ask("read", table="secret", key=1)[0]
    assert "has no row with the key 99" in ask("read", table="article", key=99)[0]
    assert ask("read", table="article", key="x")[0].endswith("SQLSTATE 22P02")
    assert "expected 1 to 1000" in ask("search", table="article", question="noise", k=0)[0]


def test_rights_and_row_security_are_those_of_the_login(articles: str) -> None:
    with psycopg.connect(articles, autocommit=True) as shop:
        shop.execute(
            "grant select on article to t_mcp; alter table article enable row level security;"
            "create policy own on article to t_mcp using (lang = 'ko')"
        )
    store = Store(as_login(articles, "mcp"), "embedworker mcp")
    try:
        library = Library(store, [], 10)
        assert [table["table"] for table in library.sources()["tables"]] == ["article"]
        hits = library.search("article", "a loud noise", 5, None, 0, 2000)["hits"]
        assert [hit["key"] for hit in hits] == [{"id": 3}]
        with pytest.raises(SourceError, match="no row with the key 1"):
            library.read("article", 1, 0, 2000)
        with store.look() as look, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            look.connection.execute("create temporary table made (id integer)")
    finally:
        store.close()


def test_the_example_runs(articles: str) -> None:
    said = subprocess.run(
        [sys.executable, EXAMPLE, "a loud noise"],
        env={**os.environ, "DATABASE_URL": articles},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert re.match(r"-?\d\.\d+  \{'id': \d\}  \w", said.stdout)


def test_the_command_answers_over_standard_input_and_over_http(
    articles: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "EMBEDWORKER_DATABASE_URL": articles}
    program = StdioServerParameters(
        command=sys.executable, args=["-m", "embedworker.cli", "mcp"], env=environment
    )

    async def names(server: Any) -> list[str]:
        async with Client(server) as client:
            assert answer(await client.call_tool("sources", {}))["tables"]
            return [tool.name for tool in (await client.list_tools()).tools]

    expected = ["sources", "search", "similar", "read", "status"]
    assert asyncio.run(names(program)) == expected

    log = tmp_path / "mcp.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command("mcp", "--http", "--port", "0"),
            env={**environment, "EMBEDWORKER_MCP_TOKEN": TOKEN},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        at = wait_until(lambda: re.search(r"http://\S+", log.read_text()), 60, "the address")[0]
        assert wait_until(lambda: status(at), 60, "an answer") == 401

        async def over_http() -> list[str]:
            from mcp.client.streamable_http import streamable_http_client

            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx2.AsyncClient(headers=headers) as http:
                return await names(streamable_http_client(at, http_client=http))

        assert asyncio.run(over_http()) == expected
    finally:
        process.terminate()
        process.wait(30)


def status(url: str) -> int | None:
    try:
        return httpx.post(url, json={}, timeout=60).status_code
    except httpx.ConnectError:
        return None
