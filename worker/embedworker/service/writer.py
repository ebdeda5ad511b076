"""Results and failures into the database, each fenced by the claim that they were made for."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

from embedworker.queue.claim import Job
from embedworker.queue.complete import Result, complete
from embedworker.queue.failure import LOCKED, fail, halved, of_names_or_rights, release
from embedworker.queue.source import Connection, Source
from embedworker.queue.statistics import Statistics
from embedworker.service.claimed import ClaimedRows
from embedworker.service.failpoints import failpoint
from embedworker.service.heartbeat import Progress
from embedworker.service.models import Loaded
from embedworker.service.pace import Pace
from embedworker.service.registry import Registry
from embedworker.service.stage import Stage
from embedworker.service.steps import Step
from embedworker.service.waiting import WaitingResults
from embedworker.settings import Settings

__all__ = ["Writer"]

log = logging.getLogger("embedworker.passages")

MOST_WAITING = 4096  # passages; about 16 MB of vectors and terms

Refused = list[tuple[Result, Exception]]


class Writer:
    """Writes what became of claimed rows, and takes the rows out of the list of what is claimed.

    Vectors are written by a thread over a connection of its own, all else by the lane.
    """

    def __init__(
        self,
        connection: Connection,
        writing: Connection,
        worker: int,
        registry: Registry,
        claimed: ClaimedRows,
        statistics: Statistics,
        progress: Progress,
        settings: Settings,
        ended: Event | None,
    ) -> None:
        self._connection = connection
        self._writing = writing
        self._stage: Stage[tuple[int, Refused]] = Stage("writer", ended)
        self._given: deque[tuple[Source, Sequence[Result]]] = deque()
        self._waiting = WaitingResults()
        self._worker = worker
        self._registry = registry
        self._claimed = claimed
        self._statistics = statistics
        self._progress = progress
        self._metrics = progress.telemetry.metrics
        self._health = progress.telemetry.health
        self._settings = settings
        self.pace = Pace()
        self.doubted: set[int] = set()
        """Sources that refused every row of a batch."""

    @property
    def busy(self) -> bool:
        """Whether results wait, or are being written."""
        return bool(self._waiting) or len(self._stage) > 0

    @property
    def room(self) -> bool:
        """Whether so few results wait that more may be made."""
        return self._waiting.passages < MOST_WAITING

    def put(self, loaded: Loaded, results: Sequence[Result]) -> None:
        """Have results written, of rows that are still claimed, together with others."""
        for result in results:
            if result.job in self._claimed:
                self._waiting.add(loaded, result)

    def put_failures(self, failures: Sequence[tuple[Job, str]]) -> None:
        """Put rows off that failed at the model, of those that are still claimed."""
        by_source: dict[int, list[tuple[Job, str]]] = {}
        for job, error in failures:
            if job in self._claimed:
                by_source.setdefault(job.source.id, []).append((job, error))
        for lost in by_source.values():
            self._registry.attempt(lost[0][0].source, Step.FAIL, self.fail, lost[0][0].source, lost)

    def feed(self, *, idle: bool) -> None:
        """Begin to write what is due; ``idle``: nothing else is under way, so that all of it is.

        A change of the application is written at once, a backfill in larger transactions.
        """
        # With the thread at work, what comes meanwhile is written together.
        while not len(self._stage) and (batch := self._waiting.take(idle=idle)):
            source, loaded, results = batch
            made = [result for result in results if result.job in self._claimed]
            if made:
                # Not COMPLETE: to give them to the thread is no success of writing, and would
                # end the trouble of a table that refuses every row.
                self._registry.attempt(source, Step.STATISTICS, self._give, source, loaded, made)

    def collect(self) -> None:
        """Account for what was written.

        Raises psycopg.Error when the connection of the writer is lost.
        """
        for future in self._stage.collect():
            source, results = self._given.popleft()
            error = future.exception()
            if error is not None and self._writing.closed:
                raise error
            self._registry.attempt(
                source, Step.COMPLETE, self._written, source, results, future.result
            )

    def finish(self) -> None:
        """Write everything that waits, and wait for that."""
        while self.busy:
            self.feed(idle=True)
            self._stage.wait()
            self.collect()

    def close(self) -> None:
        """Let the thread end after what is being written."""
        self._stage.close()

    def fail(self, source: Source, failures: Sequence[tuple[Job, str]]) -> None:
        """Put rows of a source off, each with its error, or make them dead letters."""
        if not failures:
            return
        dead = fail(
            self._connection,
            failures,
            worker=self._worker,
            max_attempts=self._settings.max_attempts,
            longest_backoff=self._settings.backoff_max,
        )
        self._claimed.remove(job for job, _ in failures)
        log.warning(
            "source %s: %s texts could not be embedded, %s of them for good; see embed.failure",
            source,
            len(failures),
            dead,
        )
        self.count_failures(source, dead, "dead")
        self.count_failures(source, len(failures) - dead, "retry")

    def release(self, jobs: Sequence[Job], *, delay: float = 0.0) -> None:
        """Hand rows of one source back untried, due again in ``delay`` seconds."""
        release(self._connection, jobs, worker=self._worker, delay=delay)
        self._claimed.remove(jobs)

    def count_failures(self, source: Source, count: int, outcome: str) -> None:
        """Add failed rows to the metrics."""
        self._metrics.failures.labels(str(source), source.name, outcome).inc(count)

    def _give(self, source: Source, loaded: Loaded, results: Sequence[Result]) -> None:
        average_length = self._statistics.average_length(source)
        self._given.append((source, results))
        self._stage.give(partial(self._write, loaded.fingerprint, average_length, results))

    def _write(
        self, fingerprint: int, average_length: float, results: Sequence[Result]
    ) -> tuple[int, Refused]:
        """Complete what can be; also return the results that the tables refuse, each with why."""
        failpoint("before-complete")
        counts: list[int] = []

        def put(some: Sequence[Result]) -> None:
            counts.append(
                complete(
                    self._writing,
                    some,
                    worker=self._worker,
                    fingerprint=fingerprint,
                    average_length=average_length,
                )
            )

        with self._metrics.phase.labels("complete").time():
            refused = halved(results, put)
        failpoint("after-commit")
        return sum(counts), refused

    def _written(
        self,
        source: Source,
        results: Sequence[Result],
        outcome: Callable[[], tuple[int, Refused]],
    ) -> None:
        count, refused = outcome()
        if len(refused) == len(results) and _of_the_table(refused):
            self.doubted.add(source.id)
            raise refused[0][1]
        if not refused:
            self.doubted.discard(source.id)
        else:
            self._health.failed(len(refused), "to be written to the table")
        self.fail(source, [(result.job, str(error).strip()) for result, error in refused])
        self._count(source, results, count)
        if count + len(refused) < len(results):
            # Rows that were locked at that moment (by the application, whose row holds the vector;
            # by our own heartbeat, which extends leases) are still ours: hand them back. Left
            # alone they would wait for their lease, and it is extended as long as there is work.
            delay = LOCKED if source.into_column else 0.0
            self.release([result.job for result in results], delay=delay)
        self._claimed.remove(result.job for result in results)

    def _count(self, source: Source, results: Sequence[Result], count: int) -> None:
        # Those that need no model are completed apart from those that came from it.
        by_model = bool(results[0].passages)
        self._progress.embedded += count
        self._health.did(count, by_model=by_model)
        counter = self._metrics.embedded if by_model else self._metrics.skipped
        counter.labels(str(source), source.name).inc(count)
        self.pace.did(source, count if by_model else 0)
        self._statistics.written(
            source, sum(max(1, len(r.passages)) for r in results if not r.untouched)
        )


def _of_the_table(refused: Refused) -> bool:
    """Whether the table is to blame, where it refused all of a batch.

    Not where all were tried before: they were refused beside others that were taken. Of a single
    row it is not known; a name or a right that is missing is the table's fault then.
    """
    results, errors = zip(*refused, strict=True)
    if all(result.job.attempts > 1 for result in results):
        return False
    return len(refused) > 1 or of_names_or_rights(errors[0])
