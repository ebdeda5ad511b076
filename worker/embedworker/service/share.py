"""The part of the work that a worker of a fleet takes."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["RateLimit", "Share"]


class RateLimit(Protocol):
    """How many rows of a backfill may be claimed."""

    def take(self, wanted: int) -> int:
        """Return how many rows may be claimed now, 0 to ``wanted``; waits 0.2 s at most."""

    def give_back(self, unused: int) -> None:
        """Give back rows that were allowed and not claimed; below 0: more were claimed."""


@dataclass(frozen=True)
class Share:
    """Rows of these sources only, and of a backfill as many as the rate limit allows.

    Such a worker has three connections. It hears no NOTIFY, so it polls. It builds no index and
    compares no counters: a worker of ``embedworker run`` does.
    """

    sources: frozenset[int]
    rate_limit: RateLimit | None = None
