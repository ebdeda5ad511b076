"""Statements that are sent in one message: one transaction, each with a snapshot of its own."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.connection import Connection, pipelined

WAITS = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"


@pytest.fixture(params=["own session", "pooled"])
def lane(request: pytest.FixtureRequest, database: str) -> Iterator[Connection]:
    """A connection such as the lanes have; behind a pooler there is no pipeline."""
    with connect(database) as opened:
        opened.execute("create table item (id integer)")
        opened.pooled = request.param == "pooled"
        yield opened


def test_they_are_one_transaction(lane: Connection) -> None:
    number = "select pg_current_xact_id()::text"
    with pipelined(lane):
        first, second = lane.execute(number), lane.execute(number)
    third = lane.execute(number)
    assert first.fetchone() == second.fetchone() != third.fetchone()


def test_the_second_sees_what_was_committed_while_the_first_waited(
    lane: Connection, connection: psycopg.Connection[tuple[int]]
) -> None:
    """As a row that is read must be no older than the lock that was waited for."""
    found: list[tuple[int, ...] | None] = []

    def look() -> None:
        with pipelined(lane):
            lane.execute("select pg_advisory_xact_lock(7)")
            count = lane.execute("select count(*) from item")
        found.append(count.fetchone())

    connection.execute("select pg_advisory_lock(7)")
    thread = threading.Thread(target=look)
    thread.start()
    wait_until(lambda: connection.execute(WAITS).fetchone() == (True,))
    connection.execute("insert into item values (1)")
    connection.execute("select pg_advisory_unlock(7)")
    thread.join(10)
    assert found == [(1,)]


def test_the_first_error_is_raised_and_nothing_is_left(lane: Connection) -> None:
    def sent() -> None:
        with pipelined(lane):
            lane.execute("insert into item values (1)")
            lane.execute("select 1 / 0")
            lane.execute("select no_such_column from item")

    with pytest.raises(psycopg.errors.DivisionByZero):
        sent()
    assert lane.execute("select count(*) from item").fetchone() == (0,)
