"""``embed.enable(…, words => false)``: no terms are computed, stored or indexed."""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane, source_of
from fix_vectors import VectorWriter, word_vector

from embedworker.database.connect import connect
from embedworker.errors import NoWorker
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, claim, move, read
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.failure import release
from embedworker.search.client import Client
from embedworker.service.indexing import Indexer

TEXTS = ["부산 바다 E-119", "서울역과 부산역", "바다"]
ENABLE = "select embed.enable('article', array['body'], words => %s)"


@pytest.fixture
def lane(testing_database: str) -> Iterator[Lane]:
    with closing(Lane(testing_database)) as opened:
        opened.lane.statistics._pause = 0.0
        yield opened


@pytest.fixture
def article(testing_database: str) -> Iterator[Connection]:
    with connect(testing_database) as opened:
        opened.execute("create table article (id int primary key, body text)")
        with opened.cursor() as cursor:
            cursor.executemany("insert into article values (%s, %s)", list(enumerate(TEXTS)))
        yield opened


def kept(connection: Connection) -> tuple[int, int]:
    """Passages, and how many of them have a vector of terms."""
    row = connection.execute("select count(*), count(terms) from article_embedding").fetchone()
    assert row is not None
    return row


def counted(connection: Connection) -> int:
    """How many terms have a frequency."""
    row = connection.execute("select count(*) from embed.lexical_term").fetchone()
    assert row is not None
    return int(row[0])


def test_words_are_left_out_and_come_back_without_the_model(
    article: Connection, lane: Lane
) -> None:
    article.execute(ENABLE, [False])
    assert lane.drain() == []
    assert (kept(article), counted(article)) == ((3, 0), 0)
    assert article.execute("select words from embed.status where name = 'article'").fetchone() == (
        False,
    )
    embedded = lane.progress.embedded

    for words, terms in ((True, 3), (False, 0), (True, 3)):
        article.execute(ENABLE, [words])
        lane.a_minute_later()
        assert lane.drain() == []
        assert kept(article) == (3, terms)
        assert (counted(article) > 0) is words
    assert lane.progress.embedded == embedded

    # A row that is written now has the form of its table.
    article.execute(ENABLE, [False])
    article.execute("insert into article values (3, '새 글')")
    lane.a_minute_later()
    assert lane.drain() == []
    assert kept(article) == (4, 0)
    # Nothing is left to remove, so this one is written without.
    article.execute("insert into article values (4, '더 새 글')")
    assert lane.drain() == []
    assert kept(article) == (5, 0)


@pytest.mark.parametrize("words", [True, False])
def test_a_worker_that_read_the_table_before_writes_no_row_of_the_other_form(
    article: Connection, lane: Lane, words: bool
) -> None:
    article.execute(ENABLE, [not words])
    lane.drain()
    stale = source_of(article, "article")
    article.execute(ENABLE, [words])
    lane.a_minute_later()
    assert lane.drain() == []
    article.execute("insert into article values (7, '새 글')")
    move(article, stale)
    (job,), _ = claim(article, stale, worker=77, quotas={FRESH: 10}, lease=60.0, max_attempts=5)
    read(article, [job], fingerprint=stale.fingerprint or 0)
    made = Result(job, [EmbeddedPassage(0, 3, hash_vector("passage: 새 글"))])
    written = complete(
        article, [made], worker=77, fingerprint=stale.fingerprint or 0, average_length=10.0
    )
    assert written == 0
    release(article, [job], worker=77)
    assert lane.drain() == []
    assert kept(article) == (4, 4 if words else 0)


def test_terms_that_are_missing_are_found_by_the_next_count(
    article: Connection, lane: Lane
) -> None:
    """A statement that began before words were turned on may end after all others have terms."""
    article.execute(ENABLE, [True])
    lane.drain()
    article.execute("update article_embedding set terms = null where id = 1")
    lane.lane.statistics.ask(source_of(article, "article"))
    assert lane.drain() == []
    assert kept(article) == (3, 3)
    assert article.execute("select scheme from embed.lexical_state").fetchone() == (2,)


def test_meaning_alone_ranks_and_a_weight_is_refused(
    article: Connection, vectors: VectorWriter
) -> None:
    article.execute(ENABLE, [False])
    vectors.embed("article")
    near = word_vector("바다")
    vectors.know("부산 E-119", near)
    search = (
        'select (s."row").id, s.score, s.similarity, s.bm25'
        " from embed.search(null::article, %s{}) s"
    )
    first, *_ = article.execute(search.format("").encode(), ["부산 E-119"]).fetchall()
    assert first[0] == 2
    assert first[1] == first[2] == pytest.approx(1, abs=1e-6)
    assert first[3] is None
    with pytest.raises(psycopg.Error, match=r"lexical is 0.5, but .* words => false") as refused:
        article.execute(search.format(", lexical => 0.5").encode(), ["부산 E-119"])
    assert refused.value.sqlstate == "EW003"
    assert article.execute(search.format(", lexical => 0").encode(), ["부산 E-119"]).fetchall()


def test_without_a_worker_there_are_no_words_to_answer_by(
    article: Connection, vectors: VectorWriter, testing_database: str
) -> None:
    article.execute(ENABLE, [False])
    vectors.embed("article")
    with Client(testing_database) as client, pytest.raises(NoWorker):
        client.search("article", "a question that nobody has asked")


def test_the_index_over_words_goes(
    article: Connection, vectors: VectorWriter, testing_database: str
) -> None:
    article.execute("insert into article select i, '글 ' || i from generate_series(10, 50) i")
    article.execute(ENABLE, [True])
    vectors.embed("article")
    source = source_of(article, "article")

    def gin() -> int:
        for _ in range(2):  # first the index over the vectors, then that over the words
            indexer = Indexer(testing_database, after_rows=1, memory=1 << 26, words_after_rows=1)
            indexer.run_if_due(article, source)
            indexer.wait()
        row = article.execute(
            "select count(*) from pg_indexes"
            " where tablename = 'article_embedding' and indexdef ~ 'gin'"
        ).fetchone()
        assert row is not None
        return int(row[0])

    assert gin() == 1
    article.execute(ENABLE, [False])
    assert gin() == 0
    article.execute(ENABLE, [True])
    assert gin() == 1
