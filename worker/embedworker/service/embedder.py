"""One batch through the model, down to the single text that cannot be embedded."""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event, get_ident

import numpy as np

from embedworker.errors import DimensionMismatch, EmbedworkerError, EndpointUnavailable, ModelError
from embedworker.model.batches import CPU_TOKEN_BUDGET
from embedworker.queue.claim import Job
from embedworker.queue.complete import EmbeddedPassage, Result
from embedworker.queue.failure import halved
from embedworker.queue.source import Source
from embedworker.service.failpoints import failpoint
from embedworker.service.heartbeat import Progress
from embedworker.service.models import Loaded
from embedworker.service.pool import Pool, Twins, Unit
from embedworker.service.stage import Stage
from embedworker.settings import Settings

__all__ = ["Embedded", "Embedder"]

log = logging.getLogger("embedworker.embedding")

FAST = 0.05  # seconds of a batch
NO_DIRECTION = "the model made a vector that has no direction (NaN, infinite or all 0)"


@dataclass(slots=True)
class Embedded:
    """What became of a batch: passages with their vectors, and passages that failed, with why."""

    loaded: Loaded
    planned: Sequence[Twins]
    made: list[tuple[Unit, EmbeddedPassage]] = field(default_factory=list)
    failures: list[tuple[Unit, str]] = field(default_factory=list)
    unavailable: ModelError | None = None
    """why the rest of the batch was not tried"""
    seconds: float = 0.0
    largest: int = 0
    """different texts of the largest part of the batch that went through"""

    def sources(self) -> list[Source]:
        """Return the sources of the batch, each once."""
        found = {unit.job.source.id: unit.job.source for twins in self.planned for unit in twins}
        return list(found.values())

    def settle(self) -> tuple[list[Result], list[tuple[Job, str]]]:
        """Return the rows whose passages are all made, and the rows that failed."""
        failures = {id(unit.text): (unit.job, why) for unit, why in self.failures}
        results = [unit.text.done(unit.number, passage) for unit, passage in self.made]
        return [made for made in results if made is not None], list(failures.values())


class Embedder:
    """Takes batches from the pool through their model; the only user of the encoders."""

    def __init__(
        self,
        pool: Pool,
        progress: Progress,
        settings: Settings,
        use_threads: Callable[[], None],
        ended: Event | None,
    ) -> None:
        self._pool = pool
        self._progress = progress
        self._metrics = progress.telemetry.metrics
        self._health = progress.telemetry.health
        self._batch_tokens = settings.batch_tokens
        self._batch_timeout = settings.batch_timeout
        self._use_threads = use_threads
        self._ready: set[tuple[int, str]] = set()
        self._stage: Stage[Embedded] = Stage("model", ended)
        self._depth = 1
        self._shrink = 1.0
        self._logged: set[tuple[str, int]] = set()

    def budget(self, loaded: Loaded) -> int:
        """Return the padded tokens that a batch may have now."""
        budget = self._batch_tokens or loaded.encoder.token_budget or CPU_TOKEN_BUDGET
        return max(1, int(budget * self._shrink))

    @property
    def busy(self) -> bool:
        """Whether a batch is at the model, or back and not collected yet."""
        return len(self._stage) > 0

    @property
    def hung(self) -> bool:
        """Whether a batch has been at the model for longer than EMBEDWORKER_BATCH_TIMEOUT."""
        since = self._progress.batch_since
        return since is not None and time.monotonic() - since > self._batch_timeout

    def feed(self) -> None:
        """Give the model batches of the pool, as many as it has room for."""
        while len(self._stage) < self._depth:
            batch = self._pool.next(self.budget)
            if batch is None:
                return
            self._stage.give(partial(batch[0].call, partial(self._run, *batch)))

    def collect(self) -> list[Embedded]:
        """Return the batches that are back."""
        batches = [future.result() for future in self._stage.collect()]
        for batch in batches:
            self._account(batch)
        return batches

    def finish(self) -> None:
        """Wait for the batch at the model; the next one is not begun."""
        self._stage.finish()

    def close(self) -> None:
        """Let the thread end after the batch at the model."""
        self._stage.close()

    def _run(self, loaded: Loaded, planned: Sequence[Twins]) -> Embedded:
        """Embed a batch. A text that cannot be embedded fails alone."""
        here = get_ident(), loaded.name
        if here not in self._ready:
            self._use_threads()  # the number of threads belongs to the thread that uses the model
            self._ready.add(here)
        batch = Embedded(loaded, planned)
        started = time.monotonic()
        self._progress.batch_since = started
        self._health.at_model(True)
        try:
            with self._metrics.phase.labels("encode").time():
                refused = halved(planned, lambda part: _encode(batch, part), _may_be_a_text)
        except (EndpointUnavailable, DimensionMismatch) as why:
            batch.unavailable = why
            refused = []
        finally:
            self._progress.batch_since = None
            self._health.at_model(False)
        for twins, error in refused:
            batch.failures += [(unit, _described(error)) for unit in twins]
            self._log_unforeseen(twins[0], error)
        batch.seconds = time.monotonic() - started
        failpoint("after-embed")
        return batch

    def _account(self, batch: Embedded) -> None:
        """Adapt the size of batches to one that is back, and report it."""
        # Of a fast model a second batch waits beside the first, so that it does not wait for us.
        # Of a slow one, fresh rows would wait for both.
        self._depth = 2 if batch.seconds < FAST else 1
        shrunk = batch.largest < len(batch.planned) and not (batch.failures or batch.unavailable)
        # Smaller where only halves went through (memory), and slowly larger again.
        self._shrink = max(self._shrink / 2, 1 / 64) if shrunk else min(self._shrink * 1.1, 1.0)
        if batch.failures:
            self._health.failed(len({id(unit.text) for unit, _ in batch.failures}), "at the model")
        texts = sum(map(len, batch.planned))
        tokens = sum(len(twins[0].tokens) for twins in batch.planned)  # that were computed
        fields = {
            "source": str(batch.planned[0][0].job.source),
            "texts": texts,
            "failed": len(batch.failures),
            "tokens": tokens,
            "milliseconds": round(1000 * batch.seconds),
        }
        log.debug(
            "batch of %(source)s: %(texts)s texts, %(tokens)s tokens, %(milliseconds)s ms",
            fields,
            extra={"fields": fields},
        )
        lane = self._progress.telemetry.lane
        self._metrics.batches.labels(lane).inc()
        self._metrics.passages.labels(lane).inc(texts)
        self._metrics.tokens.labels(lane).inc(tokens)

    def _log_unforeseen(self, unit: Unit, error: Exception) -> None:
        """Log the first of a kind with its traceback, without its words: they may quote a row."""
        if isinstance(error, EmbedworkerError):
            return
        frames = traceback.extract_tb(error.__traceback__)
        kind = type(error).__qualname__, frames[-1].lineno or 0
        if kind in self._logged:
            return
        self._logged.add(kind)
        log.error(
            "source %s: the model raised an unforeseen %s for a text; please report it:\n%s",
            unit.job.source,
            type(error).__qualname__,
            "".join(traceback.format_list(frames)).rstrip(),
        )


def _encode(batch: Embedded, part: Sequence[Twins]) -> None:
    vectors = batch.loaded.encoder.encode_tokens([twins[0].tokens for twins in part])
    for twins, vector in zip(part, vectors, strict=True):
        directed = np.isfinite(vector).all() and vector.any()
        for unit in twins:
            if directed:
                passage = EmbeddedPassage(unit.start, unit.end, vector, unit.tokens.truncated)
                batch.made.append((unit, passage))
            else:
                batch.failures.append((unit, NO_DIRECTION))
    batch.largest = max(batch.largest, len(part))


def _may_be_a_text(error: Exception) -> bool:
    """Any failure of a model may be that of one text, which is isolated and named."""
    if isinstance(error, EndpointUnavailable | DimensionMismatch):
        return False
    log.debug("a batch failed (%s); trying its halves", type(error).__name__)
    return True


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()
