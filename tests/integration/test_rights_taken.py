"""Rights that somebody takes away from who enabled a table, or from the worker."""

from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import psycopg
import pytest
from fix_drain import Lane, assert_current
from fix_roles import as_login, database_with_logins
from waiting import wait_until

from embedworker.database.embedded.cluster import Cluster
from embedworker.queue.source import Connection

LOGINS = {"owner": "embed_admin", "worker": "embed_worker", "writer": None}
TABLES = """
create schema yard; grant usage on schema yard to public;
create table yard.one (id int primary key, body text);
create table yard.two (id int primary key, body text);
grant all on yard.one, yard.two to t_writer;
select embed.enable('yard.one', array['body']), embed.enable('yard.two', array['body']);
"""


class Yard(NamedTuple):
    """Two enabled tables of t_owner, whose rows are embedded, and a worker that goes on living."""

    url: str
    boss: Connection
    lane: Lane


@pytest.fixture
def yard(server: Cluster, template: str) -> Iterator[Yard]:
    with (
        database_with_logins(server, template, LOGINS) as url,
        psycopg.connect(url, autocommit=True) as boss,
        closing(Lane(as_login(url, "worker"))) as lane,
    ):
        boss.execute(f"grant create on database {boss.info.dbname} to t_owner".encode())
        with psycopg.connect(as_login(url, "owner"), autocommit=True) as owner:
            owner.execute(TABLES)
        put(boss, "first")
        assert lane.drain() == []
        yield Yard(url, boss, lane)


def put(connection: Connection, text: str) -> None:
    for table in ("one", "two"):
        connection.execute(
            f"insert into yard.{table} values (1, %s)"
            " on conflict (id) do update set body = excluded.body".encode(),
            [text],
        )


def _drained_at_last(lane: Lane) -> None:
    """Look again and again: a source in trouble is left alone for a while."""

    def drained() -> bool:
        lane.a_minute_later()
        return lane.drain() == []

    wait_until(drained, 90, "the next try")


@pytest.mark.parametrize("table", ["inbox", "queue"])
def test_a_queue_that_the_worker_may_not_read_stops_its_own_table_alone(
    yard: Yard, table: str
) -> None:
    """The look at all tables ended, and every table waited while the status said nothing."""
    _, boss, lane = yard
    row = boss.execute("select id from embed.source where name = 'one'").fetchone()
    assert row is not None
    boss.execute(f"revoke select on embed.{table}_{row[0]} from embed_worker".encode())
    put(boss, "second")
    (said,) = lane.drain()
    assert f"permission denied for table {table}_{row[0]}" in said
    assert_current(boss, "yard.two")
    states = boss.execute("select name, error from embed.status where name <> 'document'")
    assert {name: bool(error) for name, error in states} == {"one": True, "two": False}
    boss.execute(f"grant select on embed.{table}_{row[0]} to embed_worker".encode())
    _drained_at_last(lane)
    assert_current(boss, "yard.one")


def test_the_application_writes_on_after_the_enabler_lost_his_role(yard: Yard) -> None:
    """Its triggers run as him: TRUNCATE, and after a rename every write, failed."""
    url, boss, lane = yard
    boss.execute("revoke embed_admin from t_owner")
    with psycopg.connect(as_login(url, "writer"), autocommit=True) as writer:
        put(writer, "second")
        writer.execute("truncate yard.two")
        writer.execute("insert into yard.two values (2, 'after the truncate')")
        boss.execute("alter table yard.one rename body to content")
        writer.execute("update yard.one set content = 'renamed' where id = 1")
        writer.execute("insert into yard.one values (2, 'new')")
    lane.a_minute_later()
    said = lane.drain()
    assert said
    for sentence in said:
        assert "t_owner, who enabled yard." in sentence
        assert "is no member of embed_admin any more" in sentence
    statement = said[0].partition("as a superuser: ")[2].partition(";")[0]
    assert statement == "grant embed_admin to t_owner"
    boss.execute(statement.encode())
    _drained_at_last(lane)
    for table in ("one", "two"):
        assert_current(boss, f"yard.{table}")


def test_a_worker_that_runs_embeds_nothing_more_for_a_former_owner(yard: Yard) -> None:
    """It looks at the table's owner before it reads rows, not only once a minute."""
    _, boss, lane = yard
    boss.execute("alter table yard.one owner to t_writer")
    put(boss, "secret")
    (said,) = lane.drain()
    assert "yard.one belongs to t_writer, for whom t_owner, who enabled yard.one" in said
    assert_current(boss, "yard.two")
    seen = boss.execute("select hash from yard.one_embedding").fetchall()
    assert seen == boss.execute("select embed.text_hash('first')").fetchall()
