"""The index over the words of passages: what is found by it, who may look, and who builds it."""

from typing import Any

import numpy as np
import psycopg
import pytest
from fix_drain import source_of
from fix_vectors import VectorWriter, role, word_vector

from embedworker.model.lexical import FIRST, WORD, question_terms, term_vector
from embedworker.queue.source import load_sources
from embedworker.service.indexing import Indexer

Connection = psycopg.Connection[Any]
ONE = np.eye(1, 384, dtype=np.float32)[0]
QUESTION = "화면에 PX-1217 이라고 나와요"
INDEX = (
    "create index words on article_embedding using gin (embed._places(terms))"
    " where terms is not null"
)
INDEXES = """
select count(*)
from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
where i.indrelid = 'article_embedding'::regclass and a.amname = 'gin' and i.indisvalid
"""


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """400 rows of which 217 alone has the code of QUESTION, and is the farthest from it."""
    connection.execute("create table article (id int primary key, body text)")
    connection.execute(
        "insert into article select i, '점검할 때 PX-' || 1000 + i || ' 코드가 나오면 끕니다'"
        " from generate_series(0, 399) i"
    )
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.count("article")
    connection.execute("update article_embedding set embedding = %s", [ONE])
    connection.execute(
        "update article_embedding set embedding = %s where id = 217", [word_vector("far")]
    )
    vectors.know(QUESTION, ONE)
    return connection


def large(connection: Connection, *, index: bool = True) -> None:
    """Make the server believe that the table is too large to be read in whole."""
    if index:
        connection.execute(INDEX)
    connection.execute(
        "update pg_class set reltuples = 1e6, relpages = 10 where relname = 'article_embedding'"
    )


def found(connection: Connection, **options: Any) -> list[int]:
    """The rows of a search in which the meaning counts little."""
    named = "".join(f", {name} => %({name})s" for name in options)
    rows = connection.execute(
        'select (s."row").id from embed.search(null::article, %(question)s, k => 3, lexical => 9'
        f"{named}) s".encode(),
        {"question": QUESTION, **options},
    ).fetchall()
    return [number for (number,) in rows]


def places(text: str) -> list[int]:
    """The places of a text's terms."""
    terms, _ = question_terms(text)
    return [term & (WORD - 1) for term in terms if term > WORD]


def look_up(connection: Connection, source: int, token: str | None) -> int:
    """How many places the function gives of passages that have a word of QUESTION."""
    function = f"embed.source_{source}_words(%s, %s, '{{5:1}}/16777216', 500)"
    row = connection.execute(
        f"select cardinality({function})".encode(),
        [token, places(QUESTION)],
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_row_is_found_by_its_code_that_is_far_in_meaning(article: Connection) -> None:
    assert found(article)[0] == 217, "small: all passages were read"
    large(article, index=False)
    assert 217 not in found(article), "neither small, nor is there an index"
    large(article)
    assert found(article)[0] == 217


def test_by_the_index_and_by_reading_all_the_rows_are_the_same(article: Connection) -> None:
    read = found(article)
    large(article)
    assert found(article)[0] == read[0] == 217
    article.execute("alter table article add column part int")
    article.execute("update article set part = id % 5")
    assert found(article, matching='{"part": 2}')[0] == 217
    assert 217 not in found(article, matching='{"part": 3}')
    article.execute("delete from article where id = 217")
    assert 217 not in found(article)


def test_readers_of_all_texts_find_by_it_and_others_learn_nothing(
    article: Connection, vectors: VectorWriter
) -> None:
    number = vectors.source("article")["id"]
    large(article)
    token_of = "select token from embed.lexical_state where source = %s"
    (token,) = article.execute(token_of, [number]).fetchone() or (None,)
    assert look_up(article, number, token) > 0
    with role(article, "select on article") as name:
        article.execute("reset role")
        article.execute("select embed._renew_token(%s)", [number])  # as a worker's look does
        article.execute(f"set role {name}".encode())
        assert article.execute(token_of, [number]).fetchone() != (token,)
        assert found(article)[0] == 217
    article.execute("alter table article enable row level security")
    article.execute("create policy part on article for select using (id <> 217)")
    with role(article, "select on article"):
        assert article.execute(token_of, [number]).fetchone() is None
        assert look_up(article, number, None) == 0
        assert look_up(article, number, "guessed") == 0
        assert 217 not in found(article)
    for grants in ([], ["select (id) on article"]):
        with role(article, *grants):
            assert article.execute(token_of, [number]).fetchone() is None
            assert look_up(article, number, "guessed") == 0


def test_the_planner_tells_nobody_which_words_are_in_hidden_rows(
    article: Connection, vectors: VectorWriter
) -> None:
    article.execute("update article set body = body || ' secretword' where id % 2 = 0")
    vectors.embed("article")
    article.execute("alter table article enable row level security")
    article.execute("create policy part on article for select using (id % 2 = 1)")
    (definition,) = article.execute(
        "select embed._words_definition(s) from embed.source s where s.name = 'article'"
    ).fetchone() or ("",)
    article.execute(f"create index words {definition}".encode())
    article.execute("analyze article_embedding")

    def estimates() -> set[str]:
        return {
            str(plan[0]["Plan"]["Plan Rows"])
            for word in ("secretword", "absent")
            for (plan,) in article.execute(
                "explain (format json) select from article_embedding"
                f" where embed._places(terms) && '{{{places(word)[0]}}}'".encode()
            )
        }

    with role(article, "select on article"):
        assert len(estimates()) == 1


def test_an_index_that_tells_is_replaced(testing_database: str, owner: Connection) -> None:
    """Earlier ones had no condition."""
    vectors = VectorWriter(owner)
    owner.execute("create table article (id int primary key, body text)")
    owner.execute("insert into article select i, '글 ' || i from generate_series(1, 50) i")
    owner.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    owner.execute("create index old on article_embedding using gin (embed._places(terms))")
    source = source_of(owner, "article")
    for _ in range(3):
        indexer = Indexer(testing_database, after_rows=1, memory=1 << 26, words_after_rows=1)
        indexer.run_if_due(owner, source)
        indexer.wait()
    assert owner.execute(INDEXES.encode()).fetchone() == (1,)
    assert owner.execute("select to_regclass('old')").fetchone() == (None,)


def test_the_token_is_another_after_each_count(article: Connection, vectors: VectorWriter) -> None:
    """So a role that loses its rights does not keep it for ever."""
    token = "select token from embed.lexical_state where source = %s"
    number = vectors.source("article")["id"]
    first = article.execute(token, [number]).fetchone()
    vectors.count("article")
    second = article.execute(token, [number]).fetchone()
    assert None not in (first, second)
    assert first != second
    assert first is not None
    assert look_up(article, number, first[0]) == 0


@pytest.mark.parametrize(
    "change", ["alter table article enable row level security", "revoke select on article from {}"]
)
def test_a_token_counts_no_more_when_the_rights_have_changed(
    article: Connection, change: str
) -> None:
    """Who had read it could ask for the words of rows that were hidden from then on."""
    source = source_of(article, "article").id
    article.execute(INDEX)
    with role(article, "select on article") as name:
        refresh = "select embed._refresh(id) from embed.source"
        article.execute("reset role")
        article.execute(refresh.encode())
        article.execute(f"set role {name}".encode())
        ((token,),) = article.execute("select token from embed.lexical_state").fetchall()
        assert look_up(article, source, token) > 0
        article.execute("reset role")
        article.execute(change.format(name).encode())
        article.execute(f"set role {name}".encode())
        assert look_up(article, source, token) == 0
        article.execute("reset role")
        article.execute(refresh.encode())  # a look of a worker
        ((renewed,),) = article.execute("select token from embed.lexical_state").fetchall()
        assert renewed != token
        assert look_up(article, source, token) == 0
        assert look_up(article, source, renewed) > 0


def test_disabled_the_vectors_stay_without_it(article: Connection) -> None:
    article.execute(INDEX)
    article.execute("select embed.disable('article')")
    assert article.execute(INDEXES.encode()).fetchone() == (0,)


def test_a_worker_builds_it_after_the_index_over_the_vectors(
    testing_database: str, owner: Connection
) -> None:
    vectors = VectorWriter(owner)
    owner.execute("create table article (id int primary key, body text)")
    owner.execute("insert into article select i, '글 ' || i from generate_series(1, 50) i")
    owner.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    number = vectors.source("article")["id"]
    source = next(s for s in load_sources(owner) if s.id == number)

    def build(words_after_rows: int) -> None:
        indexer = Indexer(
            testing_database, after_rows=1, memory=1 << 26, words_after_rows=words_after_rows
        )
        for _ in range(3):
            indexer.interval.changed(number)
            indexer.run_if_due(owner, source)
            indexer.wait()

    build(10**9)
    assert owner.execute(INDEXES.encode()).fetchone() == (0,)
    build(1)
    assert owner.execute(INDEXES.encode()).fetchone() == (1,)
    build(1)
    assert owner.execute(INDEXES.encode()).fetchone() == (1,)


@pytest.mark.parametrize("text", ["부산 E-119 boiler", "", "물"])
def test_places_are_those_of_the_terms(connection: Connection, text: str) -> None:
    vector = term_vector(text, 3.0)
    row = connection.execute("select embed._places(%s)", [vector]).fetchone()
    assert row == ([place + 1 for place in vector.indices() if place >= FIRST],)
