"""Batches of texts of like length, without the same text twice."""

import random
from collections.abc import Iterator
from typing import Any, Final

from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

__all__ = ["LikeLength"]

POOL: Final = 8  # batches that are sorted by length together


class LikeLength(DefaultBatchSampler):
    """Shuffle, sort pools of a few batches by length, cut these into batches and shuffle them.

    Batches drawn at random were 63 % padding (facts of ko-strategyqa, 64 tokens at most). A
    question or text that stands in a batch already goes to a later one, because it would be a
    negative of its own question there. An epoch's order depends on the seed alone, so a training
    that was killed goes on with the same batches.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, seed: int = 0, **_: Any
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, seed=seed)
        self._texts = list(zip(dataset["anchor"], dataset["positive"], strict=True))

    def __len__(self) -> int:
        return len(self._texts) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        drawn = random.Random(f"{self.seed} {self.epoch}")  # noqa: S311  # no secret
        order = drawn.sample(range(len(self._texts)), len(self._texts))
        size = POOL * self.batch_size
        rest: list[int] = []
        batches: list[list[int]] = []
        for start in range(0, len(order), size):
            rest = sorted(rest + order[start : start + size], key=self._length)
            while len(batch := self._first(rest)) == self.batch_size:
                batches.append(batch)
                taken = set(batch)
                rest = [index for index in rest if index not in taken]
        drawn.shuffle(batches)
        return iter(batches[: len(self)])

    def _first(self, ordered: list[int]) -> list[int]:
        """Return the first that have no text in common, as many as a batch holds."""
        seen: set[str] = set()
        batch: list[int] = []
        for index in ordered:
            if seen.isdisjoint(self._texts[index]):
                seen.update(self._texts[index])
                batch.append(index)
            if len(batch) == self.batch_size:
                break
        return batch

    def _length(self, index: int) -> int:
        return len(self._texts[index][1])
