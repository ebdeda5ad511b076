"""Models by name: each is loaded once, and one that fails is tried again, less and less often."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psycopg

from embedworker.service.retry import Backoff

__all__ = ["ModelCache"]

LONGEST = 60.0  # seconds until a failed load is tried again, at most

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    again_at: float
    error: Exception
    backoff: Backoff


class ModelCache(Generic[T]):
    """What was loaded, and which loads failed.

    ``kind`` stands before a name in the log. What is not ``current`` any more is loaded again.
    """

    def __init__(
        self, log: logging.Logger, kind: str, current: Callable[[T], bool] = lambda _: True
    ) -> None:
        self._log = log
        self._kind = kind
        self._current = current
        self._lock = threading.Lock()
        self._loaded: dict[str, T] = {}
        self._failures: dict[str, _Failure] = {}

    def __repr__(self) -> str:
        return f"<ModelCache {self._kind}: {len(self._loaded)} loaded>"

    def get(
        self,
        name: str,
        load: Callable[[], T],
        tried: Callable[[Exception | None], None] = lambda _: None,
    ) -> T:
        """Return what ``load`` returned for this name, calling it if need be.

        ``tried`` is called after a load, with its error or None.

        Raises what ``load`` raised; at once, while its last failure is recent.
        """
        with self._lock:
            if name in self._loaded and self._current(self._loaded[name]):
                return self._loaded[name]
            if self.failed_recently(name):
                raise self._failures[name].error
            before = self._failures.get(name)
            backoff = (
                Backoff(self._log, f"{self._kind} {name}", longest=LONGEST)
                if before is None
                else before.backoff
            )
            try:
                loaded = load()
            except psycopg.Error:
                raise  # of the connection, not of the model
            except Exception as error:
                backoff.say(error)
                tried(error)
                again_at = time.monotonic() + backoff.next_pause()
                self._failures[name] = _Failure(again_at, error, backoff)
                raise
            backoff.success()
            tried(None)
            self._failures.pop(name, None)
            self._loaded[name] = loaded
            return loaded

    def failed_recently(self, name: str) -> bool:
        """Whether a load failed and is not tried again yet."""
        failure = self._failures.get(name)
        return failure is not None and time.monotonic() < failure.again_at

    def has_said(self, error: BaseException) -> bool:
        """Whether the log has this failure of a load already."""
        return any(error is failure.error for failure in [*self._failures.values()])

    def forget_all(self) -> None:
        """Forget what was loaded; failures stay."""
        with self._lock:
            self._loaded.clear()

    def forget(self, name: str) -> None:
        """Forget what was loaded under a name. Only for ``load``, which runs under the lock."""
        self._loaded.pop(name, None)
