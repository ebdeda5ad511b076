"""One batch through the model, down to the single text that cannot be embedded."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.model import Encoder, Tokens
from worker.queue.claim import Job
from worker.queue.complete import Passage

__all__ = ["Unit", "encode"]

log = logging.getLogger("embedworker.embedding")


@dataclass(frozen=True, slots=True)
class Unit:
    """A passage on its way through the model: its number in its job, [start, end), its tokens."""

    job: Job
    number: int
    start: int
    end: int
    tokens: Tokens


def encode(
    encoder: Encoder,
    units: Sequence[Unit],
    done: Callable[[Unit, Passage], None],
    failed: Callable[[Unit, str], None],
) -> int:
    """Embed the units, and call ``done`` or ``failed`` for each.

    A batch that fails is split until the culprit is alone; its neighbours are embedded. Returns how
    many texts the largest batch that went through had, so that a caller can keep to it when memory
    is short.
    """
    try:
        vectors = encoder.encode_tokens([unit.tokens for unit in units])
    except Exception as error:  # any failure of any model: the text is isolated and named
        if len(units) == 1:
            failed(units[0], f"{type(error).__name__}: {error}".strip())
            return 0
        log.debug("a batch of %s failed (%s); splitting it", len(units), type(error).__name__)
        middle = len(units) // 2
        return max(
            encode(encoder, units[:middle], done, failed),
            encode(encoder, units[middle:], done, failed),
        )
    for unit, vector in zip(units, vectors, strict=True):
        if np.isfinite(vector).all() and vector.any():
            done(unit, Passage(unit.start, unit.end, vector, unit.tokens.truncated))
        else:
            failed(unit, "the model made a vector that has no direction (NaN, infinite or all 0)")
    return len(units)
