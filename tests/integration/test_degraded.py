"""Searches that no worker answers: the words of the question alone rank the rows."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_vectors import VectorWriter, role
from typer.testing import CliRunner
from waiting import wait_until

from embedworker.cli.app import app
from embedworker.errors import ConfigurationError, SearchWarning
from embedworker.search.client import Client

Connection = psycopg.Connection[Any]

TEXTS = {
    1: "보일러 오류 코드 E-119 점화가 되지 않을 때",
    2: "보일러 오류 코드 E-110 과열로 멈춘 때",
    3: "402번 버스 막차는 23시 10분",
    4: "서울역에서 부산역까지 가는 고속열차",
    5: "The boiler shows error E-119 when the flame does not light",
}


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """The table article of these texts, embedded and counted, without a worker."""
    connection.execute("create table article (id int primary key, body text, lang text)")
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into article values (%s, %s, %s)",
            [(key, text, "en" if key == 5 else "ko") for key, text in TEXTS.items()],
        )
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.count("article")
    return connection


@pytest.fixture
def notices(article: Connection) -> Iterator[list[tuple[str | None, str | None]]]:
    heard: list[tuple[str | None, str | None]] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        heard.append((diagnostic.sqlstate, diagnostic.message_primary))

    article.add_notice_handler(hear)
    yield heard
    article.remove_notice_handler(hear)


def search(connection: Connection, question: str, more: str = "") -> list[tuple[Any, ...]]:
    return connection.execute(
        'select (s."row").id, s.score, s.similarity, s.bm25, s.passage'
        f" from embed.search(null::article, %s{more}) s".encode(),
        [question],
    ).fetchall()


def test_the_words_rank_the_rows(
    article: Connection, notices: list[tuple[str | None, str | None]]
) -> None:
    rows = search(article, "보일러에 E-119가 떠요")
    assert rows[0][0] == 1
    assert {key for key, *_ in rows} >= {1, 2}
    assert 4 not in {key for key, *_ in rows}, "it has none of the words"
    for key, score, similarity, bm25, passage in rows:
        assert similarity is None
        assert 0 < bm25 <= 1
        assert score >= bm25
        assert passage == TEXTS[key]
    assert [score for _, score, *_ in rows] == sorted((r[1] for r in rows), reverse=True)
    assert notices == [
        (
            "EW011",
            "the words alone rank the rows: "
            "no worker that answers questions is connected to this database",
        )
    ]


def test_nothing_found_can_be_told_from_words_alone(
    article: Connection, vectors: VectorWriter, notices: list[tuple[str | None, str | None]]
) -> None:
    vectors.know("부산")
    with article.transaction():
        assert search(article, "zebra") == []
        (why,) = article.execute("select current_setting('embed.degraded')").fetchone() or ("",)
        assert why.startswith("EW001: no worker that answers questions")
        assert search(article, "부산")[0][2] is not None
        assert article.execute("select current_setting('embed.degraded')").fetchone() == ("",)
    assert [state for state, _ in notices] == ["EW011"]


@pytest.mark.parametrize("question", ["🙂", "..."])
def test_a_question_without_any_word_finds_nothing(
    article: Connection, notices: list[tuple[str | None, str | None]], question: str
) -> None:
    assert search(article, question) == []
    assert [state for state, _ in notices] == ["EW011"]


def test_an_error_where_it_is_wanted_or_no_words_count(article: Connection) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        search(article, "부산", ", lexical => 0")
    assert caught.value.sqlstate == "EW001"
    article.execute("set embed.search_without_worker = error")
    with pytest.raises(psycopg.DatabaseError) as caught:
        search(article, "부산")
    assert caught.value.sqlstate == "EW001"
    assert "embedworker run" in (caught.value.diag.message_hint or "")
    article.execute("set embed.search_without_worker = maybe")
    with pytest.raises(psycopg.DatabaseError, match="expected words or error") as caught:
        search(article, "부산")
    assert caught.value.sqlstate == "EW003"
    article.execute("set embed.search_without_worker = words")
    assert search(article, "부산")[0][0] == 4
    for wrong in ("", "[0.1, 0.2, 0.3]"):
        with pytest.raises(psycopg.DatabaseError) as caught:
            search(article, wrong)
        assert caught.value.sqlstate == "EW003", "a wrong question stays an error"


def test_conditions_pages_and_rights(article: Connection) -> None:
    assert [row[0] for row in search(article, "E-119", ', matching => \'{"lang": "en"}\'')] == [5]
    whole = search(article, "보일러 오류 코드 버스", ", k => 5")
    assert len(whole) == 3
    assert search(article, "보일러 오류 코드 버스", ", k => 1") == whole[:1]
    assert search(article, "보일러 오류 코드 버스", ", k => 2, skip => 1") == whole[1:]
    article.execute("alter table article enable row level security")
    article.execute("create policy own on article using (id <> 1)")
    with role(article, "select on article"):
        assert [row[0] for row in search(article, "보일러 오류 코드 E-119")][:1] in ([2], [5])
        assert 1 not in [row[0] for row in search(article, "E-119")]


def test_without_a_loopback_and_in_a_read_only_transaction(
    article: Connection, notices: list[tuple[str | None, str | None]]
) -> None:
    article.execute("update embed.setting set value = 'x' where name = 'loopback'")
    article.execute("begin read only")
    assert search(article, "부산", ", rerank => 3")[0][0] == 4
    article.execute("commit")
    assert notices == [
        (
            "EW011",
            "the words alone rank the rows: questions cannot reach a worker from inside SQL",
        )
    ]


def test_the_server_counts_them(article: Connection) -> None:
    """In read-only transactions, too."""

    def counted() -> int:
        article.execute("select pg_stat_force_next_flush()")
        row = article.execute("select degraded from embed._question_counts()").fetchone()
        assert row is not None
        number: int = row[0]
        return number

    before = counted()
    article.execute("begin read only")
    search(article, "부산")
    article.execute("commit")
    search(article, "zebra")
    wait_until(lambda: counted() == before + 2, 30)


@pytest.mark.usefixtures("article")
def test_the_client_and_the_command_say_so(database: str) -> None:
    with Client(database) as client:
        with pytest.warns(SearchWarning, match="the words alone rank the rows: EW001: no worker"):
            hits = client.search("article", "E-119", matching={"lang": ["en", "fr"]})
        assert [(hit.key, hit.similarity) for hit in hits] == [({"id": 5}, None)]
        assert (hits.degraded or "").startswith("EW001: no worker")
        with pytest.warns(SearchWarning):
            assert [hit.key for hit in client.search("article", "E-119", 1, skip=1)] == [{"id": 5}]
        with pytest.warns(SearchWarning):
            assert client.search("article", "zebra").degraded
        with pytest.raises(ConfigurationError, match="has no column 'lng'"):
            client.search("article", "E-119", matching={"lng": "ko"})
    asked = ["search", "article", "E-119", "--matching", "lang=ko", "--matching", "id=1", "--json"]
    result = CliRunner().invoke(app, asked, env={"DATABASE_URL": database})
    assert result.exit_code == 0
    assert [hit["key"] for hit in json.loads(result.stdout)] == [{"id": 1}]
    assert "the words alone rank the rows: EW001" in result.stderr
    result = CliRunner().invoke(
        app, ["search", "article", "x", "--matching", "lang"], env={"DATABASE_URL": database}
    )
    assert result.exit_code == 2
    assert "expected COLUMN=VALUE" in result.stderr


def test_a_client_asks_over_its_own_connection_where_there_is_no_loopback(
    article: Connection, vectors: VectorWriter, database: str
) -> None:
    """No worker is there for it either, so the words answer, after no longer a wait."""
    article.execute("update embed.setting set value = 'x' where name = 'loopback'")
    with Client(database, timeout=0.2) as client:
        with pytest.warns(SearchWarning, match="EW007"):
            assert client.search("article", "부산")[0].key == {"id": 4}
        vectors.know("부산")
        assert client.search("article", "부산")[0].similarity is not None
