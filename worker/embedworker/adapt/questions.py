"""The judged questions of a table, split so that no question is both learned and asked."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embedworker.errors import SourceError
from embedworker.normalization import normalized

__all__ = ["FEWEST", "Split", "split"]

FEWEST: Final = 200
"""Questions. Of 200, about 40 are held out, and the standard error of their mean difference is near
0.03, because the standard deviation of one question's difference in nDCG@10 is near 0.2."""

TENTHS: Final = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}
SPREAD: Final = 0.2  # of the differences of nDCG@10 of single questions, about

Relevance = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Split:
    """By question, the grades of its rows: seven, one and two tenths of the questions."""

    train: Relevance
    validation: Relevance
    test: Relevance

    def __str__(self) -> str:
        return (
            f"{len(self.train)} questions to train on, {len(self.validation)} to choose by, "
            f"{len(self.test)} held out"
        )


def split(relevance: Mapping[str, Mapping[str, int]], seed: int, fewest: int = FEWEST) -> Split:
    """Split judged questions by a hash of the question, so that a later run splits alike.

    Questions that differ in case, blanks or punctuation alone are one question here: they go to the
    same part.

    Raises:
        SourceError: there are fewer than ``fewest`` different questions; says what so few can show.
    """
    different = {_plain(question) for question in relevance}
    if len(different) < fewest:
        held_out = max(1, len(different) * len(TENTHS["test"]) // 10)
        raise SourceError(
            f"{len(different)} different questions are judged, and {fewest} are needed: of so few, "
            f"{held_out} would be held out, and a gain below {2 * SPREAD / held_out**0.5:.2f} "
            "nDCG@10 could not be told from chance; add some with `embedworker judgements import`"
        )
    parts: dict[str, Relevance] = {name: {} for name in TENTHS}
    for question, grades in relevance.items():
        digest = hashlib.sha256(f"{seed} {_plain(question)}".encode()).digest()
        tenth = int.from_bytes(digest[:8]) % 10
        name = next(name for name, tenths in TENTHS.items() if tenth in tenths)
        parts[name][question] = dict(grades)
    return Split(**parts)


def _plain(question: str) -> str:
    text = normalized("NFKC", question).casefold()
    return re.sub(r"[\W_]+", "", text) or text
