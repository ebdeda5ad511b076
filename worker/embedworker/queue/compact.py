"""Gives the room of a queue back that was large once; a million rows may have taken 200 MB."""

import logging
import time
from typing import NamedTuple

import psycopg

from embedworker.database.connection import alone
from embedworker.database.statements import statement
from embedworker.queue.interval import IdleInterval
from embedworker.queue.source import Connection, Source

__all__ = ["Compactor"]

log = logging.getLogger("embedworker.queue")

AGAIN = 600.0  # seconds until the next try where one did not help
LARGE = 16 << 20  # bytes; a smaller queue is left as it is
A_ROW = 1000  # bytes; a row takes about 150 with its indexes, so at least four fifths are empty
MOST = 200_000  # rows; a compaction of these takes less than a second, and claims wait


class Compactor:
    """Looks at queues from time to time, when there is nothing else to do."""

    def __init__(self) -> None:
        self.interval = IdleInterval()
        self._again_at: dict[int, float] = {}

    def run_if_due(self, connection: Connection, source: Source) -> bool:
        """Rewrite the queue of a source if it is large and nearly empty; return whether it did.

        Autovacuum comes first: rows that it has not removed yet, or may not because of an old
        snapshot, count as rows.
        """
        now = time.monotonic()
        if now < self._again_at.get(source.id, 0.0) or not self.interval.due(source.id):
            return False
        before = _look(connection, source)
        if before is None or not before.worth:
            return False
        try:
            alone(connection, source.render("queue_compact"))
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning("the queue of %s could not be compacted: %s", source, str(error).strip())
        after = _look(connection, source)
        if after is None or after.file == before.file:
            return False  # somebody was at it
        if after.size > before.size // 2:
            self._again_at[source.id] = now + AGAIN  # the counts were wrong, as after a crash
        log.info(
            "the queue of %s was nearly empty: compacted from %.0f to %.0f MB",
            source,
            before.size / 2**20,
            after.size / 2**20,
        )
        return True


class _Look(NamedTuple):
    size: int
    rows: int
    ours: bool
    file: int

    @property
    def worth(self) -> bool:
        return self.ours and self.size > LARGE and self.rows < min(MOST, self.size / A_ROW)


def _look(connection: Connection, source: Source) -> _Look | None:
    row = connection.execute(statement("queue_bloat"), {"source": source.id}).fetchone()
    return None if row is None else _Look(*row)
