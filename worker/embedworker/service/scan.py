"""Where the looks at inboxes and queues begin, and when a look begins at the front again."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from datetime import datetime

from embedworker.queue.claim import RETRIES, Polled, fresh, poll
from embedworker.queue.cursor import FRONT, Cursor
from embedworker.queue.source import Connection, Source
from embedworker.service.source_errors import LOCKED

__all__ = ["FRESH_LOOK", "QueueScan"]

FULL_LOOK = 0.02  # of the time: how much looking behind the cursors may take
LONGEST_LOOK = 3.0  # seconds between such looks at most, whatever they take
# While rows are embedded: looks over 300 tables took a third of the time of a backfill of one.
# Other looks find fresh rows, and all else waits no longer than at an idle worker.
LOOK_SHARE = 0.05  # of the time: how much looks may take
LONGEST_PAUSE_OF_LOOKS = 2.0  # seconds between them at most
FRESH_LOOK = 0.2  # seconds between looks for fresh rows where no NOTIFY came: it may be left out
FRESH_SHARE = 0.2  # of the time: how much looks for fresh rows may take while others are embedded
LONGEST_LOCK = 10.0  # seconds that a queue may be locked before ``--once`` ends without its rows
LONGEST_PAUSE = 0.5  # seconds between looks for fresh rows at most, whatever they take


class QueueScan:
    """The cursors of all sources, and the times of the next looks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.cursors: defaultdict[int, Cursor] = defaultdict(Cursor)
        self.looked_at: datetime | None = None
        """By the database's clock."""
        self.whole = False
        """Whether the last look began at the front."""
        self.locked: dict[int, float] = {}
        """Since when another session has locked the queues of sources, in monotonic seconds."""
        self._working: set[int] = set()  # sources that had work at the last look
        self._look_at = 0.0
        self._looking = 0.0  # seconds that this look and its claims have taken
        self._whole_look_at = 0.0
        self._front_at = 0.0
        self._fresh_at = 0.0
        self._fresh_pause = 0.0

    def poll(self) -> list[Polled]:
        """Look at every source: where there is work, and what it is."""
        started = time.monotonic()
        self.whole = started >= self._whole_look_at
        if self.whole:
            self.cursors.clear()
        rows = poll(self._connection, self.cursors)
        self._looking = time.monotonic() - started
        self._look_at = started + min(self._looking / LOOK_SHARE, LONGEST_PAUSE_OF_LOOKS)
        self.looked_at = rows[0].at if rows else None
        self._working = {row.source for row in rows if row.work}
        locked = [row.source for row in rows if row.work is None]
        self.locked = {source: self.locked.get(source, started) for source in locked}
        return rows

    def troubles(self, sources: Iterable[Source]) -> list[str]:
        """Return which of the sources have queues that stay locked, a sentence each."""
        before = time.monotonic() - LONGEST_LOCK
        locked = {number for number, since in self.locked.items() if since < before}
        return [f"{source}: {LOCKED}" for source in sources if source.id in locked]

    @property
    def due(self) -> bool:
        """Whether to look again while rows are embedded."""
        return time.monotonic() >= self._look_at

    def ready(self, sources: Iterable[Source]) -> list[Source]:
        """Return those of the sources that had rows to claim at the last look."""
        return [source for source in sources if source.id in self._working]

    def expect(self, queued: Set[int]) -> None:
        """Note sources that have rows by now; where there are none, the next look comes at once."""
        self._working |= queued
        if not queued:
            self._look_at = 0.0

    def over(self) -> None:
        """Plan the next look at everything, after a look and its claims."""
        self._fresh_at = time.monotonic()
        if self.whole:
            self._plan(self._looking)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what is done here as a part of the look that led to it."""
        started = time.monotonic()
        yield
        self._looking += time.monotonic() - started

    @contextmanager
    def retries(self, source: int) -> Iterator[Cursor]:
        """Give the cursor for a look at the retries of a source, and measure a whole look."""
        cursor = self.cursors[source]
        whole = cursor.due.keys().isdisjoint(RETRIES)
        started = time.monotonic()
        yield cursor
        if whole:  # it belongs to the last whole look, though it may not have been its turn then
            self._plan(time.monotonic() - started)

    def fresh_due(self, *, woken: bool) -> bool:
        """Whether to look for fresh rows between two batches."""
        pause = self._fresh_pause if woken else max(FRESH_LOOK, self._fresh_pause)
        return time.monotonic() - self._fresh_at >= pause

    @contextmanager
    def fresh(self, sources: Iterable[Source]) -> Iterator[list[Source]]:
        """Give the sources that have fresh rows; from time to time the whole inboxes count."""
        started = time.monotonic()
        front = started >= self._front_at
        if front:
            for cursor in self.cursors.values():
                cursor.place = FRONT
        found = fresh(self._connection, sources, self.cursors)
        self._fresh_at = time.monotonic()
        self._looking = self._fresh_at - started
        self._fresh_pause = min(self._looking / FRESH_SHARE, LONGEST_PAUSE)
        yield found
        if front:
            self._front_at = time.monotonic() + min(self._looking / FULL_LOOK, LONGEST_LOOK)

    def _plan(self, took: float) -> None:
        again = time.monotonic() + min(took / FULL_LOOK, LONGEST_LOOK)
        self._whole_look_at = max(self._whole_look_at, again)
