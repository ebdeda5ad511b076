"""What both lanes of a worker do: connect, register, serve, and come back after an error."""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Literal

import psycopg

from embedworker.database.connect import connect
from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.service.logs import redacted
from embedworker.service.models import Models
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.outages import outages_of
from embedworker.service.retry import Backoff
from embedworker.service.session import Session, session, strike_failed
from embedworker.service.share import Share
from embedworker.settings import Settings

__all__ = ["LANES", "Lane", "LaneRunner"]

log = logging.getLogger("embedworker.worker")

Lane = Literal["passages", "questions"]
LANES: tuple[Lane, ...] = ("passages", "questions")

LAST_CONNECT = 2  # seconds for the last connection: the sender of SIGTERM waits, often 10 s


class LaneRunner(ABC):
    """One lane of a worker, with its sessions and its models.

    ``stopped`` ends every lane of the worker. ``deaf`` is set once the log says that notifications
    do not arrive. ``share`` is what a worker of a fleet does; None: everything.
    """

    lane: ClassVar[Lane]
    channel: ClassVar[str]

    def __init__(
        self,
        url: str,
        settings: Settings,
        models: Models,
        telemetry: Telemetry,
        *,
        stopped: threading.Event,
        deaf: threading.Event,
        exit_when_hung: bool,
        share: Share | None = None,
    ) -> None:
        self.models = models
        self.telemetry = telemetry
        self.wake = threading.Event()
        self.ready = threading.Event()
        """Set when the models of what is enabled are loaded."""
        self._url = url
        self._settings = settings
        self._stopped = stopped
        self._deaf = deaf
        self._exit_when_hung = exit_when_hung
        self._share = share
        self._failed: list[int] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' ready' if self.ready.is_set() else ''}>"

    @abstractmethod
    def serve(self, current: Session, succeeded: Callable[[], None]) -> None:
        """Serve over one session until the worker stops; call ``succeeded`` at each success."""

    def run(self) -> None:
        """Serve until the worker stops; connect again after each loss.

        Raises ConfigurationError when a setting makes it impossible to ever start.
        """
        backoff = Backoff(log, f"the {self.lane} lane", outages=outages_of(self._url))

        def serve_session() -> None:
            with self.session() as current:
                log.info("worker %s is up", current.worker)
                self.telemetry.health.found()
                self.serve(current, backoff.success)

        try:
            backoff.keep_trying(
                serve_session,
                self._stopped,
                lost=lambda error: self.telemetry.health.lost(redacted(error)),
                fatal=(ConfigurationError,),
            )
        finally:
            self.strike_failed()

    def session(self) -> AbstractContextManager[Session]:
        """Return a registered session of this lane, to be entered."""
        # A database that was set up again may have another number for a fingerprint.
        self.models.forget_fingerprints()
        return session(
            self._url,
            self._settings,
            lane=self.lane,
            channel=self.channel,
            wake=self.wake,
            others=self._other_channels(),
            deaf=self._deaf,
            failed=self._failed,
            telemetry=self.telemetry,
            exit_when_hung=self._exit_when_hung,
            listening=self._share is None,
        )

    def strike_failed(self) -> None:
        """Leave no line of a failed session: `migrate` would count it as a worker for a minute."""
        if not self._failed:
            return
        try:
            with connect(self._url, connect_timeout=LAST_CONNECT) as connection:
                strike_failed(connection, self._failed)
        except (psycopg.Error, EmbedworkerError) as error:
            log.debug("failed sessions of the %s lane stay listed: %s", self.lane, redacted(error))

    def _other_channels(self) -> Mapping[str, threading.Event]:
        return {}
