"""The number format of a model on a processor: chosen by times, corrected by live batches."""

import logging
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from sentence_transformers import SentenceTransformer

from embedworker.model.cpu import has_bfloat16

__all__ = ["PROBE_TEXT", "Choice", "Trial", "choose", "name_of"]

log = logging.getLogger(__name__)

PROBE_TEXT: Final = "서울에서 부산까지 기차로 얼마나 걸리나요? How long is the train ride?"
TIMING_TEXTS: Final = [PROBE_TEXT * 4] * 8  # about 8 x 120 tokens: one CPU batch
TIMING_REPEATS: Final = 5
TOLERATED: Final = 1.1  # times the time in float32 that a batch in bfloat16 may take
CLEAR: Final = 0.9  # times the time in float32: below it, bfloat16 needs no trial with live batches
LONGEST_TURN: Final = 60.0  # seconds to wait for the lock; to time a model takes a few
LIVE_BATCHES: Final = 16  # of each model in a trial


@dataclass(frozen=True, slots=True)
class Choice:
    """The model to use. ``times`` says what was measured.

    ``rival`` is the model in the other format, if live batches shall decide between the two.
    """

    model: SentenceTransformer
    times: str | None = None
    rival: SentenceTransformer | None = None


def choose(model: SentenceTransformer) -> Choice:
    """Return a float32 model in the faster format of this processor.

    Where it has bfloat16 that is bfloat16, unless it measured slower by more than a tenth: what
    else runs at that moment changes the times by as much.
    """
    if not has_bfloat16():
        return Choice(model)
    rounded = deepcopy(model).bfloat16()
    exact, half = _seconds([model, rounded])
    faster = half <= exact * TOLERATED
    log.info(
        "a batch takes %.1f ms in float32, %.1f ms in bfloat16 with %s threads: %s is used",
        exact * 1e3,
        half * 1e3,
        torch.get_num_threads(),
        "bfloat16" if faster else "float32",
    )
    times = f"float32 {exact * 1e3:.1f} ms, bfloat16 {half * 1e3:.1f} ms"
    if half <= exact * CLEAR:
        return Choice(rounded, times)
    return Choice(rounded, times, model) if faster else Choice(model, times, rounded)


class Trial:
    """Gives live batches to two models by turns, until their times say which one stays."""

    def __init__(self, model: SentenceTransformer, rival: SentenceTransformer) -> None:
        self._models = [model, rival]
        self._times: list[list[float]] = [[], []]
        self._turn = 0
        self._lock = threading.Lock()

    def next(self) -> SentenceTransformer:
        """Return the model of the next batch."""
        with self._lock:
            self._turn = 1 - self._turn
            return self._models[1 - self._turn]

    def took(
        self, model: SentenceTransformer, tokens: int, seconds: float
    ) -> SentenceTransformer | None:
        """Note the time of a batch of padded tokens; return the model that stays, once known."""
        with self._lock:
            self._times[self._models.index(model)].append(seconds / tokens)
            if min(map(len, self._times)) < LIVE_BATCHES:
                return None
            medians = [statistics.median(times) for times in self._times]
        half = [model.dtype for model in self._models].index(torch.bfloat16)
        stays = half if medians[half] <= medians[1 - half] * TOLERATED else 1 - half
        log.info(
            "of %s live batches each, a token takes %s: %s is used from now on",
            LIVE_BATCHES,
            ", ".join(
                f"{seconds * 1e6:.1f} µs in {name_of(model)}"
                for model, seconds in zip(self._models, medians, strict=True)
            ),
            name_of(self._models[stays]),
        )
        return self._models[stays]


def name_of(model: SentenceTransformer) -> str:
    """Return the number format of a model, for example ``bfloat16``."""
    return str(model.dtype).removeprefix("torch.")


def _seconds(models: Sequence[SentenceTransformer]) -> list[float]:
    """Measure the fastest of a few batches of each model, in seconds; the first warms up.

    By turns, so that a slow moment of the machine hits all.
    """
    times: list[list[float]] = [[] for _ in models]
    with _timing_lock():
        for _ in range(1 + TIMING_REPEATS):
            for model, its in zip(models, times, strict=True):
                start = time.perf_counter()
                model.encode(TIMING_TEXTS, show_progress_bar=False)
                its.append(time.perf_counter() - start)
    return [min(its[1:]) for its in times]


@contextmanager
def _timing_lock() -> Iterator[None]:
    """Hold a lock that all processes of this user share, because what is timed must not compete.

    Both lanes of a worker start at once. If another process keeps it, the times are taken without.
    """
    folder = user_cache_path("embedworker")
    lock = FileLock(folder / "timing.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LONGEST_TURN)
    except (OSError, Timeout) as error:
        log.debug("the number formats are timed without a lock: %s", error)
        yield
        return
    try:
        yield
    finally:
        lock.release()
