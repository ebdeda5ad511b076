"""The passage lane: queue to vectors, in windows of similar length, newest changes first."""

import logging
import threading
import time

from embedworker.queue.lease import Identity
from embedworker.queue.source import Connection
from embedworker.queue.statistics import Statistics
from embedworker.service.claimed import ClaimedRows
from embedworker.service.counting import Counting
from embedworker.service.embedder import Embedder
from embedworker.service.heartbeat import Progress
from embedworker.service.indexing import Indexer
from embedworker.service.intake import Intake
from embedworker.service.maintenance import Maintenance
from embedworker.service.pool import Pool
from embedworker.service.reader import Reader
from embedworker.service.registry import Registry
from embedworker.service.returns import Returns
from embedworker.service.scan import FRESH_LOOK, QueueScan
from embedworker.service.steps import Step
from embedworker.service.sweeps import Sweeps
from embedworker.service.writer import Writer
from embedworker.settings import Settings

__all__ = ["PassageLane"]

log = logging.getLogger("embedworker.passages")

TICK = 0.01  # seconds between looks at whether a change was notified, while the threads are at work


class PassageLane:
    """Everything one worker does to keep vectors current, on its own connection.

    With ``writing``, a second connection, the model and the writes each have a thread, so that rows
    are claimed and read meanwhile. Without it everything is done in turn by the caller's thread.
    """

    def __init__(
        self,
        connection: Connection,
        worker: Identity,
        registry: Registry,
        progress: Progress,
        settings: Settings,
        indexer: Indexer,
        wake: threading.Event,
        *,
        writing: Connection | None = None,
    ) -> None:
        self._ended = None if writing is None else threading.Event()  # set when a thread is done
        self._low = 0 if writing is None else settings.window // 2
        self._registry, self._progress, self._wake = registry, progress, wake
        self.claimed = progress.claimed = ClaimedRows()
        self.statistics = Statistics(connection)
        self.counting = Counting(
            indexer.url,
            application_name=f"embedworker count {worker.id}",
            answer_timeout=settings.answer_timeout,
        )
        self._scan = QueueScan(connection)
        self._pool = Pool(self.claimed)
        self._embedder = Embedder(self._pool, progress, settings, registry.use_threads, self._ended)
        self.returns = Returns(connection, worker.id, registry, self.claimed, settings)
        self._writer = Writer(
            connection,
            writing or connection,
            worker.id,
            registry,
            self.claimed,
            self.statistics,
            progress,
            settings,
            self._ended,
        )
        self.sweeps = Sweeps(
            connection, registry, self.returns, self.statistics, self.counting, settings, wake
        )
        self.maintenance = Maintenance(
            connection,
            registry,
            self.sweeps,
            self.statistics,
            self.counting,
            indexer,
            self._writer.pace,
        )
        self.reader = Reader(
            connection,
            registry,
            self.claimed,
            self._pool,
            self._embedder,
            self._writer,
            self.statistics,
            progress,
            wake,
        )
        self._intake = Intake(
            connection,
            worker.id,
            registry,
            self._scan,
            self.claimed,
            self._pool,
            self.reader,
            self._writer,
            progress,
            settings,
            wake,
            [self.returns.interval, *(chore.interval for _, chore in self.maintenance.chores)],
        )

    def step(self) -> bool:
        """Do one piece of work: a batch, or a refill. False: there was nothing to do."""
        self.maintenance.between_batches()
        if not (self._pool or self.busy):
            return self._refill() or self.maintenance.step()
        if self._embedder.hung:
            self._pause()  # what is claimed now would wait for its lease
            return True
        self._intake.take_fresh()
        self.returns.let_go()
        self._move_on()
        if not (self._writer.room and self._pool.takes_more(self._low) and self._refill()):
            self._pause()
        return True

    @property
    def busy(self) -> bool:
        """Whether texts are at the model, or results on their way into the database."""
        return self._embedder.busy or self._writer.busy

    def _move_on(self) -> None:
        """Give the model the next batch, and the writer what the model has made."""
        self._take_batches()
        if self._writer.room:
            self._embedder.feed()
        if self._ended is None:
            self._take_batches()
            self._writer.finish()
        self._writer.collect()
        self._writer.feed(idle=not (self._pool or self._embedder.busy))
        self.returns.let_go()

    def _take_batches(self) -> None:
        for batch in self._embedder.collect():
            self.maintenance.trimmer.worked()
            results, failures = batch.settle()
            self._writer.put(batch.loaded, results)
            self._writer.put_failures(failures)
            for source in batch.sources():
                self._registry.embedded(source, batch.unavailable)

    def _refill(self) -> bool:
        """Look for work, and fill the pool or sweep a page; False: there was nothing to do."""
        alone = not (self._pool or self.busy)
        if looked := alone or self._scan.due:
            self._wake.clear()
            self.look()
        worked = self._intake.fill(self._scan.ready(self._registry.active()), alone=alone)
        worked = self.reader.split_on() or worked
        if looked:
            self._scan.over()
        if self._ended is None:
            self._writer.finish()
        if not worked:
            worked = self.sweeps.step()
            self._scan.expect(self.sweeps.queued)
        self.returns.let_go()
        return worked

    def _pause(self) -> None:
        """Wait until a batch or a write is done, or a change is notified and may be looked for."""
        if self._ended is None:
            return
        until = time.monotonic() + FRESH_LOOK
        while time.monotonic() <= until:
            woken = self._wake.is_set() and self._scan.fresh_due(woken=True)
            if woken or self._ended.wait(TICK):
                break
        self._ended.clear()

    def look(self) -> None:
        """Look for work at all sources, and bring the list of them up to date."""
        rows = self._scan.poll()
        self._registry.follow({row.source: row.version for row in rows})
        self._progress.sources = self._registry.all
        self.sweeps.follow({row.source for row in rows if row.sweep and not row.paused})
        self.returns.let_go()
        self.returns.step()
        self.maintenance.look()

    def prepare(self) -> None:
        """Have the models of all sources loaded, before there are rows for them.

        Without it, a second worker let the rows of the first, which was killed, wait for 30 s.
        """
        for source in self._registry.active():
            self._registry.attempt(source, Step.LOAD, self._registry.load, source)

    @property
    def drained(self) -> bool:
        """Whether nothing is left that could be done now, for ``--once``."""
        held = self._pool or self.busy or self.reader.long_texts or self._scan.locked
        return self._scan.whole and not (held or self.sweeps.pending) and self.counting.settled

    def troubles(self) -> list[str]:
        """Return what stops sources at the moment, a sentence each."""
        return [*self._registry.troubles(), *self._scan.troubles(self._registry.active())]

    def hand_back(self, *, finish: bool = True) -> None:
        """Give back every claimed row untried, for another worker or the next start.

        ``finish``: what is at the model, or made already, is written before.
        """
        self._pool.clear()
        self.reader.clear()
        if finish:
            self._embedder.finish()
            self._take_batches()
            self._writer.finish()
        self.statistics.drop()
        if count := self.returns.everything():
            log.info("handed %s rows back", count)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        self._embedder.close()
        self._writer.close()
