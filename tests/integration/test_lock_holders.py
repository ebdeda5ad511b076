"""A login without any right holds every advisory lock of ours: what must go on goes on."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from fix_drain import Connection, Lane, assert_current, source_of
from fix_roles import as_login, database_with_logins

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.statements import statement

CLASSES = [1701667428 + n for n in range(8)]
FINGERPRINT = {
    "digest": "made up",
    "model": "m",
    "revision": "1",
    "query_prefix": "",
    "passage_prefix": "",
    "pooling": "mean",
    "dimensions": 3,
    "max_tokens": 10,
    "notes": "{}",
}


@pytest.fixture(scope="module")
def url(server: Cluster, template: str) -> Iterator[str]:
    with database_with_logins(server, template, {"hoarder": None, "worker": "embed_worker"}) as url:
        yield url


@pytest.fixture
def article(url: str) -> Iterator[Connection]:
    with connect(url) as connection:
        connection.execute(
            "create table article (id int primary key, body text);"
            "select embed.enable('article', array['body'])"
        )
        yield connection
        connection.execute("drop table article; select embed._refresh(id) from embed.source")


@pytest.fixture
def hoarder(url: str, article: Connection) -> Iterator[Connection]:
    """Holds them all, with the numbers of sources and of workers to come."""
    number = source_of(article, "article").id
    with psycopg.connect(as_login(url, "hoarder"), autocommit=True) as connection:
        connection.execute(
            "select count(pg_advisory_lock(c, n)) from unnest(%s::int[]) c,"
            " generate_series(1, %s) n",
            [CLASSES, number + 100],
        )
        yield connection


@pytest.mark.usefixtures("hoarder")
def test_changes_are_captured_and_embedded(url: str, article: Connection) -> None:
    """The lock of the worker that moves a source's inbox was one that every login can take."""
    article.execute("set lock_timeout = '1ms'")
    article.execute("insert into article values (1, 'one'), (2, 'two')")
    article.execute("update article set body = 'changed' where id = 1")
    article.execute("delete from article where id = 2")
    with closing(Lane(url)) as lane:
        assert lane.drain() == []
    assert assert_current(article, "article") == {("1",): "changed"}


def test_a_dropped_table_stops_no_other(url: str, article: Connection) -> None:
    """Its source stays as long as a stranger holds the lock of embed.enable."""
    article.execute(
        "create table gone (id int primary key, body text);"
        "select embed.enable('gone', array['body'])"
    )
    with (
        closing(Lane(url)) as lane,
        psycopg.connect(as_login(url, "hoarder"), autocommit=True) as stranger,
    ):
        assert lane.drain() == []
        stranger.execute("select pg_advisory_lock(1701667428, 2)")
        article.execute("drop table gone; insert into article values (1, 'one')")
        lane.a_minute_later()
        lane.drain()
        assert assert_current(article, "article") == {("1",): "one"}
        stranger.execute("select pg_advisory_unlock_all()")
        lane.a_minute_later()
        assert lane.drain() == []
        assert article.execute("select from embed.source where name = 'gone'").fetchall() == []


def test_objects_that_are_dropped_with_their_owner_stop_no_other(
    url: str, article: Connection
) -> None:
    """DROP OWNED takes the table, its queue and the functions by which a worker would strike it."""
    article.execute(
        "create role keeper in role embed_admin; create schema kept authorization keeper;"
        "set role keeper; create table kept.gone (id int primary key, body text);"
        "select embed.enable('kept.gone', array['body']); reset role"
    )
    with closing(Lane(as_login(url, "worker"))) as lane:
        assert lane.drain() == []
        article.execute(
            "drop owned by keeper cascade; drop role keeper;insert into article values (1, 'one')"
        )
        lane.a_minute_later()
        lane.drain()
        assert assert_current(article, "article") == {("1",): "one"}
        (advice,) = article.execute(
            "select advice from embed.doctor() where state = 'problem' and \"check\" = 'table'"
        ).fetchone() or ("",)
        article.execute(f"select {advice[advice.index('embed.disable') :].rstrip('.')}".encode())
        lane.a_minute_later()
        assert lane.drain() == []


@pytest.mark.usefixtures("hoarder")
def test_workers_start(article: Connection) -> None:
    """They registered their models one after the other, by such a lock."""
    article.execute("set lock_timeout = '1ms'")
    first = article.execute(statement("fingerprint_register"), FINGERPRINT).fetchone()
    again = article.execute(
        statement("fingerprint_register"), FINGERPRINT | {"notes": '{"a": 1}'}
    ).fetchone()
    assert first == again
    kept = article.execute("select notes from embed.fingerprint where digest = 'made up'")
    assert kept.fetchall() == [({"a": 1},)]


def test_two_workers_register_a_model_at_once(url: str, article: Connection) -> None:
    del article
    with connect(url) as one, connect(url) as other, ThreadPoolExecutor() as threads:
        for digest in ("a", "b", "c", "d"):
            values = FINGERPRINT | {"digest": digest}
            found = [
                threads.submit(
                    lambda c, v: c.execute(statement("fingerprint_register"), v), c, values
                )
                for c in (one, other)
            ]
            assert found[0].result().fetchone() == found[1].result().fetchone()
