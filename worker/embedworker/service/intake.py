"""Which rows are claimed next: by turns retries and all else, fresh ones between two batches."""

import logging
import random
from collections.abc import Sequence
from threading import Event

from embedworker.queue.claim import BACKFILL, FRESH, MOVE_LIMIT, Job, claim, move, retries
from embedworker.queue.interval import IdleInterval
from embedworker.queue.source import Connection, Source
from embedworker.queue.strike import PAGE, strike
from embedworker.service.claimed import ClaimedRows
from embedworker.service.failpoints import failpoint
from embedworker.service.heartbeat import Progress
from embedworker.service.models import Loaded
from embedworker.service.pool import Pool
from embedworker.service.reader import Reader
from embedworker.service.registry import Registry
from embedworker.service.scan import QueueScan
from embedworker.service.steps import Step
from embedworker.service.writer import Writer
from embedworker.settings import Settings

__all__ = ["Intake"]

log = logging.getLogger("embedworker.passages")

FRESH_AT_ONCE = 64  # fresh rows taken between two batches; a full 64 is a backlog, not news
# Rows of a priority of retries that are tried together: fewer after each attempt that ended badly.
RETRIES_AT_ONCE = {11: 256, 12: 16}
GONE = 64  # rows of a window that are gone from their table, and most of it: there are more


class Intake:
    """Moves rows from the inbox, claims them, and has the reader put their texts into the pool.

    In a fleet it claims no more rows of a backfill than the rate limit allows.
    """

    def __init__(
        self,
        connection: Connection,
        worker: int,
        registry: Registry,
        scan: QueueScan,
        claimed: ClaimedRows,
        pool: Pool,
        reader: Reader,
        writer: Writer,
        progress: Progress,
        settings: Settings,
        wake: Event,
        intervals: Sequence[IdleInterval],
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._registry = registry
        self._scan = scan
        self._claimed = claimed
        self._pool = pool
        self._reader = reader
        self._writer = writer
        self._progress = progress
        self._metrics = progress.telemetry.metrics
        self._settings = settings
        self._wake = wake
        self._striking: set[int] = set()  # sources of which many rows are gone
        self._retries_at_once = 1
        self._retries_turn = False
        self._backlog = False
        self._apart = False  # whether the rows that are held are retries
        self._intervals = intervals  # of looks at what changes with the rows
        self._rate_limit = None if registry.share is None else registry.share.rate_limit
        self._refused = False  # whether the limit allowed nothing, so that there is more to do

    def fill(self, ready: Sequence[Source], *, alone: bool) -> bool:
        """Fill the pool: by turns with retries and with all else, so that neither waits.

        Rows that were held when a worker died are tried apart, few at a time: the text that killed
        it must not take its neighbours with it. Unless ``alone``, other rows are held at the
        moment: then nothing is claimed beside retries, nor while retries wait for their turn.
        """
        if not alone and (self._apart or self._retries_wait(ready)):
            return False
        self._backlog = self._apart = self._refused = False
        if not alone:
            return self._refill_all(ready)
        self._retries_turn = not self._retries_turn
        if self._retries_turn and self._take_retries(ready):
            return True
        if self._refill_all(ready) or (not self._retries_turn and self._take_retries(ready)):
            return True
        return self._refused

    def _refill_all(self, ready: Sequence[Source]) -> bool:
        worked = [
            self._registry.attempt(source, Step.REFILL, self._refill, source, len(ready))
            for source in ready
        ]
        return any(worked)

    def _retries_wait(self, ready: Sequence[Source]) -> bool:
        waiting = [
            self._registry.attempt(source, Step.RETRIES, self._first_retries, source)
            for source in ready
        ]
        return any(priority is not None for priority in waiting)

    def _first_retries(self, source: Source) -> int | None:
        with self._scan.retries(source.id) as cursor:
            return retries(self._connection, source, cursor=cursor, looked_at=self._scan.looked_at)

    def take_fresh(self) -> None:
        """Claim fresh rows between two batches, unless the pool holds a backlog of them."""
        if self._backlog and self._pool and not self._pool.only_long:
            self._wake.clear()
            self._scan.expect(set())  # the next refill looks for them
            return
        if not self._scan.fresh_due(woken=self._wake.is_set()):
            return
        self._wake.clear()
        with self._scan.fresh(self._registry.active()) as found:
            for source in found:
                self._registry.attempt(source, Step.FRESH, self._take_fresh, source)

    def _refill(self, source: Source, sharing: int) -> int:
        loaded = self._registry.load(source)
        share = max(1, self._settings.window // sharing)
        with self._metrics.phase.labels("claim").time(), self._scan.measured():
            moved = move(self._connection, source, cursor=self._scan.cursors[source.id]).rows
            struck = self._strike(source) if source.id in self._striking else 0
            taken = [] if struck else self._claim(source, {FRESH: share, BACKFILL: share})
        self._plan(loaded, source, taken)
        return moved + struck + len(taken)

    def _plan(
        self, loaded: Loaded, source: Source, taken: list[Job], *, fresh: bool = False
    ) -> None:
        gone = self._reader.plan(loaded, source, taken, fresh=fresh)
        if gone >= GONE and 2 * gone > len(taken):
            self._striking.add(source.id)

    def _strike(self, source: Source) -> int:
        """Settle rows that are gone from the table, many at once."""
        cursor = self._scan.cursors[source.id]
        for _ in range(PAGE // MOVE_LIMIT):  # so that a page is full
            if move(self._connection, source, cursor=cursor).rows < MOVE_LIMIT:
                break
        struck = [
            strike(self._connection, source, priority, cursor, worker=self._worker)
            for priority in (FRESH, BACKFILL)
        ]
        if max(struck) < PAGE // 2:
            self._striking.discard(source.id)
        count = sum(struck)
        # A sweep brings a page of orphans at a time; that is no news.
        level = logging.INFO if count >= PAGE // 10 else logging.DEBUG
        log.log(level, "source %s: %s rows are gone from the table", source, f"{count:,}")
        self._progress.embedded += count
        self._progress.telemetry.health.did(count, by_model=False)
        self._metrics.skipped.labels(str(source), source.name).inc(count)
        return count

    def _take_retries(self, ready: Sequence[Source]) -> bool:
        shuffled = random.sample(ready, len(ready))
        return any(
            self._registry.attempt(source, Step.RETRIES, self._refill_retries, source)
            for source in shuffled
        )

    def _refill_retries(self, source: Source) -> int:
        priority = self._first_retries(source)
        if priority is None:
            return 0
        loaded = self._registry.load(source)
        quota = min(self._retries_at_once, RETRIES_AT_ONCE.get(priority, 1))
        with self._metrics.phase.labels("claim").time(), self._scan.measured():
            taken = self._claim(source, {priority: quota})
        self._apart = bool(taken)
        self._retries_at_once = min(self._retries_at_once * 2, max(RETRIES_AT_ONCE.values()))
        self._plan(loaded, source, taken)
        return len(taken)

    def _take_fresh(self, source: Source) -> int:
        loaded = self._registry.load(source)
        with self._metrics.phase.labels("claim").time(), self._scan.measured():
            moved = move(self._connection, source, cursor=self._scan.cursors[source.id])
            taken = self._claim(source, {FRESH: FRESH_AT_ONCE}) if moved.rows else []
        self._backlog = self._backlog or len(taken) == FRESH_AT_ONCE
        self._plan(loaded, source, taken, fresh=True)
        return len(taken)

    def _claim(self, source: Source, quotas: dict[int, int]) -> list[Job]:
        if self._rate_limit is None:
            return self._claim_all(source, quotas)
        # What the application waits for is never held back. It is counted, and so slows a backfill.
        allowed = 0
        if BACKFILL in quotas:
            allowed = self._rate_limit.take(quotas.pop(BACKFILL))
            quotas |= {BACKFILL: allowed} if allowed else {}
            self._refused = self._refused or allowed == 0
        jobs = self._claim_all(source, quotas)
        self._rate_limit.give_back(allowed - len(jobs))
        return jobs

    def _claim_all(self, source: Source, quotas: dict[int, int]) -> list[Job]:
        jobs, dead = claim(
            self._connection,
            source,
            worker=self._worker,
            quotas=quotas,
            lease=self._settings.lease,
            max_attempts=self._settings.max_attempts,
            cursor=self._scan.cursors[source.id],
            looked_at=self._scan.looked_at,
        )
        self._claimed.add(jobs)
        if dead:
            log.error("source %s: %s texts are dead: workers died with them", source, len(dead))
            self._writer.count_failures(source, len(dead), "dead")
        if jobs:
            for interval in self._intervals:
                interval.changed(source.id)
            failpoint("after-claim")
        return jobs
