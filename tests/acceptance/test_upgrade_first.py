"""A database of an older version is brought to this one: nothing is lost or embedded again."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_drain import Connection, assert_current, drain_url
from fix_worker import Workers
from oracle import wait_settled
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.migrate import migrate

MADE = """
select 'article', id::text, embedded_at::text from shop.article_embedding
union all select 'event', id::text, embedded_at::text from shop.event_embedding
union all select 'page', id::text, embedded_at::text from shop.page_embedding
union all select 'document', id::text, embedded_at::text from embed.document_embedding
union all select 'note', id::text, vec::text from shop.note where vec is not null
"""
CHANGED = {("article", "1"), ("article", "2")}  # one has another text, the other was deleted
DEAD = "select source::text, key::text, dead from embed.failure where dead"
FOLDER = Path(__file__).parents[1] / "upgrade"
CATALOG, SOURCES = ((FOLDER / f"{name}.sql").read_text() for name in ("catalog", "sources"))


def rows(connection: Connection, query: str) -> set[tuple[Any, ...]]:
    return set(connection.execute(query.encode()).fetchall())


def catalog(url: str, query: str = CATALOG) -> set[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set search_path = ''")
        found = connection.execute(query.encode()).fetchall()
    # The role of the loopback has the number of its database.
    return {tuple(re.sub(r"(loopback_)\d+", r"\1", str(value)) for value in row) for row in found}


@pytest.fixture
def upgraded(older_version: str) -> str:
    assert migrate(older_version) == []
    return older_version


def test_nothing_is_lost_or_embedded_again(older_version: str) -> None:
    """Rows that were claimed, waited or were dead, and a backfill in the middle of its table."""
    with psycopg.connect(older_version, autocommit=True) as connection:
        connection.execute("set search_path = shop, public")
        before, dead = rows(connection, MADE), rows(connection, DEAD)
        assert len(before) == 12
        assert len(dead) == 1
        waiting = "select count(*) from embed.sweep_state where phase = 'rows'"
        assert rows(connection, waiting) == {(1,)}
        assert migrate(older_version) == []
        assert rows(connection, MADE) == before
        assert rows(connection, DEAD) == dead
        assert drain_url(older_version) == []
        after = rows(connection, MADE)
        assert {row for row in before if row[:2] not in CHANGED} <= after
        assert rows(connection, DEAD) == dead
        counts = {
            table: len(assert_current(connection, table))
            for table in ("article", "event", "page", "embed.document")
        }
        assert counts == {"article": 5, "event": 1, "page": 9, "embed.document": 1}


def test_workers_take_it_up(upgraded: str, tmp_path: Path) -> None:
    """Real ones: the dead one's rows are freed, triggers and questions work."""
    workers = Workers(upgraded, tmp_path)
    with ExitStack() as stack:
        stack.callback(workers.end)
        connection = stack.enter_context(connect(upgraded))
        connection.execute("set search_path = shop, public")
        workers.start(both_lanes=True)
        connection.execute("insert into article values (8, 'eight', 'of the new version')")
        connection.execute("update event set body = 'fair' where id = 1")
        for table in ("article", "event", "page"):
            wait_settled(connection, table)
            assert_current(connection, table)
        assert connection.execute("select embed.query('글') is null").fetchone() == (False,)
        connection.execute("alter table note drop constraint refused")
        connection.execute("select embed.retry('note')")
        wait_until(lambda: not rows(connection, DEAD), what="the dead letter's second life")
        wait_settled(connection, "note")


def test_it_is_then_like_a_new_one(upgraded: str, bare_database: str) -> None:
    """Tables, functions, views, policies, grants and comments, to the letter."""
    migrate(bare_database)
    assert catalog(upgraded) ^ catalog(bare_database) == set()


def test_what_was_written_for_a_table_is_written_again(upgraded: str) -> None:
    """Its functions, triggers, policies and grants are those that a new `enable` makes."""
    before = catalog(upgraded, SOURCES)
    assert len(before) > 30
    with psycopg.connect(upgraded, autocommit=True) as connection:
        for vectors, number in rows(connection, "select vectors::text, id from embed.source"):
            connection.execute(
                f"drop function embed.source_{number}_refresh();"
                f"revoke select on {vectors} from public;"
                f"drop policy embed_source on {vectors};"
                f"drop policy embed_worker on {vectors}".encode()
            )
            assert connection.execute(
                f"select embed._refresh_source({number})".encode()
            ).fetchone() == ("same",)
    assert catalog(upgraded, SOURCES) == before


def test_again_changes_nothing_and_waits_for_nobody(upgraded: str) -> None:
    """Not even for a transaction that has read everything of ours and is left open."""
    before = catalog(upgraded), catalog(upgraded, SOURCES)
    with psycopg.connect(upgraded) as application:
        for (relation,) in rows(
            application,
            "select c.oid::regclass::text from pg_class c"
            " where c.relkind in ('r', 'v', 'p') and (c.relnamespace = 'embed'::regnamespace"
            " or c.relnamespace = 'shop'::regnamespace)",
        ):
            application.execute(f"select count(*) from {relation}".encode())
        application.execute("update embed.source set paused = false")
        assert migrate(upgraded) == []
    assert (catalog(upgraded), catalog(upgraded, SOURCES)) == before
