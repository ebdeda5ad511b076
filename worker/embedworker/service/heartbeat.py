"""Keeps what the worker holds: leases, its sign of life, and an eye on its peers and on itself."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence, Sized

from embedworker.database import connection as database
from embedworker.database.connect import connect
from embedworker.queue.lease import (
    Identity,
    dead_workers,
    extend,
    record_heartbeat,
    retire,
    take_liveness_lock,
)
from embedworker.queue.source import Connection, Source, load_sources
from embedworker.service import idle
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.outages import outages_of
from embedworker.service.retry import Backoff
from embedworker.service.threads import Thread

__all__ = ["HUNG", "Heartbeat", "Progress"]

log = logging.getLogger("embedworker.heartbeat")

TICK = 1.0  # seconds: a killed peer's rows are free within two
SEEN = 5.0  # seconds between signs of life; peers believe in a worker for three of them at least
HUNG = 70  # exit code of a worker whose model did not come back


class Progress:
    """What a lane tells its heartbeat thread, in plain attributes: one writes, one reads."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self.telemetry = telemetry or Telemetry()
        self.embedded = 0
        self.claimed: Sized = ()
        self.sources: Sequence[Source] = ()
        self.model: str | None = None
        self.batch_since: float | None = None


class Heartbeat(Thread):
    """A thread next to a lane, so that a long batch neither loses its lease nor looks dead.

    ``lock_held`` says whether the worker's listener holds the lock that shows it is alive. None:
    there is no listener, and this thread holds the lock.
    """

    def __init__(
        self,
        url: str,
        worker: Identity,
        progress: Progress,
        *,
        lease: float,
        batch_timeout: float,
        answer_timeout: float,
        lock_held: Callable[[], bool] | None,
        wake: Callable[[], None],
        exit_when_hung: bool = True,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._url = url
        self._worker = worker
        self._progress = progress
        self._lease = lease
        self._batch_timeout = batch_timeout
        self._answer_timeout = answer_timeout
        self._holds = False
        self._takes_lock = lock_held is None
        self._lock_held = lock_held or (lambda: self._holds)
        self.tried = threading.Event()
        """Set once this thread tried for the lock, where it is to hold it."""
        self._wake = wake
        self._exit_when_hung = exit_when_hung
        self._hung_since: float | None = None
        self._stopped = threading.Event()
        self._counted = 0
        self._seen_at = self._extended_at = time.monotonic()

    def run(self) -> None:
        backoff = Backoff(log, "the connection that keeps leases", outages=outages_of(self._url))
        backoff.keep_trying(lambda: self._keep(backoff), self._stopped, lost=lambda _: self._hung())

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(timeout=2 * TICK)

    def _keep(self, backoff: Backoff) -> None:
        with connect(
            self._url,
            application_name=f"embedworker keep {self._worker.id}",
            answer_timeout=self._answer_timeout,
            synchronous=False,
        ) as connection:
            try:
                while not self._stopped.is_set():
                    self._hold(connection)
                    self._tick(connection)
                    backoff.success()
                    self._stopped.wait(min(idle.pause(TICK), self._lease / 3))
            finally:
                self._holds = False

    def _hold(self, connection: database.Connection) -> None:
        if not self._takes_lock or self._holds:
            return
        # A pooler would give the session, and with it the lock, to somebody else.
        self._holds = not connection.pooled and take_liveness_lock(connection, self._worker)
        self.tried.set()

    def _tick(self, connection: Connection) -> None:
        hung = self._hung()
        now = time.monotonic()
        progress = self._progress
        if progress.claimed and not hung and now - self._extended_at >= self._lease / 3:
            extend(connection, progress.sources, self._worker.id, self._lease)
            self._extended_at = now
        if now - self._seen_at >= SEEN:
            done = progress.embedded - self._counted
            record_heartbeat(
                connection,
                self._worker,
                embedded=done,
                rows_per_second=done / (now - self._seen_at),
                model=progress.model,
                lock_held=self._lock_held(),
            )
            self._counted += done
            self._seen_at = now
        self._rescue_dead_workers(connection)

    def _rescue_dead_workers(self, connection: Connection) -> None:
        _, gone = dead_workers(connection, self._worker.id, lease=self._lease)
        if not gone:
            return
        # Not the lane's list: at the start, and in the lane of questions, it is empty.
        sources = load_sources(connection)
        for number in gone:
            freed = retire(connection, sources, number)
            if freed is None:
                continue
            log.info("worker %s is dead; released its %s rows", number, freed)
            self._wake()

    def _hung(self) -> bool:
        since = self._progress.batch_since
        if since is None or time.monotonic() - since <= self._batch_timeout:
            return False
        if since != self._hung_since:
            self._hung_since = since
            log.critical(
                "a batch has been with the model for more than %g s (EMBEDWORKER_BATCH_TIMEOUT); "
                "%s",
                self._batch_timeout,
                "ending the process" if self._exit_when_hung else "its rows go to other workers",
            )
        if self._exit_when_hung:
            # Nothing in this process can stop a model call; the rows are freed by its end.
            logging.shutdown()
            os._exit(HUNG)
        # The process is an application's: it goes on, and the lease runs out.
        return True
