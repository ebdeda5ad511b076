"""Looks at the database from time to time, so that opening the page costs little.

Kept in memory: what was done in each minute of the last hour, and what ``embed.doctor()`` found.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg.rows import class_row

from embedworker.database.statements import statement
from embedworker.errors import EmbedworkerError
from embedworker.service.doctor import Finding
from embedworker.service.logs import redacted
from embedworker.state.store import Look, Store

__all__ = ["Minute", "Watch"]

log = logging.getLogger("embedworker.web")

INTERVAL = 10.0  # seconds between looks
DOCTOR_INTERVAL = 60.0  # seconds between examinations
DOCTOR_TIMEOUT = 30.0  # seconds
MINUTES = 60


@dataclass(slots=True)
class Minute:
    """What workers did in one minute: rows, rows that were given up, questions."""

    number: int
    embedded: int = 0
    failed: int = 0
    answered: int = 0


class Watch(threading.Thread):
    """A thread; the page reads ``minutes``, ``findings`` and ``questions_per_second``."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="web watch", daemon=True)
        self.minutes: deque[Minute] = deque(maxlen=MINUTES)
        self.findings: list[Finding] | None = None
        """None: not examined yet, or this login may not."""
        self.examined_at: datetime | None = None
        self.questions_per_second: float | None = None
        self._store = store
        self._stopped = threading.Event()
        self._work: dict[int, int] | None = None
        self._dead: int | None = None
        self._looked_at = 0.0

    def run(self) -> None:
        examine_at = 0.0
        while not self._stopped.is_set():
            self._tried(self.look)
            if time.monotonic() >= examine_at:
                self._tried(self.examine)
                examine_at = time.monotonic() + DOCTOR_INTERVAL
            self._stopped.wait(INTERVAL)

    def stop(self) -> None:
        """End the thread at its next look."""
        self._stopped.set()

    def look(self) -> None:
        """Add what was done since the last look to this minute. Raises psycopg.Error."""
        with self._store.look() as look:
            if look.rights().status:
                self._add(*_work(look))

    def examine(self) -> None:
        """Ask ``embed.doctor()``. Raises psycopg.Error."""
        with self._store.look(DOCTOR_TIMEOUT) as look:
            if not look.rights().status:
                return
            with look.connection.cursor(row_factory=class_row(Finding)) as cursor:
                found = cursor.execute(statement("doctor_findings")).fetchall()
        order = {"problem": 0, "warning": 1}
        self.findings = sorted(found, key=lambda finding: order.get(finding.state, 2))
        self.examined_at = datetime.now(UTC)

    def _tried(self, look: Callable[[], None]) -> None:
        try:
            look()
        except (psycopg.Error, EmbedworkerError) as error:
            log.warning("the page cannot look at the database: %s", redacted(error))

    def _add(self, rows: dict[int, int], questions: dict[int, int], dead: int) -> None:
        now = time.monotonic()
        if self._work is not None and self._dead is not None:
            minute = self._minute(int(time.time() // 60))
            answered = _increase(self._work, questions)
            minute.embedded += _increase(self._work, rows)
            minute.answered += answered
            minute.failed += max(dead - self._dead, 0)
            self.questions_per_second = answered / max(now - self._looked_at, 0.001)
        self._work, self._dead, self._looked_at = {**rows, **questions}, dead, now

    def _minute(self, number: int) -> Minute:
        if not self.minutes or self.minutes[-1].number != number:
            self.minutes.append(Minute(number))
        return self.minutes[-1]


def _work(look: Look) -> tuple[dict[int, int], dict[int, int], int]:
    rows: dict[int, int] = {}
    questions: dict[int, int] = {}
    for worker, lanes, done in look.connection.execute(statement("web_work")):
        (rows if "passages" in lanes else questions)[worker] = done
    ((dead,),) = look.connection.execute(statement("web_dead")).fetchall()
    return rows, questions, dead


def _increase(before: dict[int, int], now: dict[int, int]) -> int:
    """Count the work since the last look; for a new worker, that is all of its work."""
    return sum(max(done - before.get(worker, 0), 0) for worker, done in now.items())
