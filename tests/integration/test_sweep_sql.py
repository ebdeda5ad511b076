"""embed.sweep and embed.retry: what they count, what they ask for, and what they leave alone.

That a worker then repairs it is shown in test_sweep.py.
"""

import psycopg
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter
from psycopg import errors

FRESH = 0


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """The table article of six rows, embedded, of which the last has no text."""
    connection.execute(
        """
        create table article (id bigint primary key, title text);
        insert into article
        values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, 'five'), (6, null);
        select embed.enable('article', array['title']);
        """
    )
    vectors.embed("article")
    return connection


def sweep(connection: Connection, relation: str = "article") -> tuple[int, ...]:
    """Counts of missing, stale, orphaned, altered."""
    row = connection.execute("select * from embed.sweep(%s)", [relation]).fetchone()
    assert row is not None
    return tuple(row)


def asked(connection: Connection, relation: str = "article") -> bool:
    """Whether a sweep of the table is asked for."""
    row = connection.execute(
        "select count(*) > 0 from embed.sweep_request r join embed.source s on s.id = r.source"
        " where s.relation = %s::regclass",
        [relation],
    ).fetchone()
    return row == (True,)


def behind_the_triggers(connection: Connection, statement: str) -> None:
    """Change the table as a restore or logical replication does."""
    connection.execute("set session_replication_role = replica")
    connection.execute(statement.encode())
    connection.execute("set session_replication_role = origin")


def test_a_healthy_source_is_swept_too(article: Connection, vectors: VectorWriter) -> None:
    """A worker may have read a row before a change, and write what it read after this look."""
    assert not asked(article)
    assert sweep(article) == (0, 0, 0, 0)
    assert vectors.inbox("article") == []
    assert asked(article)


def test_what_it_asks_for_goes_with_its_transaction(article: Connection) -> None:
    """Its own changes count, though nobody else sees them; a rollback takes the request along."""
    with article.transaction(force_rollback=True):
        article.execute("update article_embedding set hash = 'x' where id = 1")
        assert sweep(article) == (0, 1, 0, 0)
        assert asked(article)
    assert not asked(article)


def test_what_the_triggers_did_not_see_is_found(article: Connection, vectors: VectorWriter) -> None:
    behind_the_triggers(
        article,
        """
        insert into article values (7, 'seven'), (8, '');
        update article set title = 'uno' where id = 1;
        update article set title = ' ' where id = 2;
        delete from article where id = 3;
        """,
    )
    article.execute(
        "update article_embedding set embedding = array_fill(1, array[384])::vector where id = 4"
    )
    assert vectors.inbox("article") == []
    assert sweep(article) == (1, 1, 2, 1)
    assert asked(article)


def test_what_waits_is_counted(article: Connection, vectors: VectorWriter) -> None:
    article.execute("delete from article_embedding where id in (1, 2)")
    vectors.enqueue("article", [1])
    assert sweep(article) == (2, 0, 0, 0)
    assert sweep(article) == (2, 0, 0, 0)
    assert vectors.inbox("article") == []


def test_vectors_of_another_model_are_stale(article: Connection, vectors: VectorWriter) -> None:
    vectors.activate("article", vectors.fingerprint("2"))
    assert sweep(article) == (0, 5, 0, 0)


def test_before_a_worker_has_come_no_model_is_wrong(article: Connection) -> None:
    article.execute("update embed.source_state set fingerprint = null")
    assert sweep(article) == (0, 0, 0, 0)


def test_a_dead_row_stays_dead(article: Connection, vectors: VectorWriter) -> None:
    vectors.forget("article", [1])
    vectors.enqueue("article", [1], due="infinity", error="poison")
    assert sweep(article) == (0, 0, 0, 0)


def test_a_dead_row_that_is_gone_is_an_orphan(article: Connection, vectors: VectorWriter) -> None:
    vectors.forget("article", [1])
    vectors.enqueue("article", [1], due="infinity", error="poison")
    behind_the_triggers(article, "delete from article where id = 1")
    assert sweep(article) == (0, 0, 1, 0)


def test_a_lost_passage_is_noticed(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article (id bigint primary key, title text);
        insert into article select n, 'one two three' from generate_series(1, 3) n;
        select embed.enable('article', array['title']);
        """
    )
    assert vectors.embed("article", words_a_passage=1) == 9
    assert sweep(connection) == (0, 0, 0, 0)
    connection.execute("delete from article_embedding where id = 2 and chunk = 1")
    connection.execute("delete from article_embedding where id = 3 and chunk = 2")
    connection.execute("update article_embedding set hash = 'x' where id = 1 and chunk = 2")
    assert sweep(connection) == (0, 1, 0, 2)


def test_vectors_in_a_column(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article (id int primary key, title text, v vector(384));
        insert into article values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, 'five');
        select embed.enable('article', array['title'], into_column => 'v');
        """
    )
    vectors.embed("article")
    assert sweep(connection) == (0, 0, 0, 0)
    connection.execute("update article set v = null where id = 1")
    connection.execute("update article set v = array_fill(1, array[384])::vector where id = 2")
    vectors.forget("article", [3])
    behind_the_triggers(connection, "delete from article where id = 4")
    assert sweep(connection) == (1, 0, 1, 2)


def test_names_keys_and_partitions(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create extension citext;
        create schema "Sel ect";
        create table "Sel ect"."order" ("User" uuid, "a""b" citext, "order" text,
            primary key ("User", "a""b")) partition by list ("a""b");
        create table "Sel ect".x partition of "Sel ect"."order" for values in ('x');
        create table "Sel ect".rest partition of "Sel ect"."order" default;
        insert into "Sel ect"."order" select gen_random_uuid(), k, 'text ' || k
        from unnest(array['x', 'y', 'Z']) k;
        select embed.enable('"Sel ect"."order"', array['order'], filter => '"a""b" <> ''nothing''');
        """
    )
    table = '"Sel ect"."order"'
    assert vectors.embed(table) == 3
    assert sweep(connection, table) == (0, 0, 0, 0)
    behind_the_triggers(
        connection,
        """
        update "Sel ect".x set "order" = 'changed';
        delete from "Sel ect".rest where "a""b" = 'y';
        """,
    )
    assert sweep(connection, table) == (0, 1, 1, 0)
    assert asked(connection, table)


def test_every_source_of_the_table_or_the_named_one(
    article: Connection, vectors: VectorWriter
) -> None:
    article.execute("alter table article add body text default 'body'")
    article.execute("select embed.enable('article', array['body'], name => 'bodies')")
    vectors.forget("article", [1])
    assert sweep(article) == (7, 0, 0, 0)
    for name, wanted in (("article", (1, 0, 0, 0)), ("bodies", (6, 0, 0, 0))):
        row = article.execute("select * from embed.sweep('article', %s)", [name]).fetchone()
        assert row == wanted


def test_retry_revives_the_dead_and_no_other(article: Connection, vectors: VectorWriter) -> None:
    vectors.enqueue("article", [1], due="infinity", error="poison")
    vectors.enqueue("article", [2], due="infinity", error="poison")
    vectors.enqueue("article", [3], error="busy")
    assert article.execute("select embed.retry('article')").fetchone() == (2,)
    assert vectors.inbox("article") == [(1, FRESH), (2, FRESH)]
    assert article.execute("select embed.retry('embed.document')").fetchone() == (0,)


@pytest.mark.parametrize("call", ["retry", "sweep"])
def test_workers_are_woken(article: Connection, vectors: VectorWriter, call: str) -> None:
    vectors.forget(
        "article",
        [
            1,
        ],
    )
    vectors.enqueue("article", [2], due="infinity", error="poison")
    article.execute("listen embed")
    article.execute(f"select * from embed.{call}('article')".encode())
    assert [n.channel for n in article.notifies(timeout=5, stop_after=1)] == ["embed"]


@pytest.mark.parametrize("call", ["retry", "sweep"])
@pytest.mark.parametrize(
    ("argument", "state"),
    [
        ("'other'", "EW002"),
        ("'article', 'titles'", "EW002"),
    ],
)
def test_errors_say_what_to_do(article: Connection, call: str, argument: str, state: str) -> None:
    article.execute("create table other (id int primary key, t text)")
    with pytest.raises(errors.DatabaseError, match="is not enabled") as caught:
        article.execute(f"select * from embed.{call}({argument})".encode())
    assert caught.value.diag.sqlstate == state
    assert caught.value.diag.message_hint


def test_a_dropped_column(article: Connection) -> None:
    article.execute("alter table article drop title")
    with pytest.raises(errors.DatabaseError, match="dropped") as caught:
        sweep(article)
    assert caught.value.diag.sqlstate == "EW004"


def test_no_lock_is_left_that_a_worker_needs(
    article: Connection, vectors: VectorWriter, database: str
) -> None:
    vectors.forget("article", [1])
    vectors.enqueue("article", [2], due="infinity", error="poison")
    source = vectors.source("article")["id"]
    with psycopg.connect(database) as worker, article.transaction():
        article.execute("select embed.retry('article')")
        article.execute("select * from embed.sweep('article')")
        worker.execute("set lock_timeout = '100ms'")
        worker.execute(f"delete from embed.queue_{source}".encode())
        worker.execute(f"delete from embed.inbox_{source}".encode())
        worker.execute("delete from article_embedding")
        worker.execute("delete from embed.sweep_request")
        worker.execute("update embed.source_state set error = 'x'")
