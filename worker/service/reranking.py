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

from worker.database.connect import connect
from worker.database.statements import statement
from worker.errors import ConfigurationError, EmbedworkerError
from worker.model.cpu import cpu_quota, set_threads
from worker.queue.source import Connection
from worker.service.patience import Patience
from worker.service.questions import reason
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.model.reranker import Reranker

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
        self._lock = threading.Lock()
        self._loaded: dict[str, Reranker] = {}
        self._failed: dict[str, tuple[float, EmbedworkerError, Patience]] = {}

    def get(self, connection: Connection, name: str) -> "Reranker":
        """Return the reranker, loading it if need be.

        Raises ModelError or ConfigurationError; at once, while the last failure is recent.
        """
        with self._lock:
            if name in self._loaded:
                return self._loaded[name]
            again_at, error, patience = self._failed.get(name, (0.0, None, None))
            if error is not None and time.monotonic() < again_at:
                raise error
            patience = patience or Patience(log, f"reranker {name}", longest=60.0)
            try:
                reranker = self._open(connection, name)
            except EmbedworkerError as failure:
                patience.say(failure)
                self._failed[name] = (time.monotonic() + patience.next_pause(), failure, patience)
                raise
            patience.success()
            self._failed.pop(name, None)
            self._loaded[name] = reranker
            return reranker

    def _open(self, connection: Connection, name: str) -> "Reranker":
        card = connection.execute(statement("reranker_card"), {"name": name}).fetchone()
        if card is None:
            raise ConfigurationError(
                f"the database does not know the reranker {name!r}; choose it with "
                "embed.use_reranker(name, max_tokens => 512)"
            )
        # Imported here: most workers never rerank.
        from worker.model.reranker import open_reranker

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
            scores = self._score(connection, mine, self._load(connection, name), question, passages)
        except psycopg.Error:
            raise  # the connection's trouble: the lease brings the request round again
        except Exception as error:
            # Whatever it was, somebody waits: an order without it now is better than later.
            log.warning("request %s has no scores", request, exc_info=error)
            connection.execute(
                statement("questions_fail"),
                {"ids": [request], "errors": [reason(error)], "worker": worker_id},
            )
            return True
        if scores is not None:
            connection.execute(statement("rerank_answer"), mine | {"scores": scores})
        return True

    def _score(
        self,
        connection: Connection,
        mine: "dict[str, UUID | int]",
        reranker: "Reranker",
        question: str,
        passages: list[str],
    ) -> list[float] | None:
        """The scores in the order of the passages; None when nobody waits for them any more."""
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

    def serve() -> None:
        patience = Patience(log, "reranking")
        lane = RerankLane(rerankers.get, stopped)
        while not stopped.is_set():
            try:
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
                            patience.success()
                        elif not stopped.is_set():
                            wake.wait(POLL if heard.is_set() else POLL_DEAF)
            except Exception as error:  # whatever it is, the questions go on
                if not stopped.is_set():
                    patience.wait(error, stopped)

    thread = threading.Thread(target=serve, name="rerank", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        wake.set()
        thread.join(LAST_BATCH)
