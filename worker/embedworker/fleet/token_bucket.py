"""The rate limit of a fleet: a bucket of tokens, one for each row that may be claimed."""

from dataclasses import dataclass

__all__ = ["TokenBucket"]

BURST = 1.0  # seconds; the bucket holds the rows of so many
PIECE = 0.25  # seconds; the rows of less are not worth a claim


@dataclass
class TokenBucket:
    """Fills with ``rate`` rows a second, up to those of one second. It begins empty.

    So a fleet claims at most ``rate * (seconds + 1)`` rows of a backfill in any time, however many
    workers it has, and after each restart of the bucket, too.
    """

    rate: float
    filled_at: float
    """seconds of a monotonic clock"""
    tokens: float = 0.0

    def take(self, wanted: int, unused: int, now: float) -> tuple[int, float]:
        """Return the rows that are allowed, and where there are none the seconds until there are.

        ``unused`` is what the worker did not need of what it took before. Below 0, it claimed more.
        """
        most = max(1.0, self.rate * BURST)
        filled = self.tokens + unused + self.rate * max(0.0, now - self.filled_at)
        self.filled_at = now
        self.tokens = min(most, filled)
        piece = min(float(wanted), max(1.0, self.rate * PIECE))
        if self.tokens < piece:
            return 0, (piece - self.tokens) / self.rate
        allowed = min(wanted, int(self.tokens))
        self.tokens -= allowed
        return allowed, 0.0
