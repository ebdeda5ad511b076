"""How often terms occur: when a worker counts, and what is there meanwhile and afterwards."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane, source_of
from fix_vectors import bigram_vector
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.model.lexical import FIRST, LENGTH, length
from embedworker.queue import rewriting, statistics
from embedworker.queue.statistics import State, count, load


@pytest.fixture
def article(testing_database: str) -> Iterator[Connection]:
    with connect(testing_database) as opened:
        opened.execute("create table article (id int primary key, body text)")
        opened.execute("select embed.enable('article', array['body'])")
        yield opened


@pytest.fixture
def lane(article: Connection, testing_database: str) -> Iterator[Lane]:
    with closing(Lane(testing_database)) as opened:
        opened.lane.statistics._pause = 0.0
        assert opened.drain() == []
        assert state(article).passages == 0
        yield opened


def insert(connection: Connection, *texts: str) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into article select coalesce(max(id), 0) + 1, %s from article",
            [[text] for text in texts],
        )


def state(connection: Connection) -> State:
    found = load(connection, source_of(connection, "article"))
    assert found is not None
    return found


def stored(connection: Connection) -> dict[int, float]:
    """Frequencies of the version in use, by term; fails when another is left."""
    number = source_of(connection, "article").id
    rows = connection.execute(
        "select version, term, frequency from embed.lexical_term where source = %s", [number]
    ).fetchall()
    assert {version for version, _, _ in rows} <= {state(connection).version}
    return {term: frequency for _, term, frequency in rows}


def true_frequencies(connection: Connection) -> dict[int, float]:
    vectors = connection.execute("select terms from article_embedding").fetchall()
    counts: Counter[int] = Counter()
    for (vector,) in vectors:
        counts.update(place + 1 for place in vector.indices() if place >= FIRST)
    return dict(counts)


def test_counted_once_the_rows_are_embedded(article: Connection, lane: Lane) -> None:
    texts = ["부산 바다", "서울역과 부산역", "바다"]
    insert(article, *texts)
    assert lane.drain() == []
    assert stored(article) == true_frequencies(article) != {}
    assert max(stored(article).values()) == 2
    assert state(article).passages == 3
    assert state(article).average_length == pytest.approx(sum(map(length, texts)) / 3)


def test_vectors_hold_lengths_in_relation_to_the_average(article: Connection, lane: Lane) -> None:
    insert(article, "가나 다라 마바", "가나 다라 마바 사아 자차")
    assert lane.drain() == []
    rows = article.execute("select terms from article_embedding order by id").fetchall()
    for (vector,), terms in zip(rows, (3, 5), strict=True):
        assert vector.values()[vector.indices().index(LENGTH)] == terms
        assert vector.values()[-1] == pytest.approx(2.2 / (1 + 1.2 * (0.25 + 0.75 * terms / 4)))


def test_counted_again_when_a_tenth_is_new(article: Connection, lane: Lane) -> None:
    insert(article, *["부산"] * 30)
    assert lane.drain() == []
    first = state(article)
    insert(article, "서울", "서울")
    assert lane.drain() == []
    assert state(article) == first
    insert(article, "서울")
    assert lane.drain() == []
    assert state(article).passages == 33
    assert sorted(stored(article).values()) == [3, 30]
    article.execute("delete from article where id > 10")
    assert lane.drain() == []
    assert state(article).passages == 10
    assert sorted(stored(article).values()) == [10]


def test_counted_after_a_sweep_however_little_is_new(article: Connection, lane: Lane) -> None:
    insert(article, *["부산"] * 30)
    assert lane.drain() == []
    article.execute("set session_replication_role = replica")
    insert(article, "서울")
    article.execute("set session_replication_role = origin")
    article.execute(
        "insert into embed.sweep_request (source, reason) select id, 'test' from embed.source"
    )
    assert lane.drain() == []
    assert sorted(stored(article).values()) == [1, 30]


def test_not_again_within_the_pause(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(article, "부산")
    assert lane.drain() == []
    first = state(article)
    monkeypatch.setattr(lane.lane.statistics, "_pause", 1000.0)
    insert(article, "서울")
    assert lane.drain() == []
    assert state(article) == first
    monkeypatch.setattr(lane.lane.statistics, "_pause", 0.0)
    assert lane.drain() == []
    assert state(article).passages == 2


def test_searches_use_the_old_version_until_the_new_one_is_whole(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(article, "부산 바다", "서울")
    assert lane.drain() == []
    before = state(article)
    insert(article, "대구 대전 광주 인천")
    monkeypatch.setattr(lane.lane.statistics, "_pause", 1000.0)
    assert lane.drain() == []
    monkeypatch.setattr(statistics, "ROWS", 1)
    source = source_of(article, "article")
    terms = list(true_frequencies(article))
    asked = [source.id, terms]
    counts = article.execute("select embed._term_counts(%s, %s)", asked).fetchone()
    steps = count(lane.connection, source)
    next(steps)
    seen = 0
    while state(article) == before:
        assert article.execute("select embed._term_counts(%s, %s)", asked).fetchone() == counts
        assert list(count(article, source)) == [], "one at a time"
        next(steps)
        seen += 1
    assert seen > len(terms)
    for _ in steps:
        assert article.execute("select embed._term_counts(%s, %s)", asked).fetchone() != counts
    assert stored(article) == true_frequencies(article)
    assert len(list(count(article, source))) > 1, "the lock was let go"


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_broken_off(article: Connection, lane: Lane, testing_database: str, how: str) -> None:
    insert(article, "부산 바다", "서울")
    assert lane.drain() == []
    before = state(article), stored(article)
    source = source_of(article, "article")
    with pytest.MonkeyPatch.context() as patch, connect(testing_database) as other:
        patch.setattr(statistics, "ROWS", 1)
        steps = count(other, source)
        for _ in range(4):
            next(steps)
        if how == "killed":
            article.execute("select pg_terminate_backend(%s)", [other.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                list(steps)
        else:
            steps.close()
            assert (state(article), stored(article)) == before
    assert state(article) == before[0]
    wait_until(lambda: list(count(article, source)))
    assert stored(article) == before[1]


def test_a_sample_of_a_large_table(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 150)
    monkeypatch.setattr(statistics, "PAGES", 2)
    insert(article, *[f"부산 {'짝' if i % 2 else '홀'}" for i in range(1000)])
    assert lane.drain() == []
    assert state(article).passages == pytest.approx(1000, rel=0.1)
    all_of_them, *halves = sorted(stored(article).values(), reverse=True)
    assert all_of_them == pytest.approx(state(article).passages)
    assert halves == pytest.approx([500, 500], rel=0.4)


def old_scheme(connection: Connection) -> None:
    """Make all vectors of terms as workers of version 0002 made them; no count knows of it yet."""
    rows = connection.execute("select id, body from article").fetchall()
    for number, text in rows:
        connection.execute(
            "update article_embedding set terms = %s where id = %s",
            [bigram_vector(text, 4), number],
        )


def terms_of(connection: Connection) -> dict[int, list[int]]:
    rows = connection.execute("select id, terms from article_embedding").fetchall()
    return {number: vector.indices() for number, vector in rows}


def test_terms_of_the_first_scheme_are_made_anew_without_the_model(
    article: Connection, lane: Lane
) -> None:
    insert(article, "부산 바다", "Boilers E-119", *[f"글 {i}" for i in range(200)])
    assert lane.drain() == []
    wanted, counted = terms_of(article), stored(article)
    unchanged = (
        "select id, embedding::text, embedded_at, seq, hash from article_embedding order by id"
    )
    before = article.execute(unchanged.encode()).fetchall()
    old_scheme(article)
    assert terms_of(article) != wanted
    lane.lane.statistics.ask(source_of(article, "article"))  # as a sweep does
    assert lane.drain() == []
    assert terms_of(article) == wanted
    assert stored(article) == counted
    assert state(article).scheme == 2
    assert article.execute(unchanged.encode()).fetchall() == before


def test_they_stay_while_a_worker_lives_that_makes_such(article: Connection, lane: Lane) -> None:
    insert(article, "부산 바다")
    assert lane.drain() == []
    wanted = terms_of(article)
    old_scheme(article)
    article.execute("update embed.worker_session set version = '0002'")
    lane.lane.statistics.ask(source_of(article, "article"))
    assert lane.drain() == []
    assert terms_of(article) != wanted
    assert state(article).scheme == 1
    article.execute("update embed.worker_session set version = '0003'")
    assert lane.drain() == []
    assert terms_of(article) == wanted


def test_a_passage_that_changed_meanwhile_is_not_made_anew(
    article: Connection, lane: Lane, testing_database: str
) -> None:
    """Its text is another than that of its vector: it waits in the queue."""
    insert(article, "부산 바다", "서울")
    assert lane.drain() == []
    old_scheme(article)
    old = terms_of(article)
    article.execute("update article set body = '대구' where id = 1")
    list(rewriting.rewrite(lane.connection, source_of(article, "article"), 100))
    assert terms_of(article)[1] == old[1]
    assert terms_of(article)[2] != old[2]
    with lane.connection.transaction(), connect(testing_database) as other:
        other.execute("set lock_timeout = '5s'")
        lane.connection.execute("select from article_embedding where id = 1 for update")
        article.execute("update article set body = '부산 바다' where id = 1")
        list(rewriting.rewrite(other, source_of(article, "article"), 100))
    assert terms_of(article)[1] == old[1], "it was locked, and nobody waited for it"
    assert lane.drain() == []
    assert state(article).scheme == 2


def test_a_source_that_goes_away_meanwhile(article: Connection, lane: Lane) -> None:
    insert(article, "부산")
    assert lane.drain() == []
    source = source_of(article, "article")
    steps = count(lane.connection, source)
    next(steps)
    next(steps)
    article.execute("select embed.disable('article', drop_vectors => true)")
    list(steps)  # its version is written, and then taken back
    assert article.execute(
        "select count(*) from embed.lexical_term where source = %s", [source.id]
    ).fetchone() == (0,)


def test_several_workers_and_a_writer_at_once(article: Connection, testing_database: str) -> None:
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with closing(Lane(testing_database)) as worker:
                worker.lane.statistics._pause = 0.0
                while not stop.is_set():
                    worker.drain()
                worker.drain()
                worker.lane.hand_back()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    seen: set[int] = set()
    try:

        def counted_meanwhile() -> bool:
            insert(article, *[f"부산 {len(seen)} 바다 {n}" for n in range(3)])
            found = load(article, source_of(article, "article"))
            seen.update([found.version] if found else [])
            return len(seen) > 3 or bool(errors)

        wait_until(counted_meanwhile, 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert len(seen) > 1
    with closing(Lane(testing_database)) as last:
        last.lane.statistics._pause = 0.0
        last.lane.statistics.ask(source_of(article, "article"))
        assert last.drain() == []
    assert stored(article) == true_frequencies(article)
    rows = article.execute("select count(*) from article").fetchone()
    assert rows == (state(article).passages,)


@pytest.mark.smoke
def test_a_worker_that_ends_leaves_nothing_half_done(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(article, "부산 바다", "서울")
    assert lane.drain() == []
    before = stored(article)
    monkeypatch.setattr(statistics, "ROWS", 1)
    lane.lane.statistics.ask(source_of(article, "article"))
    number = "select count(distinct version) from embed.lexical_term"
    wait_until(lambda: lane.lane.step() and article.execute(number).fetchone() == (2,))
    lane.lane.hand_back()
    assert stored(article) == before
    assert list(count(article, source_of(article, "article"))), "the lock was let go"
