"""A registered worker: its connection, and the threads that keep it alive and awake."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg

from worker.database.connect import connect
from worker.errors import NotMigrated
from worker.queue.lease import Identity, enter, leave
from worker.queue.source import Connection
from worker.service.keeper import Keeper, Progress
from worker.service.listener import Listener
from worker.settings import Settings

__all__ = ["Session", "session"]

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
    listener: Listener


@contextmanager
def session(
    url: str,
    settings: Settings,
    *,
    lane: str,
    channel: str,
    wake: threading.Event,
    others: Mapping[str, threading.Event],
) -> Iterator[Session]:
    """Connect, register, listen and keep; undo all of it at the end.

    ``others`` are further channels to listen to, and what they wake.

    Raises:
        ServerUnavailable: no connection could be made.
        NotMigrated: the schema ``embed`` is not there, or of another version.
    """
    with connect(
        url, lock_timeout=settings.lock_timeout, application_name=f"embedworker {lane}"
    ) as connection:
        # Statements differ from source to source and take milliseconds; prepared ones break behind
        # transaction poolers.
        connection.prepare_threshold = None
        try:
            me = enter(connection, lanes=[lane])
        except _NOT_MIGRATED as error:
            raise NotMigrated(
                f"the database {connection.info.dbname!r} is not set up for embedworker; run "
                "`embedworker migrate`"
            ) from error
        progress = Progress()
        listener = Listener(settings.listen_url or url, me, {channel: wake, **others})
        keeper = Keeper(
            url,
            me,
            progress,
            lease=settings.lease,
            batch_timeout=settings.batch_timeout,
            wake=wake.set,
        )
        listener.start()
        keeper.start()
        try:
            yield Session(connection, me, wake, progress, listener)
        except BaseException:
            # Not struck from the list: rows that could not be handed back are still held in its
            # name, and whoever sees that its lock is gone frees them.
            keeper.stop()
            listener.stop()
            raise
        keeper.stop()
        listener.stop()
        with suppress(psycopg.Error):
            leave(connection, me.id)
