"""Setting a database up: what is checked first, and what stays when it is done again or undone."""

from contextlib import closing
from typing import Any

import psycopg
import pytest
from fix_drain import Lane, assert_current, drain_url

from worker.database.migrate import downgrade, migrate
from worker.errors import UnsupportedServer
from worker.model.catalog import TESTING_MODEL


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
                with pytest.raises(psycopg.errors.UndefinedFunction):
                    connection.execute(search.encode())
                migrate(two_phase)
                assert connection.execute(pgvector).fetchone()[0] == "ok"
                assert connection.execute(search.encode()).fetchall() == [(3,)]
                connection.execute("select embed.enable('note', array['body'])")
                connection.execute("update article set body = body || '!'")
                lane.a_minute_later()
                assert lane.drain() == []
                assert len(assert_current(connection, "article")) == 5
                assert len(assert_current(connection, "note")) == 1
                connection.execute("select * from embed.sweep('article')")
                connection.execute("select embed.disable('note', drop_vectors => true)")
            road = "select state from embed.doctor() where \"check\" = 'embed.query'"
            assert connection.execute(road).fetchone() == ("ok",)
