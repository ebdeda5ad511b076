"""What a DBA has set for others ends nothing of ours, and where it does, the setting is named."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_database import Connection
from fix_pgbouncer import PgBouncer
from psycopg import sql
from waiting import wait_until

from embedworker.cli.database import explained
from embedworker.database.connect import connect
from embedworker.database.migrate import migrate
from embedworker.database.timeouts import advice
from embedworker.errors import DatabaseError
from embedworker.service.doctor import examine
from embedworker.settings import load

DatabaseHas = Callable[[str, str], None]

LIMITS = (
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_in_transaction_session_timeout",
)
LONGER = "select pg_sleep(1.3)"
LIMIT = "1s"


@pytest.fixture
def impatient(app: Connection, database_has: DatabaseHas) -> None:
    """The database sets a second for everything."""
    for name in LIMITS:
        if app.execute("select current_setting(%s, true)", [name]).fetchone() != (None,):
            database_has(name, LIMIT)


def wait_waiting(app: Connection, application: str) -> None:
    """Wait until a session has waited for a lock for longer than the limits."""
    waits = (
        "select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
        " and query_start < clock_timestamp() - interval '1.3 s'"
    )
    wait_until(lambda: app.execute(waits, [application]).fetchone() is not None, 30, application)


@pytest.mark.usefixtures("impatient")
def test_migrate(app: Connection, shared_database: str) -> None:
    with psycopg.connect(shared_database) as other, ThreadPoolExecutor() as beside:
        for name in LIMITS:
            other.execute(sql.SQL("set {} = 0").format(sql.Identifier(name)))
        other.execute("select pg_advisory_xact_lock(1701667428, 3)")  # as another migrate
        migrated = beside.submit(migrate, shared_database)
        wait_until(
            lambda: (
                app.execute(
                    "select from pg_locks where locktype = 'advisory' and not granted"
                ).fetchone()
                is not None
            ),
            30,
            "a migrate that waits",
        )
        other.execute(LONGER)
        other.commit()
        assert migrated.result(60) == []


@pytest.mark.usefixtures("impatient")
def test_doctor(app: Connection, shared_database: str) -> None:
    with ThreadPoolExecutor() as beside, app.transaction():
        app.execute("lock table embed.source in access exclusive mode")
        looked = beside.submit(lambda: list(examine(shared_database, load())))
        with psycopg.connect(shared_database, autocommit=True) as watch:
            wait_waiting(watch, "embedworker doctor")
        app.execute("commit; begin")
        findings = looked.result(60)
    assert "embed.doctor()" not in [finding.check for finding in findings]
    assert "autovacuum" in [finding.check for finding in findings]


@pytest.mark.usefixtures("impatient")
def test_any_session_of_ours(app: Connection, shared_database: str) -> None:
    with connect(shared_database) as ours:
        ours.execute(LONGER)
        with ours.transaction():
            app.execute(LONGER)  # meanwhile it is idle
            ours.execute("select 1")
            ours.execute(LONGER)
    with connect(shared_database, patient=False) as of_an_application:
        assert of_an_application.execute("show statement_timeout").fetchone() == (LIMIT,)


@pytest.mark.usefixtures("impatient")
def test_behind_a_pooler(app: Connection, shared_database: str, pgbouncer: PgBouncer) -> None:
    with connect(pgbouncer.url(shared_database)) as ours:
        ours.execute(LONGER)
        with ours.transaction():
            app.execute(LONGER)
            ours.execute("select 1")
            ours.execute(LONGER)
    with psycopg.connect(pgbouncer.url(shared_database), prepare_threshold=None) as next_one:
        assert next_one.execute("show statement_timeout").fetchone() == (LIMIT,)


@pytest.mark.usefixtures("impatient")
def test_the_hint_names_setting_and_role_and_helps(app: Connection, shared_database: str) -> None:
    with connect(shared_database, patient=False) as ours:
        with pytest.raises(DatabaseError) as caught, explained(ours):
            ours.execute(LONGER)
        said = str(caught.value)
        assert "statement_timeout is 1s for the role postgres" in said
        app.execute(said[said.index("alter role") :].encode())
    try:
        with connect(shared_database, patient=False) as again:
            again.execute(LONGER)
            with pytest.raises(psycopg.errors.QueryCanceled) as cancelled:
                again.execute("select pg_cancel_backend(pg_backend_pid())")
            assert "run it again" in str(advice(again, cancelled.value))
    finally:
        app.execute(
            sql.SQL("alter role postgres in database {} reset all").format(
                sql.Identifier(app.info.dbname)
            )
        )
