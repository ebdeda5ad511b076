"""The query lane: takes questions that wait in ``embed.question`` and writes their vectors."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple
from uuid import UUID

import psycopg

from embedworker.database.connection import keeps_session
from embedworker.database.statements import statement
from embedworker.errors import EmbedworkerError, EndpointUnavailable
from embedworker.model.encoder import Encoder, Vectors
from embedworker.model.lexical import question_terms
from embedworker.queue.source import Connection
from embedworker.service.models import Loaded
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.outages import FailureLog

__all__ = ["BATCH", "PUT_BACK", "QuestionLane", "reason"]

LEASE = 5.0  # seconds until another worker may take a question over
BATCH = 8  # questions in one forward; also what one claim takes, so that other workers share
PUT_BACK = 0.2  # seconds until a question is looked at again whose model cannot answer yet
PATIENT = 3.0  # seconds that a question waits for an endpoint that answers nobody
SHORT = 200  # characters; longer ones go alone, or short ones would pay for their padding
CACHE_KEEP = 10_000  # vectors
CACHE_STEP = 256  # vectors kept between two evictions, of up to twice as many
ABANDONED_AFTER = 120.0  # seconds; twice the longest embed.query_timeout
ABANDONED_INTERVAL = 30.0  # seconds between looks for them

log = logging.getLogger("embedworker.questions")


class _Question(NamedTuple):
    """One row of the query ``questions_claim``."""

    id: UUID
    model: str
    text: str
    role: Literal["query", "passage"]
    hash: bytes
    waited: float
    locked: bool


class QuestionLane:
    """Answers questions, a handful at a time. Not for use from several threads at once.

    ``load`` returns the model of a name (:meth:`embedworker.service.models.Models.ready`); what it
    raises becomes the answer. With None, the questions wait: those of other models are answered
    meanwhile, and another worker may have it.
    """

    def __init__(
        self, load: Callable[[Connection, str], Loaded | None], telemetry: Telemetry | None = None
    ) -> None:
        self._load = load
        self._failures = FailureLog(log)
        self._telemetry = telemetry or Telemetry("questions")
        self._claimed_at = 0.0
        self._kept = 0
        self._next_look = 0.0
        self.put_back = 0
        """How many of the questions of the last call are still to be answered."""

    def __repr__(self) -> str:
        return f"<QuestionLane kept={self._kept}>"

    def answer_once(self, connection: Connection, worker_id: int) -> int:
        """Claim up to ``BATCH`` waiting questions, answer them, and return how many there were.

        ``connection`` is in autocommit mode: no transaction is open while the model runs. A number
        below ``BATCH`` says that nothing else was waiting.
        """
        claimed = connection.execute(
            statement("questions_claim"),
            {
                "limit": BATCH,
                "lease": LEASE,
                "worker": worker_id,
                "keep_lock": keeps_session(connection),
            },
        ).fetchall()
        self._claimed_at = time.monotonic()
        self.put_back = 0
        for batch in _batches(_Question(*row) for row in claimed):
            self._answer(connection, worker_id, batch)
        if self._kept >= CACHE_STEP:
            connection.execute(
                statement("questions_evict"), {"keep": CACHE_KEEP, "limit": 2 * CACHE_STEP}
            )
            self._kept = 0
        if time.monotonic() >= self._next_look:
            # Before them: one that fails again and again would leave no time for questions.
            self._next_look = time.monotonic() + ABANDONED_INTERVAL
            connection.execute(statement("questions_abandoned"), {"age": ABANDONED_AFTER})
            connection.execute(statement("questions_learn"))
        return len(claimed)

    def _answer(self, connection: Connection, worker: int, batch: Sequence[_Question]) -> None:
        loading = True
        try:
            model = self._load(connection, batch[0].model)
            loading = False
            if model is None:
                self._put_back(connection, worker, batch)
                return
            vectors, lost = model.call(partial(self._encode, model.encoder, batch))
        except psycopg.Error:
            raise  # the connection's trouble, not the question's: the lease brings it round again
        except Exception as error:
            waited = max(q.waited for q in batch) + time.monotonic() - self._claimed_at
            if isinstance(error, EndpointUnavailable) and waited < PATIENT:
                self._put_back(connection, worker, batch)
                return
            # Whatever it was, somebody waits: a reason now is better than silence until a time-out.
            if len(batch) > 1:
                for question in batch:
                    self._answer(connection, worker, [question])
                return
            # A model that cannot be loaded is said by the one who tried.
            if not (loading and isinstance(error, EmbedworkerError)):
                self._failures.say("question %s has no vector", batch[0].id, error)
            self._refuse(connection, worker, batch[0], error)
            return
        # Only questions are kept: hash and fingerprint do not tell a passage from one.
        keep = batch[0].role == "query"
        words = [question_terms(q.text) for q in batch]
        connection.execute(
            statement("questions_answer"),
            {
                "ids": [q.id for q in batch],
                "hashes": [q.hash for q in batch],
                "vectors": list(vectors),
                "terms": [_array(terms) for terms, _ in words],
                "shares": [_array(shares) for _, shares in words],
                "lost": lost,
                "fingerprint": model.fingerprint,
                "keep": keep,
                "worker": worker,
                "locked": [q.locked for q in batch],
            },
        )
        self._kept += len(batch) if keep else 0
        self._telemetry.health.did(len(batch))
        metrics = self._telemetry.metrics
        metrics.questions.labels("answered").inc(len(batch))
        took = time.monotonic() - self._claimed_at
        for question in batch:
            metrics.question_seconds.observe(question.waited + took)

    def _put_back(self, connection: Connection, worker: int, batch: Sequence[_Question]) -> None:
        connection.execute(
            statement("questions_put_back"),
            {"ids": [q.id for q in batch], "delay": PUT_BACK, "worker": worker},
        )
        _unlock(connection, batch)
        self.put_back += len(batch)

    def _refuse(
        self, connection: Connection, worker: int, question: _Question, error: Exception
    ) -> None:
        connection.execute(
            statement("questions_fail"),
            {"ids": [question.id], "errors": [reason(error)], "worker": worker},
        )
        _unlock(connection, [question])
        self._telemetry.metrics.questions.labels("failed").inc()
        self._telemetry.health.failed(1, "at the model")

    def _encode(self, encoder: Encoder, batch: Sequence[_Question]) -> tuple[Vectors, list[int]]:
        """Return the vectors, and how many tokens of each question did not fit."""
        telemetry = self._telemetry
        telemetry.health.at_model(True)
        try:
            asked = batch[0].role == "query"
            tokenize = encoder.tokenize_queries if asked else encoder.tokenize_passages
            tokens = tokenize([question.text for question in batch])
            return encoder.encode_tokens(tokens), [t.total - len(t) for t in tokens]
        finally:
            telemetry.health.at_model(False)
            telemetry.metrics.batches.labels(telemetry.lane).inc()
            telemetry.metrics.passages.labels(telemetry.lane).inc(len(batch))


def _unlock(connection: Connection, batch: Sequence[_Question]) -> None:
    connection.execute(
        statement("questions_unlock"),
        {"ids": [q.id for q in batch], "locked": [q.locked for q in batch]},
    )


def _batches(questions: Iterable[_Question]) -> Iterator[list[_Question]]:
    """Questions of one model and role, the short ones together and each long one alone."""

    def kind(question: _Question) -> tuple[str, str]:
        return question.model, question.role

    for _, group in groupby(sorted(questions, key=kind), key=kind):
        short = []
        for question in group:
            if len(question.text) <= SHORT:
                short.append(question)
            else:
                yield [question]
        if short:
            yield short


def _array(numbers: Sequence[float]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


def reason(error: Exception) -> str:
    """Return the text for the asker; of an error from outside embedworker, only its kind."""
    if isinstance(error, EmbedworkerError):
        return str(error)
    return f"{type(error).__name__} in the worker"
