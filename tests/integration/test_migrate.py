"""Setting a database up: what is checked first, and what stays when it is done again or undone."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from fix_drain import Lane, assert_current, drain_url

from embedworker.database import migrate as migration
from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.database.migrate import downgrade, migrate
from embedworker.errors import DatabaseError, NotMigrated, UnsupportedServer
from embedworker.model.catalog import TESTING_MODEL
from embedworker.service.session import _enter


@pytest.mark.parametrize("version", ["0.4.4", "0.7.4"])
def test_an_old_pgvector_is_refused_before_anything_is_touched(
    bare_database: str, version: str
) -> None:
    """Without hnsw (before 0.5) or iterative scans (before 0.8); an index of the user's stays."""
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute(
            "create extension vector; create table note (v vector(3));"
            "create index mine on note using hnsw (v vector_cosine_ops)"
        )
        connection.execute(
            "update pg_extension set extversion = %s where extname = 'vector'", [version]
        )
        with pytest.raises(UnsupportedServer, match=f"{version} is too old; .* needs 0.8 or newer"):
            migrate(bare_database)
        row = connection.execute("select to_regclass('mine'), to_regnamespace('embed')").fetchone()
        assert row == ("mine", None)


def test_a_database_that_takes_no_writes_is_not_called_a_standby(bare_database: str) -> None:
    """The advice is followed: the same URL with the option that it names."""
    with psycopg.connect(bare_database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    with pytest.raises(UnsupportedServer, match=r"set by: database") as said:
        migrate(bare_database)
    migrate(bare_database + str(said.value).rpartition(": ")[2])


def state(connection: psycopg.Connection[Any]) -> list[Any]:
    """The user's own: the rows, and the vectors beside them with the time they were made at."""
    return connection.execute(
        "select a.id, a.body, v.embedded_at from article a join article_embedding v using (id)"
        " order by 1"
    ).fetchall()


def test_up_twice_down_and_up_again(two_phase: str) -> None:
    """Nothing of the application's changes on the way, and no vector is made a second time."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create table article (id integer primary key, body text);"
            "insert into article select n, 'text ' || n from generate_series(1, 5) n;"
            "select embed.enable('article', array['body'])"
        )
        assert drain_url(two_phase) == []
        before = state(connection)
        assert len(before) == 5
        migrate(two_phase, model=TESTING_MODEL)
        assert drain_url(two_phase) == []
        assert state(connection) == before
        downgrade(two_phase)
        assert connection.execute("select to_regnamespace('embed')").fetchone() == (None,)
        assert state(connection) == before
        connection.execute("update article set body = 'changed' where id = 1")  # no trigger left
        migrate(two_phase, model=TESTING_MODEL)
        connection.execute("select embed.enable('article', array['body'])")
        assert drain_url(two_phase) == []
        assert len(assert_current(connection, "article")) == 5
        assert [row for row in state(connection) if row in before] == before[1:]
        downgrade(two_phase)
        migrate(two_phase, model=TESTING_MODEL)


def test_down_that_cannot_take_all_takes_nothing(two_phase: str) -> None:
    """Half of it was neither a schema to migrate nor one to take out."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        set_up_loopback(connection)
        (login,) = connection.execute("select embed._loopback_role()").fetchone() or ("",)
        with psycopg.connect(two_phase) as other:
            other.execute("select * from embed.status")
            with pytest.raises(DatabaseError, match="nothing was changed") as refused:
                downgrade(two_phase)
            assert f"process {other.info.backend_pid} of the user postgres" in str(refused.value)
        assert connection.execute("select count(*) from embed.status").fetchone() == (1,)
        # Where dblink is open to everybody, anybody can do it.
        connection.execute(f"set role {login}; select lo_create(0); reset role".encode())
        downgrade(two_phase)
        can = "select rolcanlogin, rolpassword is null from pg_authid where rolname = %s"
        assert connection.execute(can, [login]).fetchone() == (False, True)
        assert connection.execute("select to_regnamespace('embed')").fetchone() == (None,)
        migrate(two_phase, model=TESTING_MODEL)
        connection.execute("select * from embed.status")
        downgrade(two_phase)
        connection.execute(f"drop owned by {login}; drop role {login}".encode())


def test_rows_and_tables_that_others_lock_are_not_waited_for(
    two_phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LOCK_TIMEOUTS", ("100ms", "100ms"))
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create table article (id integer primary key, body text);"
            "select embed.enable('article', array['body'])"
        )
        (trigger,) = connection.execute(
            "select format('drop trigger %I on article', tgname) from pg_trigger"
            " where tgrelid = 'article'::regclass and tgname like '%update%'"
        ).fetchone() or ("",)
        with psycopg.connect(two_phase) as other:
            other.execute("update embed.model set max_tokens = max_tokens")
            with pytest.raises(DatabaseError, match=r"process \d+ of .*; nothing was changed"):
                migrate(two_phase, model=TESTING_MODEL)
            other.rollback()
            connection.execute(trigger)
            other.execute("alter table article add column x integer")
            migrate(two_phase, model=TESTING_MODEL)  # leaves the table to a worker
        count = "select count(*) from pg_trigger where tgrelid = 'article'::regclass"
        assert connection.execute(count).fetchone() == (3,)
        assert migrate(two_phase, model=TESTING_MODEL) == []
        assert connection.execute(count).fetchone() == (4,)


def test_pgvector_that_was_moved_to_another_schema(two_phase: str) -> None:
    """Search and enable fail, the doctor says why, and migrate mends both under a live worker."""
    pgvector = "select state, detail, advice from embed.doctor() where \"check\" = 'pgvector'"
    search = (
        'select (s."row").id from embed.search(null::article,'
        " (select embedding from article_embedding where id = 3), k => 1) s"
    )
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create table article (id integer primary key, body text);"
            "create table note (id integer primary key, body text);"
            "insert into article select n, 'text ' || n from generate_series(1, 5) n;"
            "insert into note values (1, 'a note');"
            "select embed.enable('article', array['body'])"
        )
        with closing(Lane(two_phase)) as lane:
            assert lane.drain() == []
            for schema in ("Ext", "public", "ext"):
                connection.execute(
                    f'create schema if not exists "{schema}";'
                    f'alter extension vector set schema "{schema}"'.encode()
                )
                state, detail, advice = connection.execute(pgvector).fetchone() or ()
                assert state == "problem"
                assert f"in schema {schema}, and the functions of embed look for it in" in detail
                assert "Run embedworker migrate" in advice
                # PostgreSQL 15 meets a type first, 18 a function.
                undefined = (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedObject)
                with pytest.raises(undefined):
                    connection.execute(search.encode())
                migrate(two_phase)
                state = connection.execute(pgvector).fetchone()[0]
                assert state in ("ok", "warning")  # one older than 0.8.4 is warned of
                assert connection.execute(search.encode()).fetchall() == [(3,)]
                connection.execute("select embed.enable('note', array['body'])")
                connection.execute("update article set body = body || '!'")
                lane.a_minute_later()
                assert lane.drain() == []
                assert len(assert_current(connection, "article")) == 5
                assert len(assert_current(connection, "note")) == 1
                connection.execute("select * from embed.sweep('article')")
                connection.execute("select embed.disable('note', drop_vectors => true)")
            loopback = "select state from embed.doctor() where \"check\" = 'embed.query'"
            assert connection.execute(loopback).fetchone() == ("ok",)


def test_a_filter_that_was_stored_with_the_name_of_its_table_is_mended(two_phase: str) -> None:
    """PostgreSQL 15 wrote ``article."{3}"``, which no longer means anything after a rename."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create table article (id integer primary key, body text, live boolean);"
            "insert into article select n, 'text ' || n, n < 3 from generate_series(1, 5) n;"
            "select embed.enable('article', array['body'], filter => $$live and body <> 'x'$$)"
        )
        (stored,) = connection.execute("select filter from embed.source where id > 1").fetchone()
        connection.execute(
            "update embed.source set filter = replace(filter, '\"{', 'article.\"{') where id > 1;"
            "alter table article rename to story"
        )
        assert any("article" in trouble for trouble in drain_url(two_phase))
        migrate(two_phase, model=TESTING_MODEL)
        mended = connection.execute("select filter from embed.source where id > 1").fetchone()
        assert mended == (stored,)
        assert "article" not in stored
        assert drain_url(two_phase) == []
        assert len(assert_current(connection, "story")) == 2


@pytest.mark.parametrize("action", [migrate, downgrade])
def test_a_schema_of_somebody_else_is_left_alone(
    bare_database: str, action: Callable[[str], object]
) -> None:
    """Its tables may even have our names; the advice, followed, makes room for ours."""
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute(
            "create schema embed; create table embed.source (id integer, relation text);"
            "insert into embed.source values (1, 'mine')"
        )
        with pytest.raises(DatabaseError, match="was not made by embedworker") as refused:
            action(bare_database)
        assert connection.execute("select * from embed.source").fetchall() == [(1, "mine")]
        advice = "alter schema embed rename to another_name"
        assert str(refused.value).endswith(advice)
        connection.execute(advice)
        migrate(bare_database)
        assert connection.execute("select * from another_name.source").fetchall() == [(1, "mine")]
        downgrade(bare_database)
        downgrade(bare_database)  # nothing is left to take out


def test_an_empty_schema_that_an_administrator_made_is_used(bare_database: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("create schema embed")
        migrate(bare_database)
        assert connection.execute("select count(*) from embed.status").fetchone() == (1,)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("create view mine as select * from embed.status", "view mine"),
        ("create view mine as select embed.query('text') as vector", "view mine"),
        ("create table mine (id bigint references embed.document)", "constraint mine_id_fkey on"),
        ("create table mine (t text, h bytea default embed.text_hash('x'))", "default value for"),
        ("create function mine(embed.document) returns int return 1", "function mine(embed.docum"),
        ("create table embed.mine (id integer)", "table embed.mine"),
        ("create function embed.mine() returns int return 1", "function embed.mine()"),
    ],
)
def test_down_names_what_others_made_and_leaves_it(
    database: str, connection: psycopg.Connection[Any], made: str, named: str
) -> None:
    connection.execute(made.encode())
    with pytest.raises(DatabaseError, match="that embedworker did not make") as refused:
        downgrade(database)
    assert named in str(refused.value)
    connection.execute("select * from embed.status")
    kind = "view" if "view" in made else "function" if "function" in made else "table"
    connection.execute(f"drop {kind} {'embed.' if 'embed.mine' in made else ''}mine".encode())
    downgrade(database)
    assert connection.execute("select to_regnamespace('embed')").fetchone() == (None,)


def checked(connection: psycopg.Connection[Any], check: str) -> Any:
    row = connection.execute(
        'select state, detail, advice from embed.doctor() where "check" = %s', [check]
    ).fetchone()
    assert row is not None
    return row


def test_pgvector_that_was_dropped_with_its_schema(two_phase: str) -> None:
    """A worker says so before it takes a number; `migrate` and then its advice repair it."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create schema shop; create table shop.article (id integer primary key, body text);"
            "insert into shop.article select n, 'text ' || n from generate_series(1, 5) n;"
            "select embed.enable('shop.article', array['body'])"
        )
        assert drain_url(two_phase) == []
        connection.execute(
            "drop schema public cascade; create schema public; create extension vector"
        )
        state, detail, advice = checked(connection, "tables")
        assert state == "problem"
        assert detail.endswith("question.embedding, question_cache.embedding")
        assert advice.startswith("Run embedworker migrate")
        with (
            connect(two_phase) as worker,
            pytest.raises(NotMigrated, match=r"question.embedding, .*; run `embedworker migrate`"),
        ):
            _enter(worker, "passages")
        assert connection.execute("select count(*) from embed.worker_session").fetchone() == (0,)
        assert migrate(two_phase) == []
        assert checked(connection, "tables")[0] == "ok"
        for sentence in drain_url(two_phase):
            # The words between "call" and "and enable it again".
            advice = sentence.partition("call ")[2].partition(" and ")[0]
            assert advice.startswith("embed.disable('"), sentence
            connection.execute(f"select {advice}".encode())
        connection.execute("select embed.enable('shop.article', array['body'])")
        connection.execute("select embed.enable('embed.document', array['title', 'content'])")
        assert drain_url(two_phase) == []
        assert len(assert_current(connection, "shop.article")) == 5


@pytest.mark.parametrize(
    ("done", "lost"),
    [
        ("alter table embed.source_state drop column structure", "source_state.structure"),
        ("drop table embed.document cascade", "document.content"),
        ("drop table embed.source cascade", "source.columns"),
    ],
)
def test_a_column_of_ours_that_is_gone(two_phase: str, done: str, lost: str) -> None:
    """`migrate` says which two commands help; after them nothing is embedded again."""
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute(
            "create table article (id integer primary key, body text);"
            "insert into article select n, 'text ' || n from generate_series(1, 5) n;"
            "select embed.enable('article', array['body'])"
        )
        assert drain_url(two_phase) == []
        before = state(connection)
        connection.execute(done.encode())
        with pytest.raises(
            DatabaseError,
            match=rf"{lost}.*Run `embedworker migrate --down`, then `embedworker migrate`",
        ):
            migrate(two_phase)
        downgrade(two_phase)
        migrate(two_phase, model=TESTING_MODEL)
        connection.execute("select embed.enable('article', array['body'])")
        assert drain_url(two_phase) == []
        assert state(connection) == before
