"""Sources in trouble: which step failed, why, and until when a source or a step is left alone."""

import logging
import time
from collections.abc import Set
from dataclasses import dataclass, field

import psycopg

from embedworker.errors import EndpointUnavailable
from embedworker.service.logs import redacted
from embedworker.service.retry import Backoff
from embedworker.service.source_errors import LOCKED
from embedworker.service.steps import Step

__all__ = ["Quarantine"]

log = logging.getLogger("embedworker.sources")

LONGEST = 60.0  # seconds a source in trouble is left alone at most


@dataclass
class _Trouble:
    backoff: Backoff
    reason: str = ""
    until: float = 0.0
    failed: set[Step] = field(default_factory=set)
    pauses: dict[Step, float] = field(default_factory=dict)


class Quarantine:
    """Troubles by source and :class:`Step`. What goes wrong with one source stops no other."""

    def __init__(self) -> None:
        self._troubles: dict[int, _Trouble] = {}
        self._fallen: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number in self._troubles

    def pauses(self, number: int, step: Step) -> bool:
        """Whether this step of a source is left alone now."""
        trouble = self._troubles.get(number)
        return trouble is not None and trouble.pauses.get(step, 0.0) > time.monotonic()

    def stops(self, number: int) -> bool:
        """Whether the whole source is left alone now."""
        trouble = self._troubles.get(number)
        return trouble is not None and trouble.until > time.monotonic()

    def reasons(self, *, stopping: bool = False) -> dict[int, str]:
        """Return why sources are in trouble; ``stopping``: only those whose rows are stopped."""
        return {
            number: trouble.reason
            for number, trouble in self._troubles.items()
            if not stopping or any(step.stops_rows for step in trouble.failed)
        }

    def add(
        self, number: int, label: str, step: Step, error: Exception, *, fault: bool, said: bool
    ) -> None:
        """Note that a step of a source failed, and log it unless that was ``said``.

        A ``fault`` of this program is logged once with its traceback.
        """
        first = number not in self._troubles
        if first:
            self._troubles[number] = _Trouble(Backoff(log, f"source {label}", longest=LONGEST))
            if fault:
                log.error("source %s: a fault of this program", label, exc_info=error)
        trouble = self._troubles[number]
        # A table that is locked for a second (embed.disable does it, at its end) is no trouble yet.
        passing = first and isinstance(error, psycopg.errors.LockNotAvailable)
        if not (passing or said):
            trouble.backoff.say(error)
        pause = trouble.backoff.next_pause()
        if isinstance(error, EndpointUnavailable):
            pause = max(pause, error.seconds)
        again = time.monotonic() + pause
        locked = isinstance(error, psycopg.errors.LockNotAvailable)
        trouble.reason = LOCKED if locked else redacted(error)
        trouble.failed.add(step)
        if step.stops_rows:
            trouble.until = again
            self._fallen.add(number)
        else:
            trouble.pauses[step] = again

    def passed(self, number: int, steps: Set[Step]) -> bool:
        """Note that steps of a source went well; return whether its trouble is over with that."""
        trouble = self._troubles.get(number)
        if trouble is None:
            return False
        trouble.failed -= steps
        if trouble.failed:
            return False
        trouble.backoff.success()
        self.forget(number)
        return True

    def settled(self, number: int) -> bool:
        """Nothing is left to do for a source: what failed and need not be done again is over."""
        return self.passed(number, {step for step in Step if not step.lasting})

    def forget(self, number: int) -> None:
        """Forget the trouble of a source, because its table or its settings are others now."""
        self._troubles.pop(number, None)

    def fell(self, number: int) -> None:
        """Have the rows of a source handed back, as after a failure that stops it."""
        self._fallen.add(number)

    def take_fallen(self) -> set[int]:
        """Return the sources that were stopped since the last call: their rows go back."""
        fallen, self._fallen = self._fallen, set()
        return fallen
