"""A row that the server refuses fails alone, a table only when it refuses every row."""

import logging
from dataclasses import replace

import pytest
from fix_drain import Connection, Drain, Lane, assert_current, source_of
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, claim, move, read
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.lease import deregister, register

LONGEST = 60.0  # seconds on a machine that does much else
# Random, so that it cannot be compressed: it fits an index of its own, and none beside the chunk.
LONG_KEY = (
    "(select string_agg(md5(n::text || random()), '') from generate_series(1, 100) n) x (key)"
)
REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin
    if new.id {} then
        raise exception 'it is frozen' using errcode = '{}';
    end if;
    return new;
end $$;
create trigger refuse before update on article for each row execute function refuse();
"""


def failures(app: Connection) -> list[tuple[object, str]]:
    return app.execute(
        "select key, error from embed.failure where source::text = 'article' order by key"
    ).fetchall()


def embedded(app: Connection) -> list[int]:
    rows = app.execute("select id from article where embedding is not null order by id")
    return [row[0] for row in rows]


def test_a_key_that_does_not_fit_beside_the_chunk(app: Connection, drain: Drain) -> None:
    app.execute("create table article (url text primary key, body text)")
    app.execute("insert into article select 'page' || n, 'text ' || n from generate_series(1, 8) n")
    app.execute(
        f"insert into article select substr(x.key, 1, 2690), 'long' from {LONG_KEY}".encode()
    )
    app.execute("select embed.enable('article', array['body'])")
    assert drain() == []
    assert app.execute("select count(*) from article_embedding").fetchone() == (8,)
    ((_, error),) = failures(app)
    assert "index row size" in error


@pytest.mark.parametrize("state", ["PT403", "42501", "P0001", "23514", "22023", "0A000", "54000"])
def test_a_trigger_that_refuses_one_of_eight(app: Connection, drain: Drain, state: str) -> None:
    """Whatever SQLSTATE it chose. Later, the row's old vector may not be taken out either."""
    app.execute("create table article (id integer primary key, body text, embedding vector(384))")
    app.execute("insert into article select n, 'text ' || n from generate_series(1, 8) n")
    app.execute("select embed.enable('article', array['body'], into_column => 'embedding')")
    app.execute("begin;" + REFUSE.format("= 3", state) + "commit")
    assert drain() == []
    assert embedded(app) == [1, 2, 4, 5, 6, 7, 8]
    assert [(key, "it is frozen" in error) for key, error in failures(app)] == [({"id": 3}, True)]
    app.execute("drop trigger refuse on article; select embed.retry('article')")
    app.execute("update article set body = body || ' anew'")
    assert drain() == []
    assert len(assert_current(app, "article")) == 8
    app.execute("update article set body = 'changed'")
    app.execute(
        "create trigger refuse before update on article for each row execute function refuse()"
    )
    assert drain() == []
    assert [key for key, _ in failures(app)] == [{"id": 3}]
    app.execute("alter table article disable trigger refuse")
    app.execute("update article set body = 'changed' || '!' where id = 3")
    assert drain() == []
    assert len(assert_current(app, "article")) == 8


def test_rows_of_one_length_that_are_all_refused(app: Connection, lane: Lane) -> None:
    """They fill a batch, as after a table's own fault; the others must not wait behind them."""
    app.execute("create table article (id integer primary key, body text, embedding vector(384))")
    app.execute("insert into article select n, repeat('long ', 90) from generate_series(1, 20) n")
    app.execute("insert into article select n, 'short' from generate_series(21, 60) n")
    app.execute("select embed.enable('article', array['body'], into_column => 'embedding')")
    app.execute(REFUSE.format("<= 20", "PT403"))
    wait_until(lambda: not lane.lane.step() and len(embedded(app)) == 40, LONGEST)
    wait_until(lambda: not lane.lane.step() and len(failures(app)) == 20, LONGEST)
    assert lane.registry.stopped() == {}


def test_a_row_that_cannot_be_read(
    app: Connection, drain: Drain, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    app.execute("create table article (id integer primary key, weight integer, body text)")
    app.execute("insert into article select n, 1, 'text ' || n from generate_series(1, 8) n")
    app.execute("select embed.enable('article', array['body'], filter => '1 / weight = 1')")
    assert drain() == []
    app.execute("update article set body = 'changed', weight = id - 3 where id in (3, 4)")
    app.execute("insert into article values (9, 1, 'new')")
    assert drain() == []
    assert [key for key, _ in failures(app)] == [{"id": 3}]
    found = app.execute("select id from article_embedding order by id").fetchall()
    assert [key for (key,) in found] == [1, 2, 4, 5, 6, 7, 8, 9]
    app.execute("update article set weight = 1 where id = 3")
    assert drain() == []
    assert len(assert_current(app, "article")) == 9


def test_a_table_that_refuses_every_row_is_at_fault_itself(app: Connection, lane: Lane) -> None:
    """None of its rows counts as tried, and all are embedded once the cause is gone."""
    app.execute("create table article (id integer primary key, body text)")
    app.execute("insert into article select n, 'text ' || n from generate_series(1, 8) n")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("alter table article_embedding add column more integer not null")
    wait_until(lambda: not lane.lane.step() and lane.registry.stopped(), LONGEST)
    assert failures(app) == []
    source = source_of(app, "article")
    tried = f"select coalesce(max(attempts), 0) from embed.queue_{source.id}"
    assert app.execute(tried.encode()).fetchone() == (0,)
    app.execute("alter table article_embedding drop column more")
    wait_until(lambda: lane.drain() == [], LONGEST)
    assert len(assert_current(app, "article")) == 8


def test_a_row_that_is_held_twice(
    app: Connection, drain: Drain, shared_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By some plans the server refuses all then; each is written once, and the log says so."""
    caplog.set_level(logging.ERROR, logger="embedworker.queue")
    app.execute("create table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("insert into article select n, 'text ' || n from generate_series(1, 3) n")
    assert drain() == []
    app.execute("update article set body = body || '!'")
    source = source_of(app, "article")
    assert source.fingerprint is not None
    with connect(shared_database) as connection:
        connection.prepare_threshold = None
        worker = register(connection, lanes=["passages"])
        move(connection, source)
        jobs, _ = claim(
            connection, source, worker=worker.id, quotas={FRESH: 10}, lease=60.0, max_attempts=5
        )
        read(connection, jobs, fingerprint=source.fingerprint)
        results = [
            Result(
                job, [EmbeddedPassage(0, len(job.text or ""), hash_vector(f"passage: {job.text}"))]
            )
            for job in [*jobs, replace(jobs[0])]
        ]
        count = complete(
            connection,
            results,
            worker=worker.id,
            fingerprint=source.fingerprint,
            average_length=1.0,
        )
        deregister(connection, worker.id)
    assert count == 3
    assert len(assert_current(app, "article")) == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert (
        said == f"source shop.article: 1 of 4 rows were held twice, at the numbers [{jobs[0].seq}]"
    )
