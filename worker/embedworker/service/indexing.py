"""Builds a source's HNSW index once its vectors are there, beside everything else.

After the backfill, not before it: filling an index row by row costs several times a build. A small
table stays without; reading it whole is exact and fast.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psycopg

from embedworker.database import connection as database
from embedworker.database.connect import connect
from embedworker.database.statements import statement
from embedworker.database.timeouts import advice
from embedworker.errors import EmbedworkerError
from embedworker.queue.interval import IdleInterval
from embedworker.queue.source import Connection, Source
from embedworker.service.building import build, watched
from embedworker.service.index_plan import Plan, WordsPlan, has_enough, indexes, plan
from embedworker.service.logs import redacted
from embedworker.service.monitoring.metrics import Metrics
from embedworker.service.threads import Thread
from embedworker.service.words_index import build_words, words_plan
from embedworker.settings.worker import DEFAULT_ANSWER_TIMEOUT, DEFAULT_WORDS_INDEX_AFTER_ROWS

__all__ = ["Indexer"]

log = logging.getLogger("embedworker.indexing")

RETRY = 60.0  # seconds until a build that failed is tried again, and twice as long each time
LONGEST = 3600.0  # seconds


@dataclass(slots=True)
class _Failure:
    reason: str
    pause: float
    until: float


class Indexer:
    """One build at a time, in a thread with a connection of its own.

    ``memory`` is the bytes that a build may have on the server. ``direct_url`` is used where
    ``url`` leads through a pooler, which gives each statement to another session: a build needs one
    of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        after_rows: int,
        memory: int,
        words_after_rows: int = DEFAULT_WORDS_INDEX_AFTER_ROWS,
        direct_url: str | None = None,
        metrics: Metrics | None = None,
        application_name: str = "embedworker index",
        answer_timeout: float = DEFAULT_ANSWER_TIMEOUT,
    ) -> None:
        self._url = url
        self._direct_url = direct_url
        self._after_rows = after_rows
        self._memory = memory
        self._words_after_rows = words_after_rows
        self._metrics = metrics or Metrics()
        self._application_name = application_name
        self._answer_timeout = answer_timeout
        self.interval = IdleInterval()
        self._thread: threading.Thread | None = None
        # By source and kind of index: one that fails does not keep the other from being built.
        self._failures: dict[tuple[int, type[Plan | WordsPlan]], _Failure] = {}
        self._begun: int | None = None
        self._said: set[tuple[int, str]] = set()

    @property
    def url(self) -> str:
        """The database it builds in."""
        return self._url

    @property
    def busy(self) -> bool:
        """Whether a build is under way."""
        return self._thread is not None and self._thread.is_alive()

    def run_if_due(self, connection: Connection, source: Source) -> None:
        """Start a build if the source has enough vectors and no valid index.

        One that was left broken is built again however few vectors there are: it costs every write.
        """
        if self.busy:
            return
        if self._begun == source.id:  # that build is over: the source may need the other index
            self._begun = None
            self.interval.forget(source.id)
        if not self.interval.due(source.id):
            return
        found = indexes(connection, source)
        if any(index.building for index in found):  # by its owner, or another worker
            self.interval.changed(source.id)
            self._note(connection, source, "building")
        elif self._begin_words(connection, source):
            pass  # first, because it takes seconds where HNSW takes minutes
        elif found and all(index.valid for index in found):
            self._note(connection, source, "valid")
        elif not found and not has_enough(connection, source, self._after_rows):
            self._note(connection, source, "none: few rows")
        else:
            self._begin(connection, plan(connection, source, found))

    def _begin_words(self, connection: Connection, source: Source) -> bool:
        """Start a build of the index over words if the source has enough passages and none."""
        plan = words_plan(connection, source, after_rows=self._words_after_rows)
        if plan is None or not self._may_try(plan):
            return False
        self._start(partial(self._build_words, plan), source)
        return True

    def _start(self, build: Callable[[], None], source: Source) -> None:
        self._begun = source.id
        self.interval.changed(source.id)  # it may fail
        self._thread = Thread(target=build, name="indexer", daemon=True)
        self._thread.start()

    def _build_words(self, plan: WordsPlan) -> None:
        started = time.monotonic()
        try:
            with self._connection() as connection, watched(self._url, plan, self._metrics):
                build_words(connection, plan)
        except (psycopg.Error, EmbedworkerError) as error:
            self._failed(plan, error, None)
            return
        self._failures.pop((plan.source.id, WordsPlan), None)
        if not plan.wanted:
            log.info("index of the words of %s dropped: it is not used", plan.table)
            return
        log.info("index of the words of %s built in %.1f s", plan.table, time.monotonic() - started)

    def _begin(self, connection: Connection, plan: Plan) -> None:
        if plan.served and not plan.leftovers:
            self._note(connection, plan.source, "valid")
        elif not plan.served and (reason := self._obstacle(plan)):
            self._note(connection, plan.source, f"none: {reason}")
        elif self._may_try(plan):
            self._note(connection, plan.source, "building")
            self._start(partial(self._build, plan), plan.source)

    def build_all(self, connection: Connection, source: Source) -> None:
        """Build every index that the source needs, one after the other, and wait for them."""
        self.run_if_due(connection, source)
        while self.wait():
            self.run_if_due(connection, source)

    def wait(self) -> bool:
        """Wait for a build that is under way; say whether one was begun since the last wait."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        thread.join()
        return True

    def _obstacle(self, plan: Plan) -> str | None:
        """Why there can be no index."""
        if plan.definition is None:
            dimensions = f"{plan.source.dimensions:,}"
            return self._say(plan, f"an index holds at most 4,000 dimensions, not {dimensions}")
        if plan.source.partitioned and plan.source.into_column:
            return self._say(plan, "PostgreSQL builds none beside writers on a partitioned table")
        return None

    def _say(self, plan: Plan, reason: str) -> str:
        if (plan.source.id, reason) not in self._said:
            self._said.add((plan.source.id, reason))
            log.warning("%s gets no index: %s; each search reads all vectors", plan.table, reason)
        return reason

    def _may_try(self, plan: Plan | WordsPlan) -> bool:
        failure = self._failures.get((plan.source.id, type(plan)))
        return failure is None or time.monotonic() >= failure.until

    def _build(self, plan: Plan) -> None:
        started = time.monotonic()
        try:
            with self._connection() as connection:
                try:
                    with watched(self._url, plan, self._metrics):
                        build(connection, plan, memory=self._memory)
                except psycopg.Error as error:
                    self._failed(plan, error, advice(connection, error))
                    if not connection.closed:
                        self._note(connection, plan.source, f"failed: {redacted(error)}")
                    return
                self._note(connection, plan.source, "valid")
        except (psycopg.Error, EmbedworkerError) as error:
            self._failed(plan, error, None)
            return
        self._failures.pop((plan.source.id, Plan), None)
        if not plan.served:
            self._metrics.index_builds.labels("built").inc()
            log.info("index of %s built in %.1f s", plan.table, time.monotonic() - started)

    def _connection(self) -> database.Connection:
        connection = self._connect(self._url)
        if connection.pooled and self._direct_url is not None:
            connection.close()
            connection = self._connect(self._direct_url)
        return connection

    def _connect(self, url: str) -> database.Connection:
        # No limit on waiting for locks: CREATE INDEX CONCURRENTLY waits for old transactions to
        # end, and nobody waits for it meanwhile.
        return connect(
            url,
            lock_timeout=0,
            application_name=self._application_name,
            answer_timeout=self._answer_timeout,
        )

    def _failed(self, plan: Plan | WordsPlan, error: Exception, hint: str | None) -> None:
        """Put the next try off, and say why unless that was said."""
        self._metrics.index_builds.labels("failed").inc()
        reason = redacted(error)
        last = self._failures.get((plan.source.id, type(plan)))
        pause = min(2 * last.pause, LONGEST) if last else RETRY
        self._failures[plan.source.id, type(plan)] = _Failure(
            reason, pause, time.monotonic() + pause
        )
        if last is None or last.reason != reason:
            log.warning(
                "index of %s: %s%s; trying again, at most once an hour",
                plan.table,
                reason,
                f". {hint}" if hint else "",
            )

    @staticmethod
    def _note(connection: Connection, source: Source, state: str) -> None:
        connection.execute(
            statement("source_index_state"), {"source": source.id, "index_state": state}
        )
