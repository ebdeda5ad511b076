"""Which model the demonstration runs with, and why; the bundled one is unpacked meanwhile."""

import threading
from dataclasses import dataclass
from pathlib import Path

from embedworker.model.availability import availability, hub_problem
from embedworker.model.bundled import bundled_folder
from embedworker.model.catalog import BUNDLED_MODEL, DEFAULT_MODEL
from embedworker.model.hub import cached_or_within_reach

__all__ = ["Choice", "Preparation"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A model and the reason, which completes "… because"."""

    model: str
    reason: str


class Preparation(threading.Thread):
    """Looks for the model while PostgreSQL starts, and unpacks the bundled one if that is it.

    The hub is asked whether it answers, for five seconds at most each time.
    """

    def __init__(self, given: str | None, cache_folder: Path) -> None:
        super().__init__(name="model", daemon=True)  # a killed unpack leaves nothing half made
        self._given = given
        self._cache_folder = cache_folder
        self._decided = threading.Event()
        self._choice: Choice | None = None
        self._error: Exception | None = None
        self.unpacked = 0.0
        """Share of the bundled model that is unpacked, 0 to 1."""

    def run(self) -> None:
        try:
            self._choice = self._choose()
            self._decided.set()
            model = self._choice.model
            if model == BUNDLED_MODEL:
                bundled_folder(self._cache_folder, self._count)
            elif availability(model, self._cache_folder) == "hub":
                # Sooner than by the worker, which starts first.
                cached_or_within_reach(model, self._cache_folder)
        except Exception as error:  # shown to the person by the thread that waits for this one
            self._error = error
        finally:
            self._decided.set()

    @property
    def unpacking(self) -> bool:
        """Whether the bundled model is being unpacked now."""
        return self.is_alive() and self.unpacked > 0

    def choice(self) -> Choice:
        """Wait for the decision; raises what stood in its way."""
        self._decided.wait()
        if self._choice is None:
            raise self._error or RuntimeError("the thread of the model ended without a decision")
        return self._choice

    def check(self) -> None:
        """Raise what went wrong since."""
        if self._error is not None:
            raise self._error

    def _choose(self) -> Choice:
        if self._given is not None:
            return Choice(self._given, "it was asked for with --model")
        if availability(DEFAULT_MODEL, self._cache_folder) == "cached":
            return Choice(DEFAULT_MODEL, "it is the default, and in the cache")
        problem = hub_problem()
        if problem is None:
            return Choice(DEFAULT_MODEL, "it is the default; it is downloaded from the hub now")
        return Choice(
            BUNDLED_MODEL,
            f"{DEFAULT_MODEL} is not in the cache and the hub cannot be reached ({problem})",
        )

    def _count(self, done: int, total: int) -> None:
        self.unpacked = done / total
