"""Waiting for something that is not there, without flooding the log."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import ref

import psycopg

from embedworker.errors import EmbedworkerError
from embedworker.service.logs import redacted

__all__ = ["Failures", "Patience", "connections_to"]

FIRST = 0.1  # seconds
LONGEST = 10.0  # seconds
REMIND = 300.0  # seconds until the same trouble is said again


@dataclass
class _Said:
    at: float
    by: "ref[Patience]"


class Troubles:
    """Outages that were already logged, so that only the first of several connections logs each."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}
        self._talking = threading.Lock()

    def is_news(self, text: str, by: "Patience") -> bool:
        """Whether to say it now; who is silent for one that is gone will say when it is over.

        A listener that ends with the session of its lane is gone while the trouble lasts.
        """
        now = time.monotonic()
        with self._talking:
            said = self._said.get(text)
            if said is None or now - said.at > REMIND:
                self._said[text] = _Said(now, ref(by))
                return True
            if said.by() is None:
                said.by = ref(by)
            return False

    def over(self, by: "Patience") -> bool:
        """Whether one had said what is over now; what others said who are gone is over, too."""
        with self._talking:
            mine = any(said.by() is by for said in self._said.values())
            self._said = {t: s for t, s in self._said.items() if s.by() not in (by, None)}
            return mine


class Patience:
    """Growing, jittered pauses; a trouble is said once, then every five minutes, then when over."""

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        *,
        longest: float = LONGEST,
        troubles: Troubles | None = None,
    ) -> None:
        self._log = log
        self._what = what
        self._longest = longest
        self._pause = FIRST
        self._troubles = Troubles() if troubles is None else troubles

    def keep_trying(
        self,
        attempt: Callable[[], None],
        stopped: threading.Event,
        *,
        lost: Callable[[Exception], object] = lambda _: None,
        caught: tuple[type[Exception], ...] = (psycopg.Error, EmbedworkerError),
        fatal: tuple[type[Exception], ...] = (),
    ) -> None:
        """Repeat ``attempt`` until ``stopped``; pause after each error of ``caught``.

        An attempt usually connects and works until its connection is lost. ``lost`` gets each
        error before the pause.

        Raises what ``attempt`` raises, where it is one of ``fatal`` or none of ``caught``.
        """
        while not stopped.is_set():
            try:
                attempt()
            except fatal:
                raise
            except caught as error:
                lost(error)
                if not stopped.is_set():
                    self.wait(error, stopped)

    def wait(self, error: BaseException | str, stopped: threading.Event) -> None:
        """Say what is wrong, if that is news, and pause; ``stopped`` ends the pause."""
        self.say(error)
        stopped.wait(self.next_pause())

    def next_pause(self) -> float:
        """Return the seconds of the next pause; each is about twice the one before."""
        pause = self._pause * random.uniform(0.75, 1.25)  # noqa: S311  (no secret)
        self._pause = min(self._pause * 2, self._longest)
        return pause

    def say(self, error: BaseException | str) -> None:
        """Log a trouble unless it was said within the last five minutes.

        All that was said is remembered, not just the last: what cannot be reached fails now with
        one error, now with another.
        """
        text = redacted(error)
        if self._troubles.is_news(text, self):
            self._log.warning("%s: %s; trying again", self._what, text)

    def success(self) -> None:
        """Note a success, after which the next error is logged again."""
        if self._troubles.over(self):
            self._log.info("%s: works again", self._what)
        self._pause = FIRST


class Failures:
    """Failures of single requests: the first of a kind with its places, the others at DEBUG.

    A model that fails at every question would fill the log with the same traceback.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[tuple[str, int], float] = {}

    def say(self, message: str, request: object, error: BaseException) -> None:
        """Log that ``request`` failed; ``message`` has a place for it."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        kind = type(error).__qualname__, 0 if trace is None else trace.tb_lineno
        now = time.monotonic()
        news = now - self._said.get(kind, float("-inf")) > REMIND
        if news:
            self._said[kind] = now
        self._log.log(logging.WARNING if news else logging.DEBUG, message, request, exc_info=error)


def connections_to(url: str) -> Troubles:
    """Return the errors that all connections to one address share in this process.

    They are several: an outage of four seconds left seventeen lines.
    """
    return _connections.setdefault(url, Troubles())


_connections: dict[str, Troubles] = {}
