"""An application never waits for a worker, nor fails because of one.

A worker holds every row of the table and hangs in its model, the worst it can do, while the
application changes those very rows.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_worker import Workers, failpoint, wait_claimed, wait_reached
from oracle import judge, queue_of, wait_settled
from psycopg import sql
from stress import deadlocks
from waiting import wait_until

OURS = "embedworker%"
OLD = 1.0  # seconds


@dataclass
class Watch:
    """What was seen, several hundred times a second, of waits and of old transactions."""

    blocked: list[Any] = field(default_factory=list)
    """application backends that waited for one of ours"""
    old: list[Any] = field(default_factory=list)
    """transactions of ours older than a second"""
    looks: int = 0


@contextmanager
def watched(url: str) -> Iterator[Watch]:
    seen, stopped = Watch(), threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True, application_name="watch") as connection:
            while not stopped.is_set():
                seen.blocked += connection.execute(
                    """
                    select a.query, b.application_name, b.query
                    from pg_stat_activity a
                    cross join lateral unnest(pg_blocking_pids(a.pid)) as blocker (pid)
                    join pg_stat_activity b on b.pid = blocker.pid
                    where a.application_name not like %s and a.backend_type = 'client backend'
                    and b.application_name like %s
                    """,
                    [OURS, OURS],
                ).fetchall()
                seen.old += connection.execute(
                    """
                    select application_name, state, query, now() - xact_start
                    from pg_stat_activity
                    where application_name like %s and xact_start < now() - %s * interval '1 s'
                    """,
                    [OURS, OLD],
                ).fetchall()
                seen.looks += 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join()


def articles(shop: Connection) -> None:
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("insert into article select n, '글 ' || n from generate_series(1, 100) n")
    shop.execute("select embed.enable('article', array['content'])")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_claimed_rows_can_be_changed(
    isolation: str, shop: Connection, workers: Workers, gate: Path
) -> None:
    articles(shop)
    with psycopg.connect(workers.url) as app:
        app.execute(f"set default_transaction_isolation = '{isolation}'".encode())
        app.execute("set lock_timeout = '500ms'")
        app.commit()
        app.execute("select count(*) from article").fetchone()  # a snapshot older than the claim
        workers.start(**failpoint("after-embed", gate))
        wait_reached(gate)
        wait_claimed(shop, "article", 100)
        with watched(workers.url) as seen:
            app.execute("update article set content = '새 글 ' || id where id <= 30")
            app.execute("delete from article where id > 90")
            app.execute("insert into article values (201, '더 새로운 글')")
            app.commit()
            for _ in range(20):  # and in transactions of their own, with the rows still claimed
                app.execute("update article set content = content || '.' where id <= 30")
                app.commit()
            gate.touch()
            wait_settled(shop, "article")
            for _ in range(20):  # and while the worker moves, claims and completes
                app.execute("update article set content = content || '!' where id <= 30")
                app.commit()
            wait_settled(shop, "article")
    assert seen.blocked == []
    assert seen.old == []
    assert seen.looks > 20
    assert deadlocks(shop) == 0
    verdict = judge(shop, "article")
    assert verdict.good, verdict
    assert verdict.rows == 91


def test_a_trigger_that_writes_the_queue_itself_would_fail(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    """Why there is an inbox: an upsert into the leased row is a conflict for REPEATABLE READ."""
    articles(shop)
    shop.execute(
        sql.SQL(
            """
            create function direct() returns trigger language plpgsql as $$
            begin
                insert into {queue} (k1, seq) values (new.id, nextval('embed.seq'))
                on conflict (k1) do update set seq = excluded.seq, due = now(), claimed_by = null;
                return null;
            end $$;
            create trigger direct after update on article for each row execute function direct();
            """
        ).format(queue=queue_of(shop, "article"))
    )
    with psycopg.connect(workers.url) as app:
        app.execute("set default_transaction_isolation = 'repeatable read'")
        app.commit()
        app.execute("select count(*) from article").fetchone()
        workers.start(**failpoint("after-embed", gate))
        wait_reached(gate)
        with pytest.raises(psycopg.errors.SerializationFailure):
            app.execute("update article set content = '새 글' where id = 1")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_vector_in_the_row_can_meet_an_update_of_the_application(
    isolation: str, shop: Connection, workers: Workers, gate: Path
) -> None:
    """With into_column the worker is one more writer of the row, and only when it writes."""
    shop.execute(
        """
        create table note (id integer primary key, content text, embedding vector(384));
        insert into note select n, '쪽지 ' || n from generate_series(1, 10) n;
        select embed.enable('note', array['content'], into_column => 'embedding')
        """
    )
    with psycopg.connect(workers.url) as app:
        app.execute(f"set default_transaction_isolation = '{isolation}'".encode())
        app.commit()
        app.execute("select count(*) from note").fetchone()
        workers.start(**failpoint("after-embed", gate))
        wait_reached(gate)
        # Claimed, read and embedded after our snapshot, but not written: no conflict.
        app.execute("update note set content = '새 쪽지' where id = 3")
        app.commit()
        app.execute("select count(*) from note").fetchone()
        gate.touch()
        written = "select embedding is not null from note where id = 1"
        wait_until(lambda: shop.execute(written).fetchone() == (True,))
        update = "update note set content = '다른 쪽지' where id = 1"
        if isolation == "read committed":
            app.execute(update)
        else:
            with pytest.raises(psycopg.errors.SerializationFailure):  # 40001
                app.execute(update)
            app.rollback()
            app.execute(update)  # tried again, as after any other writer
        app.commit()
        wait_settled(shop, "note")
        app.execute("update note set content = content || '.'")  # written before our snapshot
        app.commit()
    wait_settled(shop, "note")
    verdict = judge(shop, "note", into_column="embedding")
    assert verdict.good, verdict
    assert verdict.rows == 10
    assert deadlocks(shop) == 0


@pytest.mark.smoke
def test_an_open_application_transaction_does_not_stop_the_worker(
    shop: Connection, workers: Workers
) -> None:
    articles(shop)
    workers.start()
    wait_settled(shop, "article")
    with psycopg.connect(workers.url) as app, watched(workers.url) as seen:
        app.execute("update article set content = '아직 nicht' where id <= 50")
        shop.execute("update article set content = '이미' where id > 50")
        wait_settled(shop, "article")
        assert judge(shop, "article").good  # of what is committed
        app.commit()
        wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert seen.old == []
    assert seen.blocked == []


def test_an_administrator_who_drops_one_table_does_not_stop_the_others(
    shop: Connection, workers: Workers
) -> None:
    articles(shop)
    shop.execute("create table other (id integer primary key, content text)")
    shop.execute("select embed.enable('other', array['content'])")
    workers.start()
    wait_settled(shop, "article")
    with psycopg.connect(workers.url) as administrator:
        administrator.execute("select embed.disable('article', drop_vectors => true)")
        administrator.execute("alter table article add column more text")
        shop.execute("insert into other values (1, '다른 글')")
        wait_settled(shop, "other", timeout=15)
        assert judge(shop, "other").good
        administrator.rollback()
    shop.execute("update article set content = '끝' where id = 1")
    wait_settled(shop, "article")
    assert judge(shop, "article").good


@pytest.mark.slow
def test_inserts_are_as_quick_beside_a_hung_worker(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    articles(shop)

    def milliseconds(base: int) -> float:
        times = []
        for number in range(400):
            started = time.perf_counter()
            shop.execute("insert into article values (%s, '글')", [base + number])
            times.append(time.perf_counter() - started)
        return 1000 * median(times)

    milliseconds(1000)
    alone = milliseconds(2000)
    workers.start(**failpoint("after-embed", gate))
    wait_reached(gate)
    wait_claimed(shop, "article")
    beside = milliseconds(3000)
    assert beside < 1.5 * alone + 0.3, (alone, beside)
