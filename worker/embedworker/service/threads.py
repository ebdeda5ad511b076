"""Threads that keep the context of their maker, so that their log lines name its database."""

import threading
from contextvars import copy_context
from functools import partial

__all__ = ["Thread"]


class Thread(threading.Thread):
    """A thread that runs in a copy of the context in which it was started."""

    def start(self) -> None:
        """Start it."""
        self.run = partial(copy_context().run, self.run)  # type: ignore[method-assign]
        super().start()
