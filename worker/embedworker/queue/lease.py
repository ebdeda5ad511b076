"""Who holds which rows: leases, and the lock that shows a worker is alive."""

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from embedworker.database import revision
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.queue.source import Connection, Source

__all__ = [
    "Identity",
    "dead_workers",
    "deregister",
    "extend",
    "record_heartbeat",
    "register",
    "release_questions_of",
    "release_rows_of",
    "retire",
    "take_liveness_lock",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """What the list of workers shows of one. ``id`` is unique among all that ever ran."""

    id: int
    host: str
    pid: int
    lanes: tuple[str, ...]
    model: str | None
    process: int
    """of the ``embedworker run`` that it belongs to: that of its parent, where it has one"""

    def __str__(self) -> str:
        return f"{self.host}/{self.process} ({'+'.join(self.lanes)}, number {self.id})"


def register(
    connection: Connection,
    *,
    lanes: Sequence[str],
    model: str | None = None,
    process: int | None = None,
) -> Identity:
    """Register this process as a new worker, or as a lane of the worker ``process``."""
    host, pid = socket.gethostname(), os.getpid()
    process = process or pid
    (number,) = fetch_one(
        connection.execute(
            statement("worker_register"),
            {
                "host": host,
                "pid": pid,
                "process": process,
                "lanes": list(lanes),
                "model": model,
                "version": revision.known()[-1],
            },
        )
    )
    return Identity(int(number), host, pid, tuple(lanes), model, process)


def take_liveness_lock(connection: Connection, worker: Identity) -> bool:
    """Take, on a direct connection, the lock that shows the worker is alive, and say so.

    False when the server still holds it for a connection of ours that was lost; try again.
    """
    (had,) = fetch_one(connection.execute(statement("worker_lock"), {"worker": worker.id}))
    if not had:
        return False
    connection.execute(
        statement("worker_lock_held"),
        {
            "worker": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "process": worker.process,
            "lanes": list(worker.lanes),
            "model": worker.model,
            "version": revision.known()[-1],
            "backend": connection.info.backend_pid,
        },
    )
    return True


def record_heartbeat(
    connection: Connection,
    worker: Identity,
    *,
    embedded: int,
    rows_per_second: float,
    model: str | None,
    lock_held: bool,
) -> None:
    """Record that the worker lives, what it did, and whether it holds its liveness lock."""
    connection.execute(
        statement("worker_seen"),
        {
            "worker": worker.id,
            "host": worker.host,
            "pid": worker.pid,
            "process": worker.process,
            "lanes": list(worker.lanes),
            "embedded": embedded,
            "rows_per_second": rows_per_second,
            "model": model or worker.model,
            "version": revision.known()[-1],
            "lock_held": lock_held,
        },
    )


def deregister(connection: Connection, worker: int) -> None:
    """Strike a worker from the list."""
    connection.execute(statement("worker_leave"), {"worker": worker})


def dead_workers(connection: Connection, worker: int, *, lease: float) -> tuple[int, list[int]]:
    """Return how many other workers live, and the numbers of those that are gone."""
    rows = connection.execute(
        statement("worker_others"), {"worker": worker, "lease": lease}
    ).fetchall()
    gone = [int(number) for number, is_gone in rows if is_gone]
    return len(rows) - len(gone), gone


def release_rows_of(
    connection: Connection, sources: Iterable[Source], worker: int
) -> tuple[int, bool]:
    """Make the rows that a gone worker held due at once.

    Returns how many there were, and whether every queue could be looked at.
    """
    counts = [_in_queue(connection, source, "queue_free", worker=worker) for source in sources]
    return sum(count for count in counts if count is not None), None not in counts


def retire(connection: Connection, sources: Iterable[Source], worker: int) -> int | None:
    """Free all that a gone worker held, and strike it from the list.

    Returns how many rows it held. None: a queue could not be looked at, and the worker stays listed
    until another try.
    """
    release_questions_of(connection, worker)
    freed, whole = release_rows_of(connection, sources, worker)
    if not whole:
        return None
    deregister(connection, worker)
    return freed


def release_questions_of(connection: Connection, worker: int) -> None:
    """Let other workers answer at once what a gone worker was asked: its lease lasts as long as an
    asker waits.
    """
    connection.execute(statement("worker_free_questions"), {"worker": worker})


def extend(connection: Connection, sources: Iterable[Source], worker: int, lease: float) -> None:
    """Keep everything the worker holds for another ``lease`` seconds."""
    for source in sources:
        _in_queue(connection, source, "queue_extend", worker=worker, lease=lease)


def _in_queue(connection: Connection, source: Source, name: str, **values: Any) -> int | None:
    """Return the rows touched, None when an open transaction is about to drop the queue.

    That of one source must not keep the worker from the others.
    """
    if not source.key_types:
        return 0
    try:
        return connection.execute(source.render(name), values).rowcount
    except psycopg.errors.LockNotAvailable:
        return None
    except psycopg.errors.UndefinedTable:
        return 0
