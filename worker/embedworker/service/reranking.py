"""The rerank lane: scores the rows that a search found, beside the questions, not before them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import psycopg

from embedworker.database.connect import connect
from embedworker.database.statements import statement
from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.model.cpu import cpu_quota, set_threads
from embedworker.queue.source import Connection
from embedworker.service import idle
from embedworker.service.model_cache import ModelCache
from embedworker.service.outages import FailureLog
from embedworker.service.questions import reason
from embedworker.service.retry import Backoff
from embedworker.service.threads import Thread
from embedworker.settings import Settings

if TYPE_CHECKING:
    from embedworker.model.reranker import Reranker

__all__ = ["CHANNEL", "RerankLane", "Rerankers", "reranking"]

CHANNEL = "embed_rerank"

LEASE = 10.0  # seconds until another worker may take a request over; extended at every batch
POLL = 2.0  # seconds; a NOTIFY comes first
POLL_DEAF = 0.05  # seconds, where notifications do not arrive
LAST_BATCH = 5.0  # seconds that an end waits for the batch at the model

log = logging.getLogger("embedworker.reranking")


class Rerankers:
    """The cross-encoders of a process, loaded when first needed; most databases never need one.

    One that cannot be loaded is tried again, less and less often.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache: ModelCache[Reranker] = ModelCache(log, "reranker")

    def get(self, connection: Connection, name: str) -> "Reranker":
        """Return the reranker, loading it if need be.

        Raises ModelError or ConfigurationError; at once, while the last failure is recent.
        """
        return self._cache.get(name, lambda: self._open(connection, name))

    def _open(self, connection: Connection, name: str) -> "Reranker":
        card = connection.execute(statement("reranker_card"), {"name": name}).fetchone()
        if card is None:
            raise ConfigurationError(
                f"the database does not know the reranker {name!r}; choose it with "
                "embed.use_reranker(name, max_tokens => 512)"
            )
        # Imported here: most workers never rerank.
        from embedworker.model.reranker import open_reranker

        chosen = self._settings
        started = time.monotonic()
        # The setting belongs to the thread; passages in bulk have a process of their own.
        set_threads(chosen.threads or cpu_quota())
        reranker = open_reranker(
            name,
            max_tokens=int(card[0]),
            cache_folder=chosen.cache_dir,
            device=chosen.device,
            dtype=chosen.dtype,
        )
        log.info("reranker %s loaded in %.1f s", name, time.monotonic() - started)
        return reranker


class RerankLane:
    """Answers requests for scores, one at a time. ``load`` is :meth:`Rerankers.get`."""

    def __init__(
        self, load: "Callable[[Connection, str], Reranker]", stopped: threading.Event
    ) -> None:
        self._load = load
        self._stopped = stopped
        self._failures = FailureLog(log)

    def __repr__(self) -> str:
        return f"<RerankLane{' stopped' if self._stopped.is_set() else ''}>"

    def answer_once(self, connection: Connection, worker_id: int) -> bool:
        """Claim the oldest request and answer it; say whether there was one.

        ``connection`` is in autocommit mode: no transaction is open while the model runs.
        """
        claimed = connection.execute(
            statement("rerank_claim"), {"lease": LEASE, "worker": worker_id}
        ).fetchone()
        if claimed is None:
            return False
        request, name, question, passages = claimed
        mine = {"id": request, "worker": worker_id}
        try:
            reranker = self._load(connection, name)
        except EmbedworkerError as error:
            self._refuse(connection, mine, error)  # the thread that loads it has logged it
            return True
        try:
            scores = self._score(connection, mine, reranker, question, passages)
        except psycopg.Error:
            raise  # the connection's trouble: the lease brings the request round again
        except Exception as error:
            # Whatever it was, somebody waits: an order without it now is better than later.
            self._failures.say("request %s has no scores", request, error)
            self._refuse(connection, mine, error)
            return True
        if scores is not None:
            connection.execute(statement("rerank_answer"), mine | {"scores": scores})
        return True

    @staticmethod
    def _refuse(connection: Connection, mine: "dict[str, UUID | int]", error: Exception) -> None:
        connection.execute(
            statement("questions_fail"),
            {"ids": [mine["id"]], "errors": [reason(error)], "worker": mine["worker"]},
        )

    def _score(
        self,
        connection: Connection,
        mine: "dict[str, UUID | int]",
        reranker: "Reranker",
        question: str,
        passages: list[str],
    ) -> list[float] | None:
        """Return the scores in the order of the passages; None if no asker waits any more."""
        scores = np.empty(len(passages), np.float32)
        for places, values in reranker.scored(question, passages):
            scores[places] = values
            if self._stopped.is_set():
                connection.execute(statement("rerank_hand_back"), mine)
                return None
            kept = connection.execute(statement("rerank_keep"), mine | {"lease": LEASE}).fetchone()
            if kept is None:
                return None
        return [float(score) for score in scores]


@contextmanager
def reranking(
    url: str,
    settings: Settings,
    rerankers: Rerankers,
    worker_id: int,
    wake: threading.Event,
    heard: threading.Event,
) -> Iterator[None]:
    """Answer requests for scores in a thread and over a connection of its own.

    A pass of a cross-encoder takes a hundred times as long as a question, which must not wait for
    it. ``heard`` is set where notifications arrive, each of which sets ``wake``.
    """
    stopped = threading.Event()

    backoff = Backoff(log, "reranking")
    lane = RerankLane(rerankers.get, stopped)

    def serve() -> None:
        with connect(
            url,
            lock_timeout=settings.lock_timeout,
            application_name="embedworker rerank",
            synchronous=False,
        ) as connection:
            connection.prepare_threshold = None
            while not stopped.is_set():
                wake.clear()
                if lane.answer_once(connection, worker_id):
                    backoff.success()
                elif not stopped.is_set():
                    wake.wait(idle.pause(POLL) if heard.is_set() else POLL_DEAF)

    def keep_serving() -> None:
        # Whatever the error is, the questions go on.
        backoff.keep_trying(serve, stopped, caught=(Exception,))

    thread = Thread(target=keep_serving, name="rerank", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        wake.set()
        thread.join(LAST_BATCH)
