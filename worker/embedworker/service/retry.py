"""Trying again with growing pauses, without flooding the log."""

import logging
import random
import threading
from collections.abc import Callable

import psycopg

from embedworker.errors import EmbedworkerError
from embedworker.service.logs import redacted
from embedworker.service.outages import OutageLog

__all__ = ["Backoff"]

FIRST = 0.1  # seconds
LONGEST = 10.0  # seconds


class Backoff:
    """Growing, jittered pauses. An outage is logged at first, every five minutes, and when over."""

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        *,
        longest: float = LONGEST,
        outages: OutageLog | None = None,
    ) -> None:
        self._log = log
        self._what = what
        self._longest = longest
        self._pause = FIRST
        self._outages = OutageLog() if outages is None else outages

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
        """Log the error if it is new, and pause; ``stopped`` ends the pause."""
        self.say(error)
        stopped.wait(self.next_pause())

    def next_pause(self) -> float:
        """Return the seconds of the next pause; each is about twice the one before."""
        pause = self._pause * random.uniform(0.75, 1.25)  # noqa: S311  (no secret)
        self._pause = min(self._pause * 2, self._longest)
        return pause

    def say(self, error: BaseException | str) -> None:
        """Log an error unless it was logged within the last five minutes.

        Every error counts, not just the last: one outage shows as several errors in turn.
        """
        text = redacted(error)
        if self._outages.is_new(text, self):
            self._log.warning("%s: %s; trying again", self._what, text)

    def success(self) -> None:
        """Note a success, after which the next error is logged again."""
        if self._outages.over(self):
            self._log.info("%s: works again", self._what)
        self._pause = FIRST
