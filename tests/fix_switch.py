"""A table whose model is changed, and what must hold of both sides."""

from collections.abc import Iterator
from typing import Any

import pytest
from fix_drain import Connection, source_of
from fix_questions import QuestionRunner
from psycopg import sql

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import SMALL_MODEL, TESTING_MODEL
from embedworker.model.testing import hash_vector

OTHER = SMALL_MODEL
TEXTS = {1: "a red kettle", 2: "a blue kettle", 3: "세탁기가 멈췄어요"}
STATE = "select source, successor, cut from embed.switch_state"
NAMES = "select id, name, model, vectors::oid from embed.source order by id"
TABLES = """
create schema shop;
set search_path = shop, public;
create table article (id int primary key, title text);
insert into article values (1, 'a red kettle'), (2, 'a blue kettle'), (3, '세탁기가 멈췄어요');
create table page (id int primary key, title text, v public.vector(384));
insert into page values (1, 'a red kettle'), (2, 'a blue kettle'), (3, null);
select embed.add_model('testing:small', 64, 8192, 'query: ', 'passage: ');
"""
ENABLE = """
select embed.enable('article', '{title}', model => 'testing:hash');
select embed.enable('page', '{title}', into_column => 'v', model => 'testing:hash');
"""
NEAREST = """
select id, 1 - (embedding <=> (select embed.query(%s, of => 'article')))
from article join article_embedding using (id)
order by embedding <=> (select embed.query(%s, of => 'article'))
"""


@pytest.fixture
def article(app: Connection, shared_database: str) -> Iterator[Connection]:
    app.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
    app.execute("create table article (id int primary key, title text, lang text default 'en')")
    for number, text in TEXTS.items():
        app.execute("insert into article values (%s, %s)", [number, text])
    app.execute("select embed.enable('article', array['title'], model => %s)", [TESTING_MODEL])
    with connect(shared_database) as connection:
        set_up_loopback(connection)
    with QuestionRunner(shared_database, 1000):
        yield app


def begin(connection: Connection) -> None:
    connection.execute("select embed.begin_switch('article', %s)", [OTHER])


def one(connection: Connection, query: str, *values: Any) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def switch(connection: Connection) -> tuple[Any, ...]:
    row: tuple[Any, ...] = one(
        connection, "select phase, coverage, from_coverage from embed.switch where name = 'article'"
    )
    return row


def answer(connection: Connection, question: str, dimensions: int) -> list[int]:
    """The ids in their order; every score must be the cosine in the space of ``dimensions``."""
    found = connection.execute(NEAREST.encode(), [question, question]).fetchall()
    asked = hash_vector("query: " + question, dimensions)
    titles = dict(connection.execute("select id, title from article").fetchall())
    for number, score in found:
        expected = float(asked @ hash_vector("passage: " + titles[number], dimensions))
        assert score == pytest.approx(expected, abs=1e-5)
    return [number for number, _ in found]


def check_sides(connection: Connection, *, serving: int) -> None:
    """Fail unless every vector of both sides is of the row's text as it is now."""
    for name in ("article", "article_next"):
        source = source_of(connection, "article", name)
        dimensions = serving if name == "article" else 448 - serving
        assert source.dimensions == dimensions
        rows = connection.execute(
            sql.SQL(
                "select a.title, e.embedding::real[] from article a"
                " left join {} e using (id) where a.title is not null"
            ).format(sql.Identifier(f"{name}_embedding"))
        ).fetchall()
        assert rows
        for title, vector in rows:
            expected = hash_vector("passage: " + title, dimensions)
            assert vector == pytest.approx(expected.tolist(), abs=1e-6), (name, title)


def check_columns(connection: Connection, **dimensions: int) -> None:
    """Fail unless each column has the vector of the row's text as it is now."""
    for column, size in dimensions.items():
        rows = connection.execute(
            sql.SQL("select title, {}::real[] from page").format(sql.Identifier(column))
        ).fetchall()
        assert rows
        for title, vector in rows:
            if title is None:
                assert vector is None
            else:
                expected = hash_vector("passage: " + title, size)
                assert vector == pytest.approx(expected.tolist(), abs=1e-6), (column, title)


def state(connection: Connection) -> list[Any]:
    """Everything that a call for a switch changes."""
    return [connection.execute(query.encode()).fetchall() for query in (STATE, NAMES)]


def calls(connection: Connection, call: str) -> None:
    """Do one step for both tables."""
    more = {"begin_switch": f", '{OTHER}'", "cut_over": ", force => true"}.get(call, "")
    for table in ("article", "page"):
        connection.execute(f"select embed.{call}('{table}'{more})".encode())


def check_both(connection: Connection, *, serving: int) -> None:
    check_sides(connection, serving=serving)
    check_columns(connection, v=serving, v_next=448 - serving)


@pytest.fixture
def paged(article: Connection) -> Connection:
    """A table that keeps its vectors in a column of its own."""
    article.execute("create table page (id int primary key, title text, v public.vector(384))")
    article.execute("insert into page values (1, 'a red kettle'), (2, 'a blue kettle'), (3, null)")
    article.execute(
        "select embed.enable('page', '{title}', into_column => 'v', model => %s)", [TESTING_MODEL]
    )
    return article
