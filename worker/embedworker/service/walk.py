"""Walks over hundreds of sources in short stretches: new rows do not wait for the end of a walk."""

import time
from collections.abc import Iterator, Sequence
from threading import Event

from embedworker.queue.source import Source

__all__ = ["STRETCH", "Walk"]

STRETCH = 0.1  # seconds; 300 tables one after the other kept a new row waiting for up to 12 s


class Walk:
    """Goes through the sources in order of their numbers, and goes on where it stopped.

    A stretch ends after :data:`STRETCH`, or when ``wake`` is set. It has at least one source.
    """

    def __init__(self, wake: Event | None = None) -> None:
        self._wake = wake
        self._reached = 0

    @property
    def ended(self) -> bool:
        """Whether the last stretch reached the last source."""
        return self._reached == 0

    def stretch(self, sources: Sequence[Source]) -> Iterator[Source]:
        """Yield the sources of the next stretch."""
        ahead = [source for source in sources if source.id > self._reached]
        until = time.monotonic() + STRETCH
        for source in ahead:
            self._reached = source.id
            yield source
            woken = self._wake is not None and self._wake.is_set()
            if source is not ahead[-1] and (woken or time.monotonic() > until):
                return
        self._reached = 0
