"""The sweep repairs what triggers cannot see, page by page, and goes on where it stopped."""

import logging
from collections.abc import Callable, Iterator

import psycopg
import pytest
from fix_drain import (
    Connection,
    Drain,
    Lane,
    assert_current,
    captured,
    make_dead,
    source_of,
)
from waiting import wait_until

from embedworker import Worker
from embedworker.database.connect import connect
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, claim, move, read
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.lease import deregister, register
from embedworker.queue.sweep import Sweep
from embedworker.settings import load

TABLE = """
create table article (region text, id integer, body text, primary key (region, id));
insert into article select r, n, r || n from unnest(array['de', 'kr']) r, generate_series(1, 20) n;
select embed.enable('article', array['body']);
"""
LONGEST = 60.0  # seconds on a machine that does much else
LONG = " ".join(f"word{n}" for n in range(3000))  # three windows of the testing model


@pytest.fixture
def article(app: Connection, drain: Drain) -> Iterator[Connection]:
    app.execute(TABLE)
    assert drain() == []
    assert len(assert_current(app, "article")) == 40
    yield app
    app.execute("set session_replication_role = default")


def count(app: Connection, table: str) -> int:
    return int(app.execute(f"select count(*) from {table}".encode()).fetchone()[0])  # type: ignore[index]


def found(url: str, app: Connection, *, repair: bool, page: int = 7) -> tuple[int, int, int]:
    """Sweep in pages; return how many rows are missing, stale and orphaned."""
    source = source_of(app, "article")
    with connect(url) as connection:
        connection.prepare_threshold = None
        if repair:
            Sweep.begin(connection, source)
        sweep = Sweep(connection, source, source.fingerprint, repair=repair)
        pages = []
        while not sweep.done:
            pages.append(sweep.page(page))
    return tuple(sum(getattr(p, n) for p in pages) for n in ("missing", "stale", "orphaned"))


UNSEEN = "set session_replication_role = replica; {} ; set session_replication_role = default"
FAULTS = {
    "nothing": ("select 1", (0, 0, 0)),
    "insert": (
        UNSEEN.format("insert into article values ('fr', 1, 'new'), ('fr', 2, '')"),
        (1, 0, 0),
    ),
    "update": (UNSEEN.format("update article set body = 'unseen' where id = 3"), (0, 2, 0)),
    "update to blank": (UNSEEN.format("update article set body = ' ' where id = 3"), (0, 0, 2)),
    "delete": (UNSEEN.format("delete from article where id > 18"), (0, 0, 4)),
    "key change": (UNSEEN.format("update article set id = 100 where id = 1"), (2, 0, 2)),
    "truncate": (UNSEEN.format("truncate article"), (0, 0, 40)),
    "disabled triggers": (
        "alter table article disable trigger user; delete from article where id = 1;"
        " update article set body = 'x' where id = 2; insert into article values ('fr', 1, 'new');"
        " alter table article enable trigger user",
        (1, 2, 2),
    ),
    "vector changed": (
        "update article_embedding set embedding = (select embedding from article_embedding"
        " where id = 2 and region = 'de') where id = 1 and region = 'de'",
        (0, 1, 0),
    ),
    "vector deleted": ("delete from article_embedding where id = 1", (2, 0, 0)),
    "vectors deleted": ("truncate article_embedding", (40, 0, 0)),
    "other fingerprint": ("update article_embedding set fingerprint = -1 where id < 3", (0, 4, 0)),
    "hash changed": ("update article_embedding set hash = '\\x00' where id = 1", (0, 2, 0)),
    "vector of no row": (
        "update article_embedding set id = 1000 where id = 1",
        (2, 0, 2),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_finds_and_repairs(
    article: Connection, drain: Drain, shared_database: str, fault: str
) -> None:
    statement, expected = FAULTS[fault]
    article.execute(statement)
    assert captured(article, "article") == []
    assert found(shared_database, article, repair=False) == expected
    # Only counted: nothing is queued, and what was under way is kept.
    assert found(shared_database, article, repair=False, page=1000) == expected
    with article.transaction(force_rollback=True):
        missing, stale, orphaned, altered = (
            article.execute("select * from embed.sweep('article')").fetchone() or ()
        )
    assert (missing, stale + altered, orphaned) == expected, "embed.sweep() counts differently"
    assert found(shared_database, article, repair=True) == expected
    assert drain() == []
    assert_current(article, "article")
    assert found(shared_database, article, repair=False) == (0, 0, 0)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "nothing"])
def test_sql_function_has_it_repaired(article: Connection, drain: Drain, fault: str) -> None:
    article.execute(FAULTS[fault][0])
    article.execute("select embed.sweep('article')")
    assert drain() == []
    assert_current(article, "article")


def test_sql_function_fences_what_is_under_way(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    """A worker has read rows before changes that no trigger saw, and writes after the call."""
    article.execute("update article set body = 'read by a worker' where region = 'de' and id < 3")
    source = source_of(article, "article")
    with connect(shared_database) as connection:
        connection.prepare_threshold = None
        worker = register(connection, lanes=["passages"])
        move(connection, source)
        jobs, _ = claim(
            connection, source, worker=worker.id, quotas={FRESH: 10}, lease=60.0, max_attempts=5
        )
        assert len(jobs) == 2
        assert source.fingerprint is not None
        read(connection, jobs, fingerprint=source.fingerprint)
        # The first one's vector is right again as it stands; the second one's is an orphan.
        article.execute(
            UNSEEN.format(
                "update article set body = 'de1' where region = 'de' and id = 1;"
                " delete from article where region = 'de' and id = 2"
            )
        )
        assert article.execute("select * from embed.sweep('article')").fetchone() == (0, 0, 1, 0)
        results = [
            Result(
                job, [EmbeddedPassage(0, len(job.text or ""), hash_vector(f"passage: {job.text}"))]
            )
            for job in jobs
        ]
        complete(
            connection,
            results,
            worker=worker.id,
            fingerprint=source.fingerprint,
            average_length=1.0,
        )
        deregister(connection, worker.id)
    assert drain() == []
    assert len(assert_current(article, "article")) == 39


@pytest.mark.parametrize(
    "fault",
    [
        "delete from {} where id = 1 and chunk = 0",
        "delete from {} where chunk = 1",
        "delete from {} where chunk = (select max(chunk) from {})",
        "update {} v set embedding = w.embedding from {} w where w.id = 2 and v.chunk = 1",
        "update {} set hash = '\\x00' where chunk = 1",
        "update {} set fingerprint = -1 where chunk = 1",
    ],
)
def test_every_passage_counts(
    app: Connection, drain: Drain, shared_database: str, fault: str
) -> None:
    app.execute("create table article (id integer primary key, body text)")
    app.execute("insert into article values (1, %s), (2, 'short')", [LONG])
    app.execute("select embed.enable('article', array['body'])")
    assert drain() == []
    assert_current(app, "article")
    assert app.execute("select count(*) > 3 from article_embedding").fetchone() == (True,)
    assert found(shared_database, app, repair=False) == (0, 0, 0)
    app.execute(fault.replace("{}", "article_embedding"))
    missing, stale, orphaned, altered = (
        app.execute("select * from embed.sweep('article')").fetchone() or ()
    )
    assert (missing, stale + altered, orphaned) == (0, 1, 0)
    assert found(shared_database, app, repair=True) == (0, 1, 0)
    assert drain() == []
    assert_current(app, "article")
    assert found(shared_database, app, repair=False) == (0, 0, 0)


def test_vector_in_a_column(app: Connection, drain: Drain, shared_database: str) -> None:
    app.execute(
        """
        create table article (id integer primary key, body text, embedding vector(384));
        insert into article (id, body) select n, 'text ' || n from generate_series(1, 10) n;
        select embed.enable('article', array['body'], into_column => 'embedding');
        """
    )
    assert drain() == []
    app.execute("update article set embedding = null where id = 1")
    app.execute(
        "update article set embedding = (select embedding from article where id = 3) where id = 2"
    )
    assert found(shared_database, app, repair=True) == (0, 2, 0)
    assert drain() == []
    assert_current(app, "article")


def test_dead_letters_stay_and_go_with_their_row(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    article.execute("update article set body = 'x <<fail>>' where id = 1")
    assert drain() == []
    assert make_dead(article, "article") == 2
    assert found(shared_database, article, repair=True) == (0, 0, 0)
    assert drain() == []
    failed = "select count(*) from embed.failure where source = 'article'::regclass"
    assert article.execute(failed).fetchone() == (2,)
    article.execute(UNSEEN.format("delete from article where id = 1"))
    assert found(shared_database, article, repair=True) == (0, 0, 2)
    assert drain() == []
    assert article.execute(failed).fetchone() == (0,)
    assert_current(article, "article")


def test_resumes_where_it_stopped(article: Connection, lane: Lane, shared_database: str) -> None:
    """A worker that is killed in the middle leaves its place; the next one goes on from there."""
    article.execute(UNSEEN.format("update article set body = body || '!'"))
    source = source_of(article, "article")
    with connect(shared_database) as connection:
        Sweep.begin(connection, source)
        sweep = Sweep(connection, source, source.fingerprint)
        for _ in range(3):
            assert sweep.page(5).queued == 5
    state = "select phase, cursor, visited, stale from embed.sweep_state where source = %s"
    assert article.execute(state, [source.id]).fetchone() == ("rows", ["de", "15"], 15, 15)
    with connect(shared_database) as connection:
        again = Sweep(connection, source, source.fingerprint)
        assert again.page(5).visited == 5
    assert article.execute(state, [source.id]).fetchone() == ("rows", ["de", "20"], 20, 20)
    assert lane.drain() == []
    assert_current(article, "article")
    row = article.execute(state, [source.id]).fetchone()
    assert row is not None
    assert row[0] == "done"
    assert row[3] == 40, "begun anew, or left off"


def test_request_while_sweeping_starts_over(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    source = source_of(article, "article")
    with connect(shared_database) as connection:
        Sweep.begin(connection, source)
        Sweep(connection, source, source.fingerprint).page(30)
    article.execute(UNSEEN.format("update article set body = 'behind its back' where id = 1"))
    article.execute(
        "insert into embed.sweep_request (source, reason) values (%s, 'test')", [source.id]
    )
    assert drain() == []
    assert_current(article, "article")


def test_one_that_fails_holds_no_row_up_and_is_said_once(
    app: Connection, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows go on being embedded meanwhile, which is no sign that the sweep works again."""
    caplog.set_level(logging.INFO, logger="embedworker.sources")
    app.execute("create table article (id integer primary key, body text)")
    app.execute("insert into article values (0, 'zero')")
    app.execute("select embed.enable('article', array['body'])")
    number = source_of(app, "article").id
    app.execute(
        "create function shop.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'no sweep now' using errcode = '22012'; end $$;"
        " create trigger refuse before update on embed.sweep_state for each row"
        f" when (new.source = {number}) execute function shop.refuse()"
    )

    def said() -> list[str]:
        return [m for m in caplog.messages if "trying again" in m or "works again" in m]

    def steps_until(condition: Callable[[], bool]) -> None:
        wait_until(lambda: not lane.lane.step() and condition(), LONGEST)

    steps_until(lambda: len(said()) == 1)
    for number in range(1, 9):
        app.execute("insert into article values (%s, 'new')", [number])
        steps_until(lambda n=number: count(app, "article_embedding") == n)  # type: ignore[misc]
    (trouble,) = said()
    assert "22012" in trouble or "no sweep now" in trouble
    assert lane.registry.stopped() == {}
    assert any("shop.article" in trouble for trouble in lane.registry.troubles())
    app.execute("drop trigger refuse on embed.sweep_state")
    steps_until(lambda: len(said()) == 2)
    assert said()[1] == "source shop.article: works again"
    assert lane.drain() == []
    assert len(assert_current(app, "article")) == 9


def test_a_row_that_cannot_be_judged_stops_no_other(app: Connection, lane: Lane) -> None:
    """Neither when the table is enabled, nor in a later sweep of rows or vectors."""
    app.execute("create table article (id integer primary key, weight integer, body text)")
    app.execute("insert into article select n, (n = 5)::int - 1, 'x' from generate_series(1, 9) n")
    app.execute("update article set weight = case when id = 5 then 0 else 1 end")
    app.execute("select embed.enable('article', array['body'], filter => '1 / weight = 1')")
    assert lane.drain() == []
    assert count(app, "article_embedding") == 8
    failed = "select key from embed.failure where source = 'article'::regclass"
    assert app.execute(failed).fetchall() == [({"id": 5},)]
    app.execute("update article set weight = 1 where id = 5")
    assert lane.drain() == []
    app.execute(UNSEEN.format("update article set weight = 0 where id = 7"))
    app.execute(UNSEEN.format("update article set body = 'y' where id = 2"))
    app.execute(UNSEEN.format("delete from article where id = 9"))
    counts = app.execute("select * from embed.sweep('article')").fetchone()
    assert counts == (None, None, None, None)
    assert lane.drain() == []
    assert app.execute(failed).fetchall() == [({"id": 7},)]
    app.execute("update article set weight = 1 where id = 7")
    assert lane.drain() == []
    assert len(assert_current(app, "article")) == 8


def test_row_under_way_is_queued_again(article: Connection, shared_database: str) -> None:
    """Claimed and read before a change that no trigger saw: its completion must not count."""
    source = source_of(article, "article")
    with connect(shared_database) as connection:
        Sweep.begin(connection, source)
        article.execute("update article set body = 'seen' where id = 1 and region = 'de'")
        article.execute(
            f"with m as (delete from embed.inbox_{source.id} returning k1, k2)"
            f" insert into embed.queue_{source.id} (k1, k2, seq, priority, claimed_by, due)"
            " select k1, k2, nextval('embed.seq'), 11, 4711, now() + interval '1 min' from m"
        )
        before = article.execute(f"select seq from embed.queue_{source.id}").fetchone()
        assert Sweep(connection, source, source.fingerprint).page().stale == 1
    row = article.execute(
        f"select seq, claimed_by, due <= now() from embed.queue_{source.id}"
    ).fetchone()
    assert before is not None
    assert row is not None
    assert row[0] > before[0]
    assert row[1:] == (None, True)


def test_backfill_does_not_stand_before_changes(article: Connection, shared_database: str) -> None:
    article.execute("truncate article_embedding")
    found(shared_database, article, repair=True)
    source = source_of(article, "article")
    assert article.execute(f"select distinct priority from embed.queue_{source.id}").fetchall() == [
        (20,)
    ]


PUBLISHED = """
create schema shop;
set search_path = shop, public;
create table article (id integer primary key, body text);
"""


@pytest.mark.slow
def test_subscriber_of_logical_replication(two_phase: str, app: Connection, drain: Drain) -> None:
    """Replication fires no ordinary trigger; the sweep brings the vectors up to date."""
    app.execute("create table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    with psycopg.connect(two_phase, autocommit=True) as publisher:
        publisher.execute(PUBLISHED)
        publisher.execute("insert into article values (1, 'one'), (2, 'two')")
        publisher.execute("create publication articles for table article")
        app.execute(f"create subscription articles connection '{two_phase}' publication articles")
        try:
            _await(app, "select count(*) = 2 from article")
            publisher.execute("insert into article values (3, 'three')")
            publisher.execute("update article set body = 'changed' where id = 1")
            publisher.execute("delete from article where id = 2")
            _await(app, "select count(*) = 2 and bool_or(body = 'changed') from article")
            drain()
            app.execute("select embed.sweep('article')")
            assert drain() == []
            assert assert_current(app, "article") == {("1",): "changed", ("3",): "three"}
            publisher.execute("truncate article")
            _await(app, "select count(*) = 0 from article")
            app.execute("select embed.sweep('article')")
            assert drain() == []
            assert assert_current(app, "article") == {}
        finally:
            app.execute("drop subscription articles")


def _await(app: Connection, question: str) -> None:
    wait_until(lambda: app.execute(question).fetchone() == (True,), 30, question)


def test_a_row_that_a_sweep_takes_from_the_model_is_no_suspect(
    hash_database: str, shop: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attempt is not counted: it looked as if a worker had died with it."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    # After enable: the first sweep finds them at the model.
    shop.execute("insert into article select n, 'text ' || n from generate_series(1, 30) n")
    assert Worker(hash_database, load(max_attempts=1), lanes=["passages"]).run_once() == []
    assert shop.execute("select error from embed.failure").fetchall() == []
    assert count(shop, "article_embedding") == 30
