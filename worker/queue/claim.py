"""Taking work: inbox to queue, a lease on due rows, their texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from worker.queue.source import Connection, Source

__all__ = ["BACKFILL", "FRESH", "RETRIES", "Job", "Moved", "claim", "move", "read", "suspects"]

FRESH = 0  # an application's change
RETRIES = tuple(range(11, 20))  # 10 + attempts that were begun and did not end well
BACKFILL = 20  # found by a sweep

MOVE_LIMIT = 5000  # rows; 5,000 take about 50 ms, so no transaction of ours grows old


class Moved(NamedTuple):
    """How many inbox rows were moved and the highest seq among them (None: none)."""

    rows: int
    last: int | None


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


def move(
    connection: Connection, source: Source, *, after: int = 0, limit: int = MOVE_LIMIT
) -> Moved:
    """Move up to ``limit`` rows from the inbox into the queue."""
    row = connection.execute(
        source.render("queue_move"), {"source": source.id, "after": after, "limit": limit}
    ).fetchone()
    return Moved(*(row or (0, None)))


def claim(
    connection: Connection,
    source: Source,
    *,
    worker: int,
    quotas: Mapping[int, int],
    lease: float,
    max_attempts: int,
    after: datetime | str = "-infinity",
) -> tuple[list[Job], list[tuple[str, ...]]]:
    """Lease due rows for ``lease`` seconds: for each priority of ``quotas`` so many.

    Returns the jobs, and the keys that became dead letters because a worker died with them
    ``max_attempts`` times.
    """
    rows = connection.execute(
        source.render("queue_claim"),
        {
            "priorities": list(quotas),
            "quotas": list(quotas.values()),
            "most": sum(quotas.values()),
            "lease": lease,
            "max_attempts": max_attempts,
            "worker": worker,
            "after": after,
        },
    ).fetchall()
    jobs = [
        Job(source, tuple(key), seq, attempts, priority, due)
        for key, seq, attempts, priority, dead, due in rows
        if not dead
    ]
    return jobs, [tuple(row[0]) for row in rows if row[4]]


def suspects(connection: Connection, source: Source) -> int | None:
    """Return the lowest priority of :data:`RETRIES` that has due rows."""
    row = connection.execute(
        source.render("queue_suspects"), {"priorities": list(RETRIES)}
    ).fetchone()
    return None if row is None else int(row[0])


def read(connection: Connection, jobs: Sequence[Job], *, fingerprint: int) -> None:
    """Fill in the texts of claimed jobs of one source, in a snapshot newer than the claim."""
    if not jobs:
        return
    source = jobs[0].source
    rows = connection.execute(
        source.render("queue_read"),
        {**source.key_parameters([job.key for job in jobs]), "fingerprint": fingerprint},
    ).fetchall()
    for position, text, text_hash, current in rows:
        job = jobs[position]
        job.text, job.hash, job.current = text, bytes(text_hash), current
