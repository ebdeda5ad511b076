"""What a monitor is told of the queues, without anybody counting them through."""

from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Drain, source_of
from psycopg import sql
from waiting import wait_until

from embedworker.database.statements import statement


@pytest.fixture
def queue(app: Connection, drain: Drain) -> sql.Identifier:
    """The queue of a table of 3 rows that are embedded."""
    app.execute("create table article (id integer primary key, content text)")
    app.execute("insert into article select n, 'text ' || n from generate_series(1, 3) n")
    app.execute("select embed.enable('article', array['content'])")
    assert drain() == []
    return sql.Identifier("embed", f"queue_{source_of(app, 'article').id}")


def backlog(app: Connection) -> dict[str, Any]:
    with app.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        rows = cursor.execute(statement("observer_backlog")).fetchall()
    (row,) = (row for row in rows if row["relation"] == "shop.article")
    return {name: row[name] for name in ("waiting", "dead", "oldest", "due", "paused")}


@pytest.mark.usefixtures("queue")
def test_from_a_change_to_its_end(app: Connection, drain: Drain) -> None:
    idle = {"waiting": 0, "dead": 0, "oldest": None, "due": False, "paused": False}
    assert backlog(app) == idle
    app.execute("update article set content = 'another' where id < 3")
    seen = backlog(app)
    assert (seen["waiting"], seen["due"]) == (2, True)
    assert 0 <= seen["oldest"] < 60
    assert drain() == []
    assert backlog(app) == idle
    app.execute("select embed.pause('article')")
    assert backlog(app)["paused"]


def test_rows_that_wait_for_their_time_and_dead_ones(
    app: Connection, queue: sql.Identifier
) -> None:
    app.execute(
        sql.SQL(
            "insert into {} (k1, seq, due, priority, since) values"
            " (1, 1, now() + interval '1 min', 11, now() - interval '5 min'),"
            " (2, 2, 'infinity', 12, now() - interval '1 day')"
        ).format(queue)
    )
    seen = backlog(app)
    assert (seen["waiting"], seen["dead"], seen["due"]) == (1, 1, False)
    assert 300 <= seen["oldest"] < 400, "of the dead one nobody waits for anything"


def test_many_are_estimated(app: Connection, queue: sql.Identifier) -> None:
    app.execute(
        sql.SQL(
            "insert into {} (k1, seq, priority) select n, n, 20 from generate_series(1, 3000) n"
        ).format(queue)
    )
    app.execute("select pg_stat_force_next_flush()")
    waiting = "select waiting from embed._backlog(%s) where relation = 'shop.article'"
    assert app.execute(waiting, [10_000]).fetchone() == (3000,)
    # The server counts what others deleted before when their sessions say so.
    wait_until(
        lambda: app.execute(waiting, [100]).fetchone() == (3000,), what="an estimate of 3000"
    )


def test_a_queue_that_is_being_dropped_hides_no_other(
    app: Connection, queue: sql.Identifier, shared_database: str
) -> None:
    app.execute("create table note (id integer primary key, content text)")
    app.execute("select embed.enable('note', array['content'])")
    with psycopg.connect(shared_database) as other:
        other.execute(sql.SQL("lock table {} in access exclusive mode").format(queue))
        relations = [row[1] for row in app.execute(statement("observer_backlog")).fetchall()]
    assert "shop.note" in relations
    assert "shop.article" not in relations
