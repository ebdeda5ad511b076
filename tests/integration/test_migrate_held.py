"""``migrate`` while others hold what it needs, and in databases with a DBA's settings."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_database import Connection
from fix_drain import drain_url
from waiting import wait_until

from embedworker.database import migrate as migration
from embedworker.database.migrate import downgrade, migrate
from embedworker.errors import DatabaseError
from embedworker.model.catalog import TESTING_MODEL


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "LOCK_TIMEOUTS", ("200ms", "200ms"))
    monkeypatch.setattr(migration, "LOCK_TIMEOUT", 0.3)
    monkeypatch.setattr(migration, "TURN", "300ms")
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")


def test_a_ready_table_that_was_disabled_stays_so(bare_database: str) -> None:
    """It was enabled again, and migrate waited without end for whoever wrote to it."""
    migrate(bare_database, model=TESTING_MODEL)
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("select embed.disable('embed.document')")
        with psycopg.connect(bare_database) as other:
            other.execute("insert into embed.document (title, content) values ('a', 'b')")
            migrate(bare_database, model=TESTING_MODEL)
        assert connection.execute("select count(*) from embed.source").fetchone() == (0,)


def test_a_first_run_that_fails_is_made_up_for(
    bare_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves an empty schema, which is no reason to leave the ready table out."""
    with monkeypatch.context() as patch:
        patch.setattr(migration, "_seed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            migrate(bare_database, model=TESTING_MODEL)
    migrate(bare_database, model=TESTING_MODEL)
    with psycopg.connect(bare_database, autocommit=True) as connection:
        assert connection.execute("select name from embed.status").fetchall() == [("document",)]


def test_a_login_without_rights_is_named_and_not_waited_for(bare_database: str) -> None:
    migrate(bare_database, model=TESTING_MODEL)
    with (
        psycopg.connect(bare_database, autocommit=True) as other,
        psycopg.connect(bare_database) as reader,
    ):
        reader.execute("select * from embed.document")  # is in nobody's way
        other.execute("select pg_advisory_lock(1701667428, 3)")
        named = rf"that of process {other.info.backend_pid} of the user \S+\. End it"
        with pytest.raises(DatabaseError, match=named):
            migrate(bare_database, model=TESTING_MODEL)
        with pytest.raises(DatabaseError, match=named):
            downgrade(bare_database)
    assert migrate(bare_database, model=TESTING_MODEL) == []


def test_settings_of_the_database_that_are_changed_meanwhile(bare_database: str) -> None:
    with psycopg.connect(bare_database) as other:
        other.execute(f"alter database {other.info.dbname} set work_mem = '5MB'".encode())
        with pytest.raises(DatabaseError, match=r"End it .*, then run the command again"):
            migrate(bare_database, model=TESTING_MODEL)
        other.rollback()
    assert migrate(bare_database, model=TESTING_MODEL) == []


def test_a_reader_of_an_enabled_table_keeps_it_from_being_taken_out(bare_database: str) -> None:
    migrate(bare_database, model=TESTING_MODEL)
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute(
            "create table article (id int primary key, body text);"
            "select embed.enable('article', '{body}')"
        )
        for table in ("article", "article_embedding"):
            with psycopg.connect(bare_database) as other:
                other.execute(f"select from {table}".encode())
                with pytest.raises(DatabaseError, match=f"process {other.info.backend_pid} of the"):
                    downgrade(bare_database)
    downgrade(bare_database)


@pytest.mark.parametrize(
    ("asked", "table"),
    [
        ("select count(*) from embed.status", "source_state"),
        ("select count(*) from embed.status_exact()", "source_state"),
        ("select count(*) from embed.doctor()", "source_state"),
        ("select count(*) from embed.failure", "source"),
    ],
)
def test_what_looks_waits_for_our_own_tables(bare_database: str, asked: str, table: str) -> None:
    """A version that adds a column to them is a matter of a second, and no error."""
    migrate(bare_database, model=TESTING_MODEL)
    with (
        psycopg.connect(bare_database, autocommit=True) as connection,
        psycopg.connect(bare_database) as other,
        ThreadPoolExecutor() as threads,
    ):
        other.execute(f"lock table embed.{table} in access exclusive mode".encode())
        answer = threads.submit(_value, connection, asked)
        waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        pid = connection.info.backend_pid
        wait_until(lambda: other.execute(waits, [pid]).fetchone() == (True,))
        other.execute("select pg_sleep(0.3)")  # longer than it waits for a table
        other.rollback()
        assert answer.result() == _value(connection, asked)
        assert connection.execute("show lock_timeout").fetchone() == ("0",)


def _value(connection: Connection, asked: str) -> object:
    return connection.execute(asked.encode()).fetchone()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("quote_all_identifiers", "on"),
        ("plpgsql.extra_errors", "'all'"),
        ("plpgsql.extra_warnings", "'all'"),
        ("plpgsql.variable_conflict", "use_column"),
        ("plpgsql.variable_conflict", "use_variable"),
        ("transform_null_equals", "on"),
        ("default_transaction_isolation", "serializable"),
        ("bytea_output", "escape"),
        ("intervalstyle", "sql_standard"),
        ("datestyle", "german"),
        ("extra_float_digits", "-15"),
        ("default_transaction_deferrable", "on"),
        ("synchronous_commit", "off"),
        ("search_path", "pg_catalog"),
        ("check_function_bodies", "off"),
        ("row_security", "off"),
    ],
)
def test_a_setting_of_the_database(bare_database: str, setting: str, value: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("create extension vector")
        connection.execute(
            f"alter database {connection.info.dbname} set {setting} = {value}".encode()
        )
    assert migrate(bare_database, model=TESTING_MODEL) == []
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("create table public.article (id uuid primary key, body text)")
        connection.execute("select embed.enable('public.article', '{body}')")
        connection.execute("insert into public.article values (gen_random_uuid(), 'a text')")
        assert drain_url(bare_database) == []
        states = "select name, embedded, pending, error from embed.status where rows > 0"
        assert connection.execute(states).fetchall() == [("article", 1, 0, None)]
        similar = (
            'select (s."row").body from public.article a,'
            " embed.similar(null::public.article, a.id) s"
        )
        assert connection.execute(similar).fetchall() == []  # the row itself is left out
        problems = "select detail from embed.doctor() where state = 'problem'"
        found = [detail for (detail,) in connection.execute(problems)]
        assert not [d for d in found if "0 alive" not in d and "not loaded by any" not in d], found
    downgrade(bare_database)


def test_a_search_path_without_a_schema_is_said(bare_database: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set search_path = ''".encode())
        with pytest.raises(DatabaseError, match="create extension vector schema public"):
            migrate(bare_database, model=TESTING_MODEL)
        connection.execute("create extension vector schema public")
    assert migrate(bare_database, model=TESTING_MODEL) == []
