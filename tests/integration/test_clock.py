"""The server's clock was ahead for a while: what was written then does not wait for that time."""

import logging

import psycopg
import pytest
from fix_drain import Connection, Lane, assert_current, source_of

from embedworker.database.connect import connect
from embedworker.queue.claim import move
from embedworker.queue.lease import dead_workers, deregister, register
from embedworker.queue.sweep import due_sweeps
from embedworker.settings.worker import DEFAULT_LEASE

AHEAD = "interval '9 hours'"


@pytest.fixture
def article(app: Connection, lane: Lane) -> Connection:
    app.execute("create table article (id integer primary key, body text)")
    app.execute("insert into article values (0, 'zero')")
    app.execute("select embed.enable('article', array['body'])")
    assert lane.drain() == []
    return app


def queued_ahead(app: Connection, url: str) -> int:
    """Five changed rows, moved into the queue by that clock; one that failed and waits its turn."""
    app.execute("insert into article select n, 'text ' || n from generate_series(1, 6) n")
    source = source_of(app, "article")
    with connect(url) as connection:
        connection.prepare_threshold = None
        move(connection, source)
    app.execute(
        f"update embed.queue_{source.id} set due = now() + case k1 when 6 then interval '4 min'"
        f" else {AHEAD} end".encode()
    )
    return source.id


def embedded(app: Connection) -> list[int]:
    return [n for (n,) in app.execute("select id from article_embedding order by id").fetchall()]


def test_rows_are_due_for_a_worker_that_starts(
    article: Connection, shared_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="embedworker.passages")
    queued_ahead(article, shared_database)
    lane = Lane(shared_database)
    try:
        assert lane.drain() == []
    finally:
        lane.close()
    assert embedded(article) == [0, 1, 2, 3, 4, 5]
    assert [m for m in caplog.messages if "5 rows were put off for longer" in m]


def test_a_sweep_makes_them_due(article: Connection, lane: Lane, shared_database: str) -> None:
    number = queued_ahead(article, shared_database)
    lane.lane.returns.interval.due(number)  # that look has just been
    assert lane.drain() == []
    assert embedded(article) == [0]
    assert article.execute("select missing from embed.sweep('article')").fetchone() == (6,)
    assert lane.drain() == []
    assert embedded(article) == [0, 1, 2, 3, 4, 5]
    article.execute(f"update embed.queue_{number} set due = now()".encode())
    assert lane.drain() == []
    assert len(assert_current(article, "article")) == 7


def test_the_nightly_sweep_comes(article: Connection, shared_database: str) -> None:
    number = source_of(article, "article").id
    with connect(shared_database) as connection:
        assert number not in due_sweeps(connection, 86400.0)[0]
        article.execute(
            f"update embed.sweep_state set finished_at = now() + {AHEAD}"
            f" where source = {number}".encode()
        )
        assert number in due_sweeps(connection, 86400.0)[0]


def test_a_worker_behind_a_pooler_that_is_gone(app: Connection, shared_database: str) -> None:
    with connect(shared_database) as connection:
        gone, living = (register(connection, lanes=["passages"]) for _ in range(2))
        app.execute(
            f"update embed.worker_session set seen_at = now() + {AHEAD} where id = %s".encode(),
            [gone.id],
        )
        try:
            assert gone.id in dead_workers(connection, living.id, lease=DEFAULT_LEASE)[1]
            shown = "select id from embed.worker where id = any (%s)"
            assert app.execute(shown, [[gone.id, living.id]]).fetchall() == [(living.id,)]
        finally:
            deregister(connection, gone.id)
            deregister(connection, living.id)


def test_a_limit_of_questions_fills_again(app: Connection) -> None:
    """An empty bucket of that time is charged once, and counts from now on."""
    with app.transaction(force_rollback=True):
        app.execute("select embed.limit_questions(60)")
        charge = "select embed._charge_question(current_user::regrole)"
        app.execute(charge)
        app.execute(
            "update embed.question_allowance"
            f" set tokens = 1, at = clock_timestamp() + {AHEAD}".encode()
        )
        app.execute(charge)
        row = app.execute(
            "select tokens, at < clock_timestamp() from embed.question_allowance"
        ).fetchone()
        assert row == (0.0, True)
        with pytest.raises(psycopg.Error, match="may ask 60 questions a minute"):
            app.execute(charge)
