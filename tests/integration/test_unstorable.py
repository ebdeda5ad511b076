"""Texts that PostgreSQL cannot hold: each way in says so, and is no fault of ours."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_vectors import VectorWriter
from fix_web import OpenPage
from mcp.server.mcpserver.exceptions import ToolError
from typer.testing import CliRunner

from embedworker.assistant.library import Library
from embedworker.assistant.server import _told
from embedworker.cli.app import app
from embedworker.errors import ConfigurationError
from embedworker.search.client import AsyncClient, Client
from embedworker.state.store import Store

NUL = "a\0b"
HALF = "a\ud800b"
SAID = r"U\+0000|surrogate"


@pytest.fixture
def article(connection: psycopg.Connection[Any], vectors: VectorWriter) -> str:
    connection.execute(
        "create table article (id text primary key, body text, lang text);"
        "insert into article values ('one', 'first', 'en');"
        "select embed.enable('article', array['body'])"
    )
    vectors.embed("article")
    return "article"


CALLS: dict[str, Callable[[Any, str], Any]] = {
    "question": lambda client, text: client.search("article", text),
    "table": lambda client, text: client.search(text, "first"),
    "name": lambda client, text: client.search("article", "first", name=text),
    "value": lambda client, text: client.search("article", "first", matching={"lang": text}),
    "column": lambda client, text: client.search("article", "first", matching={text: "en"}),
    "query": lambda client, text: client.query(text),
    "model": lambda client, text: client.query("first", model=text),
    "similar": lambda client, text: client.similar("article", text),
    "status": lambda client, text: client.status(text),
}


@pytest.mark.usefixtures("article")
@pytest.mark.parametrize("text", [NUL, HALF], ids=["NUL", "half"])
def test_a_client(database: str, text: str) -> None:
    async def ask(call: Callable[[Any, str], Any]) -> None:
        async with AsyncClient(database, timeout=0.2) as client:
            await call(client, text)

    with Client(database, timeout=0.2) as client:
        for call in CALLS.values():
            with pytest.raises(ConfigurationError, match=SAID):
                call(client, text)
        with pytest.raises(ConfigurationError, match=SAID):
            asyncio.run(ask(CALLS["question"]))
        assert client.sources(), "the client goes on"


@pytest.mark.usefixtures("article")
@pytest.mark.parametrize("text", [NUL, HALF], ids=["NUL", "half"])
def test_an_assistant(database: str, text: str) -> None:
    with closing(Store(database)) as store:
        library = Library(store, [], 0.2)
        for ask in (
            lambda: library.search("article", text, 5, None, 0, 2000),
            lambda: library.search("article", "first", 5, {"lang": text}, 0, 2000),
            lambda: library.similar("article", text, 5, 2000),
            lambda: library.read("article", text, 0, 2000),
        ):
            with pytest.raises(ToolError, match=SAID), _told():
                ask()


@pytest.mark.usefixtures("article")
def test_the_page(database: str, open_page: OpenPage) -> None:
    acting = open_page(database, web_allow_actions=True)
    for query in (
        "table=article&q=%00",
        "table=article&q=first&where=lang=%00",
        "table=article&q=first&where=%00=en",
        "table=%00&q=first",
        "error=%00",
    ):
        answer = acting.get(f"/search?{query}")
        assert answer.status_code == 400, query
        assert "U+0000" in answer.text
    answer = acting.post("/tables/1/retry", data={"alike": "1", "error": NUL})
    assert (answer.status_code, "U+0000" in answer.text) == (400, True)
    half = acting.get("/search?table=article&q=%ED%A0%80")
    assert half.status_code == 200


@pytest.mark.usefixtures("article")
def test_the_command_line(database: str, tmp_path: Path) -> None:
    """A line of a file may hold NUL; an argument with a byte that is no UTF-8 has half a pair."""
    asked = ["search", "article", HALF]
    result = CliRunner().invoke(app, asked, env={"DATABASE_URL": database})
    assert "surrogate" in str(result.exception)
    file = tmp_path / "questions.jsonl"
    for line in (r'{"question": "a\u0000b", "key": "one"}', r'{"question": "b", "key": "\u0000"}'):
        file.write_text(line + "\n")
        result = CliRunner().invoke(
            app, ["judgements", "import", "article", str(file)], env={"DATABASE_URL": database}
        )
        assert isinstance(result.exception, ConfigurationError)
        assert "U+0000" in str(result.exception)
