"""The model of the HTTP server: one thread that serves everybody by turns, a batch at a time.

By turns, so that a question waits for one batch of a large request and not for all of it. Batches
of several requests are put together on a GPU only: a CPU gains nothing by larger batches (texts one
by one were the quickest of all sizes), it only answers later.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from embedworker.model.batches import token_batches
from embedworker.model.encoder import Encoder, Tokens, Vectors
from embedworker.service.logs import redacted
from embedworker.service.monitoring.health import Telemetry

__all__ = ["Busy", "EncodingJob", "Engine"]

log = logging.getLogger("embedworker.serve")

LANE = "http"
NEWEST = 0.2  # the last batch's share in what a batch takes


class Busy(Exception):
    """As many requests wait as may."""


class EncodingJob:
    """One request's texts on their way through the model."""

    def __init__(self, tokens: Sequence[Tokens], dimensions: int, budget: int) -> None:
        self.tokens = tokens
        self.batches = deque(token_batches([len(t) for t in tokens], budget))
        self.vectors: Vectors = np.empty((len(tokens), dimensions), np.float32)
        self.missing = len(tokens)
        self.future: Future[Vectors] = Future()


class Engine(threading.Thread):
    """``open_model`` is called in this thread, since its number of threads belongs to it.

    ``merge`` puts batches of several requests together; by default where the model is on a GPU.
    """

    def __init__(
        self,
        open_model: Callable[[], Encoder],
        *,
        waiting: int,
        telemetry: Telemetry,
        merge: bool | None = None,
    ) -> None:
        super().__init__(name="model", daemon=True)
        self._open_model = open_model
        self._most = waiting
        self._merge = merge
        self._telemetry = telemetry
        self._changed = threading.Condition()
        self._jobs: deque[EncodingJob] = deque()
        self._stopped = False
        self._seconds = 0.0  # of a recent batch
        self._encoder: Encoder | None = None
        self.error: BaseException | None = None
        """why the thread ended before its time: most often a model that could not be loaded"""

    @property
    def encoder(self) -> Encoder | None:
        """The model, once it is loaded."""
        return self._encoder

    def submit(self, tokens: Sequence[Tokens]) -> EncodingJob:
        """Queue the texts of a request; its future is their vectors, float32, in their order.

        Raises Busy when too many wait already.
        """
        assert self._encoder is not None, "the model is not loaded"  # noqa: S101
        job = EncodingJob(tokens, self._encoder.dimensions, self._encoder.token_budget)
        with self._changed:
            if len(self._jobs) >= self._most:
                raise Busy
            self._jobs.append(job)
            self._changed.notify()
        return job

    @property
    def waiting(self) -> int:
        """Requests that are not through yet, the one at the model not counted."""
        return len(self._jobs)

    @property
    def seconds_left(self) -> float:
        """About how long the batches of all requests that wait will take."""
        with self._changed:
            return self._seconds * sum(len(job.batches) for job in self._jobs)

    def stop(self) -> None:
        """End when nothing waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        try:
            encoder = self._load()
            merge = self._merge
            if merge is None:
                merge = not str(encoder.notes["device"]).startswith("cpu")
            while (batch := self._next(merge, encoder.token_budget)) is not None:
                self._encode(encoder, batch)
        except BaseException as error:
            self.error = error

    def _load(self) -> Encoder:
        started = time.monotonic()
        encoder = self._open_model()
        took = time.monotonic() - started
        name = encoder.fingerprint.model
        log.info("model %s loaded in %.1f s: %s", name, took, dict(encoder.notes))
        self._telemetry.metrics.model_load.labels(LANE, name).set(took)
        self._encoder = encoder
        return encoder

    def _next(self, merge: bool, budget: int) -> list[tuple[EncodingJob, int]] | None:
        """Return the next batch; None when there is none and will be none."""
        with self._changed:
            while True:
                while not self._jobs:
                    if self._stopped:
                        return None
                    self._telemetry.health.seen()
                    self._changed.wait()
                batch: list[tuple[EncodingJob, int]] = []
                width = 0
                for _ in range(len(self._jobs) if merge else 1):
                    job = self._jobs.popleft()
                    if job.future.done():
                        continue  # its client is gone, or one of its texts has failed
                    indices = job.batches[0]
                    wider = max(width, *(len(job.tokens[i]) for i in indices))
                    if batch and wider * (len(batch) + len(indices)) > budget:
                        self._jobs.append(job)
                        continue
                    width = wider
                    batch += [(job, index) for index in job.batches.popleft()]
                    if job.batches:
                        self._jobs.append(job)
                if batch:
                    return batch

    def _encode(self, encoder: Encoder, batch: Sequence[tuple[EncodingJob, int]]) -> None:
        telemetry = self._telemetry
        telemetry.health.at_model(True)
        started = time.monotonic()
        try:
            vectors = encoder.encode_tokens([job.tokens[index] for job, index in batch])
        except Exception as error:  # any failure of any model: the text is isolated
            if len(batch) > 1:
                middle = len(batch) // 2
                self._encode(encoder, batch[:middle])
                self._encode(encoder, batch[middle:])
                return
            log.warning("a text has no vector: %s", redacted(error))
            telemetry.health.failed(1, "at the model")
            _settle(batch[0][0], error)
            return
        finally:
            telemetry.health.at_model(False)
        took = time.monotonic() - started
        self._seconds += NEWEST * (took - self._seconds) if self._seconds else took
        telemetry.metrics.phase.labels("encode").observe(took)
        telemetry.metrics.batches.labels(LANE).inc()
        telemetry.metrics.passages.labels(LANE).inc(len(batch))
        telemetry.metrics.tokens.labels(LANE).inc(sum(len(job.tokens[i]) for job, i in batch))
        telemetry.health.did(len(batch))
        for (job, index), vector in zip(batch, vectors, strict=True):
            job.vectors[index] = vector
            job.missing -= 1
            if job.missing == 0:
                _settle(job, None)


def _settle(job: EncodingJob, error: Exception | None) -> None:
    if job.future.done() or not job.future.set_running_or_notify_cancel():
        return
    if error is None:
        job.future.set_result(job.vectors)
    else:
        job.future.set_exception(error)
