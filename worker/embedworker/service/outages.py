"""What was logged already: outages that several connections share, and failures of requests."""

import logging
import threading
import time
from dataclasses import dataclass
from weakref import ref

__all__ = ["REMIND", "FailureLog", "OutageLog", "outages_of"]

REMIND = 300.0  # seconds until the same is logged again


@dataclass
class _Said:
    at: float
    by: "ref[object]"


class OutageLog:
    """Outages that were already logged, so that only the first of several connections logs each."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}
        self._lock = threading.Lock()

    def is_new(self, text: str, by: object) -> bool:
        """Whether to log this outage now.

        Where the connection that logged it has ended, this one will log that it is over. For
        example, a listener ends with the session of its lane while the outage lasts.
        """
        now = time.monotonic()
        with self._lock:
            said = self._said.get(text)
            if said is None or now - said.at > REMIND:
                self._said[text] = _Said(now, ref(by))
                return True
            if said.by() is None:
                said.by = ref(by)
            return False

    def over(self, by: object) -> bool:
        """Whether this connection logged the outage that is over now.

        Outages that ended connections logged are over, too.
        """
        with self._lock:
            mine = any(said.by() is by for said in self._said.values())
            self._said = {t: s for t, s in self._said.items() if s.by() not in (by, None)}
            return mine


class FailureLog:
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
        is_new = now - self._said.get(kind, float("-inf")) > REMIND
        if is_new:
            self._said[kind] = now
        self._log.log(
            logging.WARNING if is_new else logging.DEBUG, message, request, exc_info=error
        )


def outages_of(url: str) -> OutageLog:
    """Return the errors that all connections to one address share in this process.

    They are several: an outage of four seconds left seventeen lines.
    """
    return _connections.setdefault(url, OutageLog())


_connections: dict[str, OutageLog] = {}
