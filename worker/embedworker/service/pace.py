"""Lines of progress: how far a table is, how fast it goes, and how long it will take."""

import logging
import time
from dataclasses import dataclass

from embedworker.database.statements import statement
from embedworker.queue.source import Connection, Source

__all__ = ["Pace"]

log = logging.getLogger("embedworker.progress")

INTERVAL = 10.0  # seconds between two lines of a table that is being embedded
QUIET = 60.0  # seconds without a line after which a short piece of work gets one at its end


@dataclass
class _Run:
    """The rows of one table from the first that was embedded until nothing waits any more."""

    source: Source
    started_at: float
    said_at: float
    rows: int = 0
    said: bool = False
    news: bool = False  # whether rows were embedded since the last line


class Pace:
    """Says every ten seconds, and at the end, how far each table is."""

    def __init__(self) -> None:
        self._runs: dict[int, _Run] = {}
        self._ended_at: dict[int, float] = {}

    def did(self, source: Source, rows: int) -> None:
        """So many rows of a source were embedded."""
        if rows:
            now = time.monotonic()
            run = self._runs.setdefault(source.id, _Run(source, now, now))
            run.source = source
            run.rows += rows
            run.news = True

    def consider(self, connection: Connection) -> None:
        """Say how far tables are that moved on and of which nothing was said for a while.

        A run ends when the worker has nothing else to do: tables that were done long ago are here.
        """
        now = time.monotonic()
        for run in self._runs.values():
            if run.news and now - run.said_at >= INTERVAL:
                run.said_at, run.said, run.news = now, True, False
                _say(connection, run)

    def over(self, connection: Connection, source: Source) -> None:
        """Nothing is left to do for a source at the moment."""
        run = self._runs.pop(source.id, None)
        if run is None:
            return
        now = time.monotonic()
        recently = now - self._ended_at.get(source.id, float("-inf")) < QUIET
        if run.said or not recently:
            self._ended_at[source.id] = now
            _say(connection, run, now - run.started_at)

    def forget(self, known: set[int]) -> None:
        """Forget sources that are no longer known."""
        for number in self._runs.keys() - known:
            del self._runs[number]


def _say(connection: Connection, run: _Run, took: float | None = None) -> None:
    row = connection.execute(statement("status_progress"), {"source": run.source.id}).fetchone()
    if row is None or row[0] is None:
        return  # the table is gone, or cannot be looked at
    total, embedded, rate, left, counted = row
    fields = {"table": str(run.source), "rows": total, "embedded": embedded}
    if took is None:
        fields |= {"rows_per_second": round(rate, 1), "seconds_left": left}
        more = f"{rate:.0f} rows/s" + ("" if left is None else f", {_span(left)} left")
    else:
        fields |= {"newly_embedded": run.rows, "seconds": round(took, 1)}
        more = f"{run.rows:,} embedded in {_span(took)}"
    share = 100 * embedded // total if total else 100  # cut: 100 % is said of a whole table only
    log.info(
        "%s: %s of %s (%s %%), %s",
        run.source,
        f"{embedded:,}",
        f"{total:,}" if counted else f"about {total:,}",
        share,
        more,
        extra={"fields": fields},
    )


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
