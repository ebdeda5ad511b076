"""Waiting for something that is not there, without flooding the log."""

import logging
import random
import threading
import time

from worker.service.logs import sayable

__all__ = ["Patience"]

FIRST = 0.1  # seconds
LONGEST = 10.0  # seconds
REMIND = 300.0  # seconds until the same trouble is said again


class Patience:
    """Growing, jittered pauses; a trouble is said once, then every five minutes, then when over."""

    def __init__(self, log: logging.Logger, what: str, *, longest: float = LONGEST) -> None:
        self._log = log
        self._what = what
        self._longest = longest
        self._pause = FIRST
        self._said: dict[str, float] = {}

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
        text = sayable(error)
        now = time.monotonic()
        if now - self._said.get(text, float("-inf")) > REMIND:
            self._log.warning("%s: %s; trying again", self._what, text)
            self._said[text] = now

    def success(self) -> None:
        """It worked: the next trouble is news again."""
        if self._said:
            self._log.info("%s: works again", self._what)
        self._said.clear()
        self._pause = FIRST
