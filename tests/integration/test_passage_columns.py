"""embed.passage_columns: which part of which column a passage is."""

import unicodedata
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_database import Connection

DECOMPOSED = unicodedata.normalize("NFD", "보일러 점검")
ROWS: list[tuple[int, str | None, str | None, str | None]] = [
    (1, "Boiler", "It hums.", "Call us."),
    (2, None, "It hums.", None),
    (3, "Boiler", " \u200b", "Call us."),
    (4, DECOMPOSED, DECOMPOSED, "e\u0301 {x}"),
    (5, "", None, "Call 'us' \\ now"),
]
SOURCES = {
    "plain": None,
    "words": "Name: {title} {{said}} {content}; {note}!",
    "joined": "{note}{title}{content}",
}


@pytest.fixture
def article(connection: Connection) -> Iterator[Connection]:
    """A table of three columns, enabled without a template and with two."""
    connection.execute(
        'create table article (id int primary key, title text, "content" text, note text)'
    )
    with connection.cursor() as cursor:
        cursor.executemany("insert into article values (%s, %s, %s, %s)", ROWS)
    for name, template in SOURCES.items():
        connection.execute(
            "select embed.enable('article', array['title', 'content', 'note'], name => %s,"
            " template => %s)",
            [name, template],
        )
    yield connection
    for name in SOURCES:
        connection.execute("select embed.disable('article', name => %s)", [name])
    connection.execute("drop table article")


def text_of(connection: Connection, name: str, row: int) -> str:
    """The text that is embedded, as the worker reads it."""
    found = connection.execute(
        "select embed._text_sql(s, 'article') from embed.source s where name = %s", [name]
    ).fetchone()
    assert found is not None
    one = connection.execute(f"select {found[0]} from article where id = {row}".encode()).fetchone()
    assert one is not None
    return str(one[0] or "")


def parts(connection: Connection, name: str, row: int, start: int, end: int) -> list[Any]:
    return connection.execute(
        "select p.* from article, embed.passage_columns(article, %s, %s, name => %s) p"
        " where id = %s",
        [start, end, name, row],
    ).fetchall()


@pytest.mark.parametrize("name", SOURCES)
def test_the_parts_are_the_passage_without_the_words_around_the_columns(
    article: Connection, name: str
) -> None:
    """Every range of every row: each part stands in the text where it should, and in order."""
    for row, *values in ROWS:
        text = text_of(article, name, row)
        columns = {
            column: unicodedata.normalize("NFC", value or "")
            for column, value in zip(("title", "content", "note"), values, strict=True)
        }
        whole = parts(article, name, row, 0, len(text))
        said = {column: part for column, _, _, part in whole if part.strip(" \u200b")}
        assert said == {c: v for c, v in columns.items() if v.strip(" \u200b")}
        for start in range(0, len(text), 3):
            for end in (start + 1, start + 7, len(text)):
                at = start
                for column, first, last, part in parts(article, name, row, start, end):
                    assert columns[column][first:last] == part != ""
                    at = text.index(part, at) + len(part)
                    assert at <= end


def test_a_passage_of_two_columns(article: Connection) -> None:
    assert parts(article, "plain", 1, 3, 12) == [
        ("title", 3, 6, "ler"),
        ("content", 0, 5, "It hu"),
    ]
    assert parts(article, "plain", 1, 6, 7) == [], "the line break between them"
    assert parts(article, "words", 1, 0, 8) == [("title", 0, 2, "Bo")]
    assert parts(article, "plain", 2, 0, 100) == [("content", 0, 8, "It hums.")]


def test_odd_ranges(article: Connection) -> None:
    whole = parts(article, "plain", 1, 0, 100)
    assert len(whole) == 3
    assert parts(article, "plain", 1, -(2**31), 2**31 - 1) == whole
    for start, end in ((3, 1), (5, 5), (100, 200), (-5, -1)):
        assert parts(article, "plain", 1, start, end) == []


def test_a_dropped_column_and_an_unknown_name(article: Connection) -> None:
    with pytest.raises(psycopg.Error, match="not enabled under the name 'other'") as refused:
        parts(article, "other", 1, 0, 5)
    assert refused.value.sqlstate == "EW002"
    with article.transaction(force_rollback=True):
        article.execute("alter table article drop column note")
        with pytest.raises(psycopg.Error, match=r"an enabled column of .*article was") as gone:
            parts(article, "plain", 1, 0, 5)
        assert gone.value.sqlstate == "EW004"
