"""When to look at something again that seldom changes by itself."""

import time

__all__ = ["IdleInterval"]

FIRST = 60.0  # seconds
LONGEST = 600.0  # seconds


class IdleInterval:
    """When each source is looked at again.

    Looks are ``first`` seconds apart while rows change, and further apart while none do.
    Each look is a statement or three. An idle worker made seven of them a minute for each table.
    """

    def __init__(self, first: float = FIRST) -> None:
        self._first = first
        self._last: dict[int, float] = {}
        self._pauses: dict[int, float] = {}

    def due(self, source: int) -> bool:
        """Whether to look at a source now, which counts as looking."""
        now = time.monotonic()
        pause = self._pauses.get(source, 0.0)
        if now - self._last.get(source, float("-inf")) < pause:
            return False
        self._last[source] = now
        self._pauses[source] = min(2 * pause, max(LONGEST, self._first)) or self._first
        return True

    def forget(self, source: int) -> None:
        """Look at a source again at once."""
        self._last.pop(source, None)
        self._pauses.pop(source, None)

    def changed(self, source: int) -> None:
        """Have the next look soon after the last: rows change, or are about to."""
        self._pauses[source] = self._first
