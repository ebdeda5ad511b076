"""Rows that are handed back: of sources in trouble, at the end, and whatever was forgotten."""

import logging

import psycopg

from embedworker.queue.failure import mend, release_held
from embedworker.queue.interval import IdleInterval
from embedworker.queue.lease import release_rows_of
from embedworker.queue.source import Connection, Source
from embedworker.service.claimed import ClaimedRows
from embedworker.service.registry import Registry
from embedworker.service.steps import Step
from embedworker.service.walk import Walk
from embedworker.settings import Settings

__all__ = ["Returns"]

log = logging.getLogger("embedworker.passages")


class Returns:
    """Hands claimed rows back untried. What cannot be handed back now stays listed as claimed."""

    def __init__(
        self,
        connection: Connection,
        worker: int,
        registry: Registry,
        claimed: ClaimedRows,
        settings: Settings,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._registry = registry
        self._claimed = claimed
        self._backoff_max = settings.backoff_max
        self.interval = IdleInterval(settings.lease / 3)
        self._walk = Walk()

    def let_go(self) -> None:
        """Hand back what is held of sources that were stopped by a failure."""
        for number in self._registry.quarantine.take_fallen():
            self._claimed.give_up(number)
            self._try(number)

    def step(self) -> None:
        """Hand back what could not be handed back before, and rows that were forgotten.

        The heartbeat extends the leases of all that this worker holds, as long as it works. So a
        row that it has forgotten waits for ever.
        """
        known = {source.id for source in self._registry.all}
        for number in self._claimed.sources():
            if number not in known:
                self._claimed.forget(number)
        active = self._registry.active()
        for source in active:
            if self._claimed.given_up(source.id):
                self._registry.attempt(source, Step.RELEASE, self._release, source.id)
        for source in self._walk.stretch(active):
            if not self._claimed.any_of(source.id) and self.interval.due(source.id):
                self._registry.attempt(source, Step.FORGOTTEN, self._free_forgotten, source)
                self._registry.attempt(source, Step.MEND, self.mend, source)

    def everything(self) -> int:
        """Hand back all that is held; return how many rows that were.

        Raises what kept rows of one source from being handed back, after all others were.
        """
        count = len(self._claimed)
        failures = []
        for number in self._claimed.sources():
            self._claimed.give_up(number)
            failures.append(self._try(number))
        for failure in failures:
            if failure is not None:
                raise failure
        return count

    def mend(self, source: Source) -> None:
        """Make rows due that the clock of the server put off for too long."""
        mended = mend(self._connection, source, longest_backoff=self._backoff_max)
        if mended:
            log.warning(
                "source %s: %s rows were put off for longer than EMBEDWORKER_BACKOFF_MAX, "
                "as when the server's clock was ahead; they are due now",
                source,
                mended,
            )

    def _try(self, number: int) -> Exception | None:
        """Hand the rows of one source back; whatever keeps them is that source's trouble."""
        try:
            self._release(number)
        except psycopg.errors.UndefinedTable:
            self._claimed.forget(number)  # dropped with its queue: nothing is held any more
        except Exception as error:
            if self._connection.closed:
                raise
            return error
        return None

    def _release(self, number: int) -> None:
        jobs = self._claimed.given_up(number)
        release_held(self._connection, jobs, worker=self._worker)
        self._claimed.remove(jobs)

    def _free_forgotten(self, source: Source) -> None:
        forgotten, _ = release_rows_of(self._connection, [source], self._worker)
        if forgotten:
            log.error("source %s: %s rows were held and forgotten", source, forgotten)
