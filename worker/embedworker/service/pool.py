"""Texts on their way to the model: what is planned, and in which batches it goes."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from embedworker.model import Tokens
from embedworker.model.batches import token_batches
from embedworker.queue.claim import Job
from embedworker.queue.complete import EmbeddedPassage, Result
from embedworker.service.claimed import ClaimedRows
from embedworker.service.models import Loaded

__all__ = ["Pool", "Text", "Twins", "Unit"]

MIXED = 16  # passages of a batch that is made up by chance
LONG = 32  # passages; a text of more, about 16,000 tokens, lets all others go first


@dataclass(slots=True, eq=False)
class Text:
    """The text of a claimed row, and the vectors of its passages that are made so far."""

    job: Job
    left: int
    made: dict[int, EmbeddedPassage] = field(default_factory=dict)

    @property
    def long(self) -> bool:
        """Whether it has so many passages that other texts go first."""
        return len(self.made) + self.left > LONG

    def done(self, number: int, passage: EmbeddedPassage) -> Result | None:
        """Put a passage's vector to the text; return the row's result once all are there."""
        self.made[number] = passage
        self.left -= 1
        if self.left:
            return None
        return Result(self.job, [self.made[at] for at in sorted(self.made)])


@dataclass(frozen=True, slots=True)
class Unit:
    """A passage on its way through the model: its number in its text, [start, end), its tokens."""

    text: Text
    number: int
    start: int
    end: int
    tokens: Tokens

    @property
    def job(self) -> Job:
        return self.text.job


Twins = list[Unit]
"""Passages of equal tokens: they go through the model once."""


class Pool:
    """Tokenised texts of claimed rows, planned into batches of similar length.

    Urgent ones go first: the changes that arrived while a window of backlog was being worked on.
    What is no longer claimed is left out when its turn comes.
    """

    def __init__(self, claimed: ClaimedRows) -> None:
        self._claimed = claimed
        self._batches: deque[tuple[Loaded, list[Twins]]] = deque()
        self._long: deque[tuple[Loaded, list[Twins]]] = deque()

    def __len__(self) -> int:
        """Return how many different passages are planned."""
        return sum(len(batch) for _, batch in [*self._batches, *self._long])

    def __bool__(self) -> bool:
        return bool(self._batches or self._long)

    @property
    def only_long(self) -> bool:
        """Whether very long texts are all that is planned."""
        return bool(self._long) and not self._batches

    def takes_more(self, low: int) -> bool:
        """Whether fewer than ``low`` passages are planned, and no very long text.

        With a refill before the last batch very long texts would never have their turn.
        """
        return not self._long and len(self) < low

    def add(
        self,
        loaded: Loaded,
        texts: Iterable[tuple[Job, Sequence[tuple[int, int, Tokens]]]],
        budget: int,
        *,
        mixed: bool = False,
        fresh: bool = False,
    ) -> None:
        """Plan jobs, each with its passages (start, end, tokens), behind what is there.

        ``fresh``: in front of it. ``mixed``: in small batches made up by chance. Rows that a table
        refuses may be of one length, and by length a batch of nothing else would come again and
        again. The passages of a very long text go behind everything: 1 MB are about a thousand,
        minutes of work on a CPU, and being the longest they would come first in batches by length.
        """
        units: list[Unit] = []
        of_long: list[Unit] = []
        for job, passages in texts:
            text = Text(job, len(passages))
            (of_long if text.long else units).extend(
                Unit(text, number, start, end, tokens)
                for number, (start, end, tokens) in enumerate(passages)
            )
        batches = _by_chance(units) if mixed else _by_length(units, budget)
        if fresh:
            self._batches.extendleft((loaded, batch) for batch in reversed(batches))
        else:
            self._batches.extend((loaded, batch) for batch in batches)
        self._long.extend((loaded, batch) for batch in _by_length(of_long, budget))

    def next(self, budget_of: Callable[[Loaded], int]) -> tuple[Loaded, list[Twins]] | None:
        """Take the next batch; of one that was planned larger than its budget is now, a part.

        None: nothing that is planned is claimed any more.
        """
        while self:
            batches = self._batches or self._long
            loaded, planned = batches.popleft()
            claimed = ([u for u in twins if u.job in self._claimed] for twins in planned)
            batch = [twins for twins in claimed if twins]
            if not batch:
                continue
            fits = max(1, budget_of(loaded) // max(len(twins[0].tokens) for twins in batch))
            if len(batch) > fits:
                batches.appendleft((loaded, batch[fits:]))
            return loaded, batch[:fits]
        return None

    def clear(self) -> None:
        """Forget everything that is planned."""
        self._batches.clear()
        self._long.clear()


def _by_chance(units: Sequence[Unit]) -> list[list[Twins]]:
    shuffled = [[unit] for unit in random.sample(units, len(units))]
    return [shuffled[at : at + MIXED] for at in range(0, len(shuffled), MIXED)]


def _by_length(units: Sequence[Unit], budget: int) -> list[list[Twins]]:
    groups: dict[tuple[int, ...], Twins] = {}
    for unit in units:
        groups.setdefault(unit.tokens.ids, []).append(unit)
    twins = list(groups.values())
    batches = token_batches([len(each[0].tokens) for each in twins], budget)
    return [[twins[index] for index in batch] for batch in batches]
