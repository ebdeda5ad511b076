"""A registered worker: its connection, and the threads that keep it alive and awake."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from embedworker.database import revision
from embedworker.database.connect import connect
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import DatabaseError, NotMigrated
from embedworker.queue.lease import Identity, deregister, register, retire
from embedworker.queue.source import Connection, load_sources
from embedworker.service.heartbeat import Heartbeat, Progress
from embedworker.service.listener import Listener
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.parent import main_process
from embedworker.settings import Settings

__all__ = ["Session", "session", "strike_failed"]

LOCK_TRIED = 5.0  # seconds; then rows are claimed without the lock, and leases have to do

_NOT_MIGRATED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidSchemaName,
)


@dataclass(frozen=True)
class Session:
    """What a lane works with until its connection is lost."""

    connection: Connection
    worker: Identity
    wake: threading.Event
    progress: Progress
    notified: threading.Event
    """Set while notifications arrive."""


@contextmanager
def session(
    url: str,
    settings: Settings,
    *,
    lane: str,
    channel: str,
    wake: threading.Event,
    others: Mapping[str, threading.Event],
    deaf: threading.Event,
    failed: list[int],
    telemetry: Telemetry | None = None,
    exit_when_hung: bool = True,
    listening: bool = True,
) -> Iterator[Session]:
    """Connect, register, listen and keep; undo all of it at the end.

    ``others`` are further channels to listen to, and what they wake. ``deaf`` outlives sessions:
    set once it was said that notifications do not arrive. ``failed`` holds the numbers of the
    lane's earlier sessions that failed: this one strikes them, and adds its own when it fails.
    Without ``listening`` there is no connection for notifications.

    Raises:
        ServerUnavailable: no connection could be made.
        NotMigrated: the schema ``embed`` is not there, or of another version.
        DatabaseError: this role may not write, or nobody may.
    """
    with connect(
        url,
        lock_timeout=settings.lock_timeout,
        application_name=f"embedworker {lane}",
        answer_timeout=settings.answer_timeout,
        all_rows=True,
        synchronous=False,
        writing=lane == "passages",
    ) as connection:
        me = _enter(connection, lane)
        # One name to each connection, by which it is known behind a pooler, too.
        connection.execute(
            statement("worker_name"), {"application_name": f"embedworker {lane} {me.id}"}
        )
        progress = Progress(telemetry)
        listener: Listener | None = None
        if listening:
            listener = Listener(
                settings.listen_url or url,
                me,
                {channel: wake, **others},
                named=settings.listen_url is not None,
                answer_timeout=settings.answer_timeout,
                deaf=deaf,
            )
        heartbeat = Heartbeat(
            url if listener else settings.listen_url or url,
            me,
            progress,
            lease=settings.lease,
            batch_timeout=settings.batch_timeout,
            answer_timeout=settings.answer_timeout,
            lock_held=None if listener is None else listener.holds_lock,
            wake=wake.set,
            exit_when_hung=exit_when_hung,
        )
        threads: list[Heartbeat | Listener] = [heartbeat]
        if listener is not None:
            threads = [listener, heartbeat]
        for thread in threads:
            thread.start()
        try:
            strike_failed(connection, failed)
            (listener or heartbeat).tried.wait(LOCK_TRIED)
            notified = listener.notified if listener else threading.Event()
            yield Session(connection, me, wake, progress, notified)
        except BaseException:
            # It stays listed until the next session, or the end: `migrate` must see that a worker
            # of this version is about to come back. A peer that sees its lock gone frees its rows.
            failed.append(me.id)
            for thread in reversed(threads):
                thread.stop()
            raise
        for thread in reversed(threads):
            thread.stop()
        with suppress(psycopg.Error):
            deregister(connection, me.id)


def strike_failed(connection: Connection, failed: list[int]) -> None:
    """Free the rows of sessions that failed, and strike them from the list of workers.

    Raises psycopg.Error, or DatabaseError when the extension vector is gone.
    """
    if not failed:
        return
    sources = load_sources(connection)
    for number in [*failed]:
        if retire(connection, sources, number) is not None:
            failed.remove(number)


def _enter(connection: Connection, lane: str) -> Identity:
    """Register, or say what stands in the way and what to do."""
    database, role = connection.info.dbname, connection.info.user
    try:
        version = revision.installed(connection)
        if revision.standing(version) == "older":
            raise NotMigrated(
                f"the schema of {database!r} has the version {version}, this worker needs "
                f"{revision.known()[-1]}; run `embedworker migrate`"
            )
        (lost,) = fetch_one(connection.execute(statement("worker_lost_columns")))
        if lost is not None:
            raise NotMigrated(
                f"tables of the schema embed in {database!r} lack columns that embedworker made "
                f"({lost}); run `embedworker migrate`, which repairs them or says how"
            )
        return register(connection, lanes=[lane], process=main_process())
    except _NOT_MIGRATED as error:
        raise NotMigrated(
            f"the database {database!r} is not set up for embedworker; run `embedworker migrate`"
        ) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        (replica,) = fetch_one(connection.execute(statement("worker_replica")))
        why = (
            "is a read-only replica; give the address of the primary, or wait for it to be promoted"
            if replica
            else "takes no writes (default_transaction_read_only is on)"
        )
        raise DatabaseError(f"the database {database!r} {why}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {role!r} may not work in {database!r}: {error.diag.message_primary}. Have a "
            f"superuser run: grant embed_worker to {sql.Identifier(role).as_string()}. If it is a "
            "member, run `embedworker migrate`, which grants that role its rights again"
        ) from error
