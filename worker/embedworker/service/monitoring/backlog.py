"""Asks the database from time to time what waits, so that no scrape ever does."""

import logging
import threading
import time
from typing import Any

from psycopg.rows import class_row

from embedworker.database.connect import connect
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.queue.source import Connection
from embedworker.service import idle
from embedworker.service.logs import redacted
from embedworker.service.monitoring.metrics import Family, counter, gauge
from embedworker.service.monitoring.readiness import Backlog, Readiness
from embedworker.service.outages import outages_of
from embedworker.service.retry import Backoff
from embedworker.service.threads import Thread

__all__ = ["BacklogSampler"]

log = logging.getLogger("embedworker.backlog")

INTERVAL = 2.0  # seconds between looks
SHARE = 0.05  # of the time: how much looking may take


class BacklogSampler(Thread):
    """A thread with a connection of its own; what it saw last is what a scrape shows."""

    def __init__(self, url: str, readiness: Readiness, *, answer_timeout: float) -> None:
        super().__init__(name="backlog", daemon=True)
        self._url = url
        self._readiness = readiness
        self._answer_timeout = answer_timeout
        self._stopped = threading.Event()
        self._seen: list[Family] = []

    def run(self) -> None:
        backoff = Backoff(
            log, "the connection that watches the queue", outages=outages_of(self._url)
        )
        backoff.keep_trying(
            lambda: self._watch(backoff),
            self._stopped,
            lost=lambda error: self._readiness.away(redacted(error)),
        )

    def stop(self) -> None:
        """End the thread at its next look."""
        self._stopped.set()

    def families(self) -> list[Family]:
        """Return the gauges of the last look; none while the database does not answer."""
        return self._seen if self._readiness.fresh else []

    def _watch(self, backoff: Backoff) -> None:
        with connect(
            self._url,
            application_name="embedworker observe",
            answer_timeout=self._answer_timeout,
        ) as connection:
            while not self._stopped.is_set():
                pause = self._look(connection)
                backoff.success()
                self._stopped.wait(pause)

    def _look(self, connection: Connection) -> float:
        """Look, and return the seconds until the next time."""
        started = time.monotonic()
        with connection.cursor(row_factory=class_row(Backlog)) as cursor:
            backlog = cursor.execute(statement("observer_backlog")).fetchall()
        questions = fetch_one(connection.execute(statement("observer_questions")))
        self._seen = _families(backlog, *questions)
        took = time.monotonic() - started
        pause = max(idle.pause(INTERVAL), took / SHARE)
        self._readiness.answered(backlog, pause + took)
        return pause


def _families(
    backlog: list[Backlog], questions: int, cached: int, hits: int, degraded: int
) -> list[Family]:
    def of_sources(name: str, meaning: str, attribute: str) -> Family:
        def value(row: Backlog) -> Any:
            return getattr(row, attribute) or 0

        return gauge(name, meaning, [(row.labels, value(row)) for row in backlog])

    return [
        of_sources("queue_rows", "Rows that wait to be embedded.", "waiting"),
        of_sources("queue_dead_rows", "Rows that were given up.", "dead"),
        of_sources(
            "queue_oldest_seconds",
            "How long the oldest row waits, or a sweep that was asked for.",
            "oldest",
        ),
        gauge("questions_waiting", "Questions nobody has answered yet.", [({}, questions)]),
        gauge("question_cache_vectors", "Vectors of recent questions kept.", [({}, cached)]),
        counter("question_cache_hits", "Questions answered from those.", [({}, hits)]),
        counter("degraded_searches", "Searches answered by words alone.", [({}, degraded)]),
    ]
