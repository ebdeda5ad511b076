"""Waiting for something that is not there, without flooding the log."""

import logging
import random
import threading
import time
from weakref import WeakSet

from worker.service.logs import sayable

__all__ = ["Patience", "connections_to"]

FIRST = 0.1  # seconds
LONGEST = 10.0  # seconds
REMIND = 300.0  # seconds until the same trouble is said again

_talking = threading.Lock()


class Patience:
    """Growing, jittered pauses; a trouble is said once, then every five minutes, then when over.

    ``peers`` are in trouble together: what one of them has said, the others leave unsaid.
    """

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        *,
        longest: float = LONGEST,
        peers: "WeakSet[Patience] | None" = None,
    ) -> None:
        self._log = log
        self._what = what
        self._longest = longest
        self._pause = FIRST
        self._said: dict[str, float] = {}
        self._peers = WeakSet[Patience]() if peers is None else peers
        with _talking:
            self._peers.add(self)

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
        with _talking:
            if any(now - peer._said.get(text, float("-inf")) <= REMIND for peer in self._peers):
                return
            self._said[text] = now
        self._log.warning("%s: %s; trying again", self._what, text)

    def success(self) -> None:
        """It worked: the next trouble is news again."""
        if self._said:
            self._log.info("%s: works again", self._what)
            with _talking:
                self._said.clear()
        self._pause = FIRST


def connections_to(url: str) -> WeakSet[Patience]:
    """The peers of this process that connect to one address.

    They are several in each process: an outage of four seconds left fifteen lines.
    """
    return _connections.setdefault(url, WeakSet())


_connections: dict[str, WeakSet[Patience]] = {}
