"""A step of the work in a thread of its own: actions go in, and what became of them comes out."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

from embedworker.service.threads import Thread

__all__ = ["Stage"]

CLOSING = 1.0  # seconds to wait for the end of a thread

T = TypeVar("T")


class Stage(Generic[T]):
    """Does actions one after the other. All methods are for the one thread that gives them.

    ``ended`` is set when an action is done. Without it there is no thread, and an action is done at
    once.
    """

    def __init__(self, name: str, ended: threading.Event | None) -> None:
        self._name = name
        self._ended = ended
        self._given: deque[Future[T]] = deque()
        self._actions: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return how many actions were given and not collected yet."""
        return len(self._given)

    def give(self, action: Callable[[], T]) -> None:
        """Have an action done after those that were given before."""
        future: Future[T] = Future()
        self._given.append(future)
        if self._ended is None:
            _do(future, action)
            return
        if self._thread is None:
            # Not one that the interpreter waits for: a model may hang.
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._actions.put((future, action))

    def collect(self) -> list[Future[T]]:
        """Return what is done by now, in the order given; what was cancelled is left out."""
        done = []
        while self._given and self._given[0].done():
            future = self._given.popleft()
            if not future.cancelled():
                done.append(future)
        return done

    def finish(self) -> None:
        """Wait for the action that is under way; those that wait behind it are not done."""
        for future in self._given:
            future.cancel()
        self.wait()

    def wait(self) -> None:
        """Wait until all that was given is done."""
        for future in self._given:
            with suppress(CancelledError):
                future.exception()

    def close(self) -> None:
        """Let the thread end after what is under way, and wait for it, but not for ever."""
        for future in self._given:
            future.cancel()
        self._actions.put(None)
        if self._thread is not None:
            self._thread.join(CLOSING)

    def _run(self) -> None:
        while (given := self._actions.get()) is not None:
            _do(*given)
            if self._ended is not None:
                self._ended.set()


def _do(future: "Future[T]", action: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(action())
    except BaseException as error:
        future.set_exception(error)
