"""What is known of the words of a table stays with the vectors it was counted in, across a cut."""

import pytest
from fix_drain import source_of
from fix_switch import OTHER, one
from fix_vectors import VectorWriter, word_vector
from psycopg import sql

from embedworker.model.lexical import WORD, question_terms
from embedworker.queue.rewriting import clear
from embedworker.queue.source import Connection
from embedworker.queue.statistics import Statistics, count, load

CODE = 3  # what the number of a question's term says of one
QUESTION = "화면에 PX-1217 이라고 나와요"


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """400 rows, with an index over the words on either side; 217 alone has the question's code."""
    connection.execute("create table article (id int primary key, body text)")
    connection.execute(
        "insert into article select i, '점검할 때 PX-' || 1000 + i || ' 코드가 나오면 끕니다'"
        " from generate_series(0, 399) i"
    )
    connection.execute("select embed.enable('article', array['body'])")
    connection.execute("select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ')", [OTHER])
    connection.execute("select embed.begin_switch('article', %s)", [OTHER])
    for name, revision in (("article", "1"), ("article_next", "2")):
        vectors.embed("article", name=name, revision=revision)
        vectors.count("article", name)
        connection.execute(
            sql.SQL("create index on {} using gin (embed._places(terms))").format(
                sql.Identifier(f"{name}_embedding")
            )
        )
    # The places of the rows are no longer the same on both sides.
    connection.execute("update article_embedding set embedding = %s", [word_vector("far")])
    return connection


def places(connection: Connection, name: str) -> list[int]:
    """The rows that the words of a question lead to, in the table that has this name now."""
    terms, _ = question_terms(QUESTION)
    number, token = one(
        connection,
        "select s.id, t.token from embed.source s join embed.lexical_state t on t.source = s.id"
        " where s.name = %s",
        name,
    )
    rows = connection.execute(
        sql.SQL(
            "select v.id from {} v where v.ctid = any"
            " ({}(%(token)s, %(terms)s, '{{5:1}}/16777216', 500))"
        ).format(
            sql.Identifier(f"{name}_embedding"), sql.Identifier("embed", f"source_{number}_words")
        ),
        {"token": token, "terms": [term & (WORD - 1) for term in terms if term >> 24 == CODE]},
    ).fetchall()
    return [row for (row,) in rows]


@pytest.mark.parametrize("calls", [["cut_over"], ["cut_over", "roll_back"]])
def test_words_are_looked_up_in_the_table_of_the_source(
    article: Connection, calls: list[str]
) -> None:
    for call in calls:
        force = ", force => true" if call == "cut_over" else ""
        article.execute(f"select embed.{call}('article'{force})".encode())
    assert places(article, "article") == places(article, "article_next") == [217]
    article.execute("create schema shop; alter table article_embedding set schema shop")
    article.execute("set search_path = public, shop")
    assert places(article, "article") == [217]


def versions(connection: Connection, source: int) -> list[int]:
    rows = connection.execute(
        "select distinct version from embed.lexical_term where source = %s", [source]
    ).fetchall()
    return [version for (version,) in rows]


def test_a_count_by_the_name_before_the_cut_is_not_used(article: Connection) -> None:
    """It has read the vectors of the other side, and may have read all of them."""
    stale = source_of(article, "article", "article")
    used = load(article, stale)
    assert used is not None
    article.execute("delete from article_next_embedding where id > 9")
    counting = count(article, stale)
    next(counting)
    article.execute("select embed.cut_over('article', force => true)")
    list(counting)
    assert load(article, stale) == used
    assert versions(article, stale.id) == [used.version]


def test_a_count_that_a_cut_overtakes_begins_again(article: Connection) -> None:
    stale = source_of(article, "article", "article")
    used = load(article, stale)
    assert used is not None
    article.execute("delete from article_next_embedding where id > 9")
    statistics = Statistics(article, pause=0.0)
    statistics.ask(stale)
    assert statistics.step(stale)
    article.execute("select embed.cut_over('article', force => true)")
    renamed = source_of(article, "article", "article_next")
    assert renamed.id == stale.id
    while statistics.step(renamed):
        pass
    counted = load(article, renamed)
    assert counted is not None
    assert counted.version > used.version
    assert counted.passages == 400
    assert versions(article, stale.id) == [counted.version]


def test_terms_stay_where_words_count(article: Connection) -> None:
    """The name that a source without words had is by now that of one with them."""
    article.execute("select embed.end_switch('article')")
    article.execute("select embed.enable('article', array['body'], words => false)")
    article.execute("select embed.begin_switch('article', %s)", [OTHER])
    stale = source_of(article, "article", "article")
    clearing = clear(article, stale, 1000)
    article.execute("select embed.cut_over('article', force => true)")
    article.execute("select embed.end_switch('article')")
    article.execute("select embed.enable('article', array['body'], words => true)")
    VectorWriter(article).embed("article")
    list(clearing)
    assert one(article, "select count(*) from article_embedding where terms is null") == 0
