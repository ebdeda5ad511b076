"""Results that wait to be written, so that one transaction writes many of them."""

import time
from dataclasses import dataclass, field

from embedworker.queue.claim import BACKFILL
from embedworker.queue.complete import Result
from embedworker.queue.source import Source
from embedworker.service.models import Loaded

__all__ = ["WaitingResults"]

TOGETHER = 512  # rows of a backfill that are written in one transaction
MOST_TOGETHER = 2048  # rows and passages of one transaction
LONGEST_WAIT = 0.5  # seconds that a row of a backfill waits for others


@dataclass(slots=True)
class _Waiting:
    """Results of one source and model that are to be written."""

    source: Source
    loaded: Loaded
    results: list[Result] = field(default_factory=list)
    passages: int = 0
    fresh: bool = False
    since: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.passages += len(result.passages)
        self.fresh = self.fresh or result.job.priority != BACKFILL

    def take(self) -> list[Result]:
        """Take as many results as are written in one transaction."""
        taken: list[Result] = []
        passages = 0
        while self.results and passages < MOST_TOGETHER:
            taken.append(self.results.pop())
            passages += 1 + len(taken[-1].passages)
        self.passages -= sum(len(result.passages) for result in taken)
        return taken

    @property
    def due(self) -> bool:
        return (
            self.fresh
            or len(self.results) >= TOGETHER
            or time.monotonic() - self.since > LONGEST_WAIT
        )


class WaitingResults:
    """Results by source and model.

    A change of the application is due at once, a backfill in larger transactions.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int, bool], _Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def passages(self) -> int:
        """How many passages wait."""
        return sum(waiting.passages for waiting in self._waiting.values())

    def add(self, loaded: Loaded, result: Result) -> None:
        """Have a result wait with others of its source and model."""
        source = result.job.source
        # Those that need no model apart: they are counted otherwise.
        key = source.id, loaded.fingerprint, bool(result.passages)
        self._waiting.setdefault(key, _Waiting(source, loaded)).add(result)

    def take(self, *, idle: bool) -> tuple[Source, Loaded, list[Result]] | None:
        """Take what is written next in one transaction; None where nothing is due.

        ``idle``: nothing else is under way, so that everything is due.
        """
        for key, waiting in self._waiting.items():
            if idle or waiting.due:
                taken = waiting.take()
                if not waiting.results:
                    del self._waiting[key]
                return waiting.source, waiting.loaded, taken
        return None
