"""Taking work: inbox to queue, a lease on due rows, their texts."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from embedworker.database.connection import pipelined
from embedworker.database.statements import statement
from embedworker.queue.cursor import FRESH, Cursor
from embedworker.queue.source import Connection, Source

__all__ = [
    "BACKFILL",
    "FRESH",
    "MOVE_LIMIT",
    "RETRIES",
    "Job",
    "Moved",
    "Polled",
    "claim",
    "fresh",
    "move",
    "poll",
    "read",
    "retries",
]

RETRIES = tuple(range(11, 20))  # 10 + attempts that were begun and did not end well
BACKFILL = 20  # found by a sweep

MOVE_LIMIT = 5000  # rows; 5,000 take about 50 ms, so no transaction of ours grows old


class Moved(NamedTuple):
    """How many inbox rows were moved and the place of the last of them (None: none)."""

    rows: int
    last: str | None


@dataclass(slots=True)
class Job:
    """A claimed row: its key as text, the version of it that was claimed, and then its text.

    ``text`` None: the row, or its text, is gone. ``current``: the vector is already of this text.
    """

    source: Source
    key: tuple[str, ...]
    seq: int
    attempts: int
    priority: int
    due: datetime
    text: str | None = None
    hash: bytes = b""
    current: bool = False


@dataclass(frozen=True, slots=True)
class Polled:
    """A source as one look finds it. ``work`` None: somebody holds its queue."""

    source: int
    version: int
    paused: bool
    work: bool | None
    sweep: bool
    at: datetime


def poll(connection: Connection, cursors: defaultdict[int, Cursor]) -> list[Polled]:
    """Look at every source, from its cursor; where nothing is due, that moves on."""
    after = {
        source: [cursor.place, {level: due.isoformat() for level, due in cursor.due.items()}]
        for source, cursor in cursors.items()
    }
    with connection.cursor(row_factory=class_row(Polled)) as look:
        rows = look.execute(statement("worker_poll"), {"after": Jsonb(after)}).fetchall()
    for row in rows:
        if row.work is False and not row.paused:
            cursors[row.source].nothing((FRESH, *RETRIES, BACKFILL), row.at)
    return rows


def fresh(
    connection: Connection, sources: Iterable[Source], cursors: defaultdict[int, Cursor]
) -> list[Source]:
    """Return those of the sources whose inbox has entries behind the cursor."""
    asked = {source.id: source for source in sources}
    places = [cursors[number].place for number in asked]
    found = connection.execute(
        statement("worker_fresh"), {"sources": list(asked), "places": places}
    ).fetchall()
    return [asked[number] for (number,) in found]


def move(
    connection: Connection,
    source: Source,
    *,
    cursor: Cursor | None = None,
    limit: int = MOVE_LIMIT,
) -> Moved:
    """Move up to ``limit`` rows from the inbox into the queue; the cursor moves on."""
    cursor = cursor or Cursor()
    started = time.monotonic()
    row = connection.execute(
        source.render("queue_move"), {"source": source.id, "after": cursor.place, "limit": limit}
    ).fetchone()
    moved = Moved(*(row or (0, None)))
    took = time.monotonic() - started
    cursor.moved(moved.last, all_of_it=moved.rows < limit, seconds=took)
    return moved


def claim(
    connection: Connection,
    source: Source,
    *,
    worker: int,
    quotas: Mapping[int, int],
    lease: float,
    max_attempts: int,
    cursor: Cursor | None = None,
    looked_at: datetime | None = None,
) -> tuple[list[Job], list[tuple[str, ...]]]:
    """Lease due rows for ``lease`` seconds: for each priority of ``quotas`` so many.

    Begins at the cursor, which moves on; ``looked_at`` is a time of the database before this.

    Returns the jobs, and the keys that became dead letters because a worker died with them
    ``max_attempts`` times.
    """
    cursor = cursor or Cursor()
    rows = connection.execute(
        source.render("queue_claim"),
        {
            "priorities": list(quotas),
            "afters": _afters(cursor, quotas),
            "quotas": list(quotas.values()),
            "most": sum(quotas.values()),
            "lease": lease,
            "max_attempts": max_attempts,
            "worker": worker,
        },
    ).fetchall()
    cursor.claimed(quotas, [(row[3], row[5]) for row in rows], looked_at)
    jobs = [
        Job(source, tuple(key), seq, attempts, priority, due)
        for key, seq, attempts, priority, dead, due in rows
        if not dead
    ]
    return jobs, [tuple(row[0]) for row in rows if row[4]]


def retries(
    connection: Connection,
    source: Source,
    *,
    cursor: Cursor | None = None,
    looked_at: datetime | None = None,
) -> int | None:
    """Return the lowest priority of :data:`RETRIES` that has due rows; None moves the cursor on."""
    cursor = cursor or Cursor()
    row = connection.execute(
        source.render("queue_retries"),
        {"priorities": list(RETRIES), "afters": _afters(cursor, RETRIES)},
    ).fetchone()
    if row is None:
        cursor.nothing(RETRIES, looked_at)
        return None
    return int(row[0])


def _afters(cursor: Cursor, priorities: Iterable[int]) -> list[str]:
    dues = (cursor.due.get(priority) for priority in priorities)
    return ["-infinity" if due is None else due.isoformat() for due in dues]


def read(connection: Connection, jobs: Sequence[Job], *, fingerprint: int) -> None:
    """Fill in the texts of claimed jobs of one source, in a snapshot newer than the claim."""
    if not jobs:
        return
    source = jobs[0].source
    with pipelined(connection):
        source.pin_table(connection)
        found = connection.execute(
            source.render("queue_read"),
            {**source.key_parameters([job.key for job in jobs]), "fingerprint": fingerprint},
        )
    for position, text, text_hash, current in found.fetchall():
        job = jobs[position]
        job.text, job.hash, job.current = text, bytes(text_hash), current
