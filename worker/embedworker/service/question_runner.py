"""The lane that answers questions, over one session after another, and reranks beside it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from embedworker.database.connection import keeps_session
from embedworker.database.loopback import renew_loopback
from embedworker.database.statements import statement
from embedworker.queue.source import Connection
from embedworker.service import idle
from embedworker.service.lane import LaneRunner
from embedworker.service.questions import PUT_BACK, QuestionLane
from embedworker.service.reranking import CHANNEL, Rerankers, reranking
from embedworker.service.session import Session

__all__ = ["QuestionRunner"]

log = logging.getLogger("embedworker.worker")

POLL = 2.0  # seconds; a NOTIFY comes first
LOOK = 5.0  # seconds between looks for models of tables that were enabled since
POLL_DEAF = 0.02  # seconds, where notifications do not arrive


class QuestionRunner(LaneRunner):
    """Runs :class:`QuestionLane` in the calling thread, and the rerank lane in another."""

    lane = "questions"
    channel = "embed_question"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rerankers = Rerankers(self._settings)
        self._rerank_wake = threading.Event()

    def serve(self, current: Session, succeeded: Callable[[], None]) -> None:
        """Answer questions until the worker stops, or an error ends the session."""
        with reranking(
            self._url,
            self._settings,
            self._rerankers,
            current.worker.id,
            self._rerank_wake,
            current.notified,
        ):
            self._answer(current, succeeded)

    def _answer(self, current: Session, succeeded: Callable[[], None]) -> None:
        _renew_loopback(current)
        # Loaded before the first question, whose time-out is shorter than a load. Without any of
        # them no question is taken: another worker may have its model. Those of one that is there
        # are answered while others are still loaded.
        names = missing = _models(current.connection)
        looked_at = time.monotonic()
        lane = QuestionLane(self.models.get_nowait, current.progress.telemetry)
        if keeps_session(current.connection):
            current.connection.prepare_threshold = 0  # ever the same few statements: parsed once
        while not self._stopped.is_set():
            current.progress.telemetry.health.seen()
            current.wake.clear()
            if time.monotonic() - looked_at >= idle.pause(LOOK):
                # A switch brings a model. Loaded at the first question after the cut, it kept that
                # waiting for 14 s.
                looked_at = time.monotonic()
                new = _models(current.connection) - names
                names, missing = names | new, missing | new
            missing = {name for name in missing if not self._tried(current, name)}
            if not missing:
                self.ready.set()
            answered = 0
            if not names or missing != names:
                answered = lane.answer_once(current.connection, current.worker.id)
                current.progress.embedded += answered - lane.put_back
            succeeded()
            if not answered and not self._stopped.is_set():
                heard = current.notified.is_set()
                pause = PUT_BACK if missing or self.models.loading else idle.pause(POLL)
                current.wake.wait(pause if heard else POLL_DEAF)

    def _tried(self, current: Session, name: str) -> bool:
        """Whether a model of the questions is loaded, or cannot be."""
        try:
            found = self.models.get_nowait(current.connection, name)
        except psycopg.Error:
            raise
        except Exception:
            return True  # models has logged it, and tries again
        if found is not None:
            current.progress.model = name
        return found is not None

    def _other_channels(self) -> Mapping[str, threading.Event]:
        return {CHANNEL: self._rerank_wake}


def _models(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute(statement("question_models"))}


def _renew_loopback(current: Session) -> None:
    """Renew the loopback, because a new session may be with another server, host or port."""
    renewed, problem = renew_loopback(current.connection)
    if renewed:
        log.info("embed.query leads to this server again: host or port were those of another")
    elif problem:
        log.warning(
            "embed.query does not work: %s. Run `embedworker migrate`, which renews more than a "
            "worker may, or set EMBEDWORKER_LOOPBACK_HOST for it",
            " ".join(problem.split()),
        )
