"""When sources are swept, and the sweep's pages between other work."""

import random
import time
from threading import Event

from embedworker.queue.source import Connection, Source
from embedworker.queue.statistics import Statistics
from embedworker.queue.sweep import Sweep, due_sweeps, request
from embedworker.service.counting import Counting
from embedworker.service.failpoints import failpoint
from embedworker.service.registry import Registry
from embedworker.service.returns import Returns
from embedworker.service.steps import Step
from embedworker.service.walk import Walk
from embedworker.settings import Settings

__all__ = ["Sweeps"]

SCHEDULE = 60.0  # seconds between looks at which sweeps are due


class Sweeps:
    """The sweeps that are asked for, due or under way."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        returns: Returns,
        statistics: Statistics,
        counting: Counting,
        settings: Settings,
        wake: Event,
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._returns = returns
        self._statistics = statistics
        self._counting = counting
        self._window = settings.window
        self.wake = wake
        self._begins, self._pages = Walk(wake), Walk(wake)
        self._running: set[int] = set()  # sources whose sweep is not through yet
        self._requested: set[int] = set()
        self.queued: set[int] = set()
        """Sources of which the last step queued rows."""
        self._scheduled_at: float | None = None
        # Jitter, so that many workers and sources do not all sweep at one moment of the night.
        self._interval = settings.sweep_interval * random.uniform(0.9, 1.0)  # noqa: S311

    @property
    def pending(self) -> bool:
        """Whether a sweep is asked for, or under way at a source that can be worked on.

        The check of a table may ask for one.
        """
        if self._requested or not self._registry.tables.checked:
            return True
        return any(self.runs(s) for s in self._registry.active())

    def runs(self, source: Source) -> bool:
        """Whether a sweep of the source is under way."""
        return source.id in self._running

    def follow(self, requested: set[int]) -> None:
        """Note which sweeps are asked for, and begin those and what is due."""
        self._requested = requested
        self._running &= {source.id for source in self._registry.all}
        self._schedule()
        active = self._registry.active()
        for source in self._begins.stretch([s for s in active if s.id in requested]):
            self._registry.attempt(source, Step.BEGIN_SWEEP, self._begin, source)

    def step(self) -> bool:
        """Look at pages of some sweeps until a window of rows is queued; whether there were any."""
        self.queued.clear()
        pages = [
            self._registry.attempt(source, Step.SWEEP, self._sweep, source)
            for source in self._pages.stretch([s for s in self._registry.active() if self.runs(s)])
        ]
        return any(pages) or not self._pages.ended

    def _schedule(self) -> None:
        now = time.monotonic()
        if self._scheduled_at is not None and now - self._scheduled_at < SCHEDULE:
            return
        self._scheduled_at = now
        due, unfinished = due_sweeps(self._connection, self._interval)
        for source in self._registry.active():
            if source.id in due:
                self._registry.attempt(source, Step.REQUEST_SWEEP, self._request, source)
            elif source.id in unfinished and not self.runs(source):
                self._registry.attempt(source, Step.BEGIN_SWEEP, self._begin, source)
        if self._registry.awaits:
            self._scheduled_at = None  # those whose model is being loaded were left out

    def _request(self, source: Source) -> None:
        request(self._connection, source, "schedule")
        self._requested.add(source.id)

    def _begin(self, source: Source) -> None:
        self._registry.load(source)
        if source.id in self._requested:
            with Sweep.turn(self._connection, source) as ours:
                if not ours:
                    return
                Sweep.begin(self._connection, source)
                self._counting.ask(source)
            self._returns.mend(source)
        self._running.add(source.id)
        self._requested.discard(source.id)

    def _sweep(self, source: Source) -> int:
        """Return how many pages were looked at."""
        fingerprint = self._registry.load(source).fingerprint
        queued = pages = 0
        while queued < self._window and not (pages and self.wake.is_set()):
            with Sweep.turn(self._connection, source) as ours:
                if not ours:
                    return pages
                # Made again each time: the table, its model, or the sweep may have changed.
                sweep = Sweep(self._connection, source, fingerprint)
                if not sweep.done:
                    page = sweep.page()
                    failpoint("in-sweep")
                    if not page.held:
                        return pages  # the next look reads the source again
                    queued += page.queued
                    if page.queued:
                        self.queued.add(source.id)
            pages += 1
            if sweep.done:
                self._running.discard(source.id)
                self._statistics.ask(source)
                self._counting.ask(source)
                break
        return pages
