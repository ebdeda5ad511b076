"""Texts on their way through the model: what is held, in which batches it goes, what is ready."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from worker.model import Tokens
from worker.model.batches import token_batches
from worker.queue.claim import Job
from worker.queue.complete import Passage, Result
from worker.service.embedding import Unit
from worker.service.models import Loaded

__all__ = ["Pool"]

Key = tuple[int, tuple[str, ...]]

LONG = 32  # passages; a text of more, about 16,000 tokens, lets all others go first


class Pool:
    """Jobs that are claimed and tokenised, planned into batches of similar length.

    Batches planned later go first: those are the changes that arrived while a window of backlog was
    being worked on.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[Loaded, list[Unit]]] = deque()
        self._waiting: dict[Key, tuple[Job, list[Passage | None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(
        self,
        loaded: Loaded,
        texts: Iterable[tuple[Job, Sequence[tuple[int, int, Tokens]]]],
        budget: int,
    ) -> None:
        """Plan jobs, each with its passages (start, end, tokens), in front of what is there.

        The passages of a very long text go behind everything: 1 MB are about a thousand, minutes of
        work on a CPU, and being the longest they would come first in batches by length.
        """
        units: list[Unit] = []
        of_long: list[Unit] = []
        for job, passages in texts:
            self._waiting[_key(job)] = (job, [None] * len(passages))
            (of_long if len(passages) > LONG else units).extend(
                Unit(job, number, start, end, tokens)
                for number, (start, end, tokens) in enumerate(passages)
            )
        self._batches.extendleft((loaded, batch) for batch in reversed(_by_length(units, budget)))
        self._batches.extend((loaded, batch) for batch in _by_length(of_long, budget))

    def next(self, budget_of: Callable[[Loaded], int]) -> tuple[Loaded, list[Unit]]:
        """Take the next batch; of one that was planned larger than its budget is now, a part."""
        loaded, units = self._batches.popleft()
        budget = budget_of(loaded)
        units = [unit for unit in units if self._is_waiting(unit.job)]
        if units:
            fits = max(1, budget // max(len(unit.tokens) for unit in units))
            if len(units) > fits:
                self._batches.appendleft((loaded, units[fits:]))
                units = units[:fits]
        return loaded, units

    def done(self, unit: Unit, passage: Passage) -> Result | None:
        """Put a passage's vector to its job; return the job's result once all are there."""
        if not self._is_waiting(unit.job):
            return None
        job, passages = self._waiting[_key(unit.job)]
        passages[unit.number] = passage
        ready = [made for made in passages if made is not None]
        if len(ready) < len(passages):
            return None
        del self._waiting[_key(job)]
        return Result(job, ready)

    def drop(self, job: Job) -> None:
        """Forget a job, of which some passages may still be planned."""
        if self._is_waiting(job):
            del self._waiting[_key(job)]

    def clear(self, source: int | None = None) -> list[Job]:
        """Forget every job, or those of one source, and return them."""
        jobs = [
            job for job, _ in self._waiting.values() if source is None or job.source.id == source
        ]
        for job in jobs:
            self.drop(job)
        if not self._waiting:
            self._batches.clear()
        return jobs

    def _is_waiting(self, job: Job) -> bool:
        # The very job: a newer text of the same row may have taken its place.
        entry = self._waiting.get(_key(job))
        return entry is not None and entry[0] is job


def _by_length(units: Sequence[Unit], budget: int) -> list[list[Unit]]:
    batches = token_batches([len(unit.tokens) for unit in units], budget)
    return [[units[index] for index in batch] for batch in batches]


def _key(job: Job) -> Key:
    return job.source.id, job.key
