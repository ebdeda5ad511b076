"""The lane that keeps vectors current, over one session after another."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from embedworker.database.connect import connect
from embedworker.database.connection import Connection
from embedworker.service import idle
from embedworker.service.indexing import Indexer
from embedworker.service.lane import LaneRunner
from embedworker.service.passages import PassageLane
from embedworker.service.registry import Registry
from embedworker.service.session import Session

__all__ = ["PassageRunner"]

STOPPED = "the worker was stopped before it had embedded all rows; the next run goes on with them"


class PassageRunner(LaneRunner):
    """Runs :class:`PassageLane` in the calling thread."""

    lane = "passages"
    channel = "embed"

    def drain(self) -> list[str]:
        """Embed everything that is due now; return what stood in the way, a sentence each.

        Raises EmbedworkerError when the database cannot be used.
        """
        try:
            with self.session() as current:
                with self._made_lane(current, wake=current.wake) as (registry, indexer, lane):
                    idle = 0
                    # Twice idle: what a look finds changed in a table is swept at the next.
                    while not self._stopped.is_set() and idle < 2:
                        if lane.step():
                            idle = 0
                        elif registry.awaits:  # nothing is to be left for later
                            current.wake.wait(self._settings.poll_min)
                        elif lane.drained or lane.troubles():
                            idle += 1
                            # One index at a time: other sources may need one, too.
                            if idle == 2 and indexer.wait():
                                idle = 0
                        else:
                            current.wake.wait(self._settings.poll_min)
                    early = idle < 2
                indexer.wait()
                return [*lane.troubles(), *([STOPPED] if early else [])]
        finally:
            self.strike_failed()

    def serve(self, current: Session, succeeded: Callable[[], None]) -> None:
        """Keep vectors current until the worker stops, or an error ends the session."""
        shortest, longest = self._settings.poll_min, self._settings.poll_max
        pause = shortest
        prepared = False
        health = current.progress.telemetry.health
        with self._made_lane(current, wake=current.wake) as (registry, _, lane):
            while not self._stopped.is_set():
                worked = lane.step()
                if not (worked and prepared):
                    lane.prepare()
                    prepared = True
                if not registry.awaits:
                    self.ready.set()  # models of what is enabled are loaded by then
                health.seen()
                health.in_trouble(registry.stopped())
                current.progress.model = registry.model
                succeeded()
                if worked:
                    pause = shortest
                    continue
                # After a wake-up the pauses start over: rows of transactions that did not get to
                # notify are found within poll_min.
                woken = current.wake.wait(pause)
                pause = shortest if woken else min(pause * 2, idle.pause(longest))

    @contextmanager
    def _made_lane(
        self, current: Session, *, wake: threading.Event
    ) -> Iterator[tuple[Registry, Indexer, PassageLane]]:
        """Make the lane, and hand back what it holds at the end, in order or not."""
        with connect(
            self._url,
            lock_timeout=self._settings.lock_timeout,
            application_name=f"embedworker write {current.worker.id}",
            answer_timeout=self._settings.answer_timeout,
            all_rows=True,
            synchronous=False,
            writing=True,
        ) as writing:
            registry = Registry(current.connection, self.models, wake=wake)
            registry.share = self._share
            indexer = self._make_indexer(current)
            lane = self._make_lane(current, registry, indexer, writing)
            try:
                yield registry, indexer, lane
            except BaseException:
                with suppress(psycopg.Error):  # the lost connection may be why we are here
                    lane.hand_back(finish=False)
                raise
            else:
                lane.hand_back()
            finally:
                lane.close()

    def _make_indexer(self, current: Session) -> Indexer:
        return Indexer(
            self._url,
            direct_url=self._settings.listen_url,
            after_rows=self._settings.index_after_rows,
            words_after_rows=self._settings.words_index_after_rows,
            memory=self._settings.index_memory,
            metrics=self.telemetry.metrics,
            application_name=f"embedworker index {current.worker.id}",
            answer_timeout=self._settings.answer_timeout,
        )

    def _make_lane(
        self, current: Session, registry: Registry, indexer: Indexer, writing: Connection
    ) -> PassageLane:
        return PassageLane(
            current.connection,
            current.worker,
            registry,
            current.progress,
            self._settings,
            indexer,
            current.wake,
            writing=writing,
        )
