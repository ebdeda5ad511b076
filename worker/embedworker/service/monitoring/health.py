"""The state of a lane: the lane writes it, and probes and metrics read it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from embedworker.service.monitoring.metrics import Metrics

__all__ = ["Health", "LaneState", "Telemetry", "Trouble"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What stops one source, and for how many seconds it has."""

    source: int
    label: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane at one moment. Times are ages in seconds: another process can use them, too."""

    lane: str
    connected: bool
    obstacle: str | None
    """why it is not connected, as far as it is known"""
    silent: float
    """since the lane's thread last came by"""
    at_model: float | None
    """since a batch went to the model; None: none is there"""
    loading: tuple[str, float] | None
    """the model that has been loading for the longest, and since when"""
    unloadable: tuple[tuple[str, str], ...]
    """models that could not be loaded, and why"""
    done: int
    """rows, or questions, that were done since the start"""
    failed: int
    """texts that failed since the last one that did not"""
    failing: float
    """since the first of them failed"""
    failure: str
    """where the last of them failed"""
    troubles: tuple[Trouble, ...]

    def later(self, seconds: float) -> "LaneState":
        """Return the same state, this many seconds older."""
        return replace(
            self,
            silent=self.silent + seconds,
            at_model=None if self.at_model is None else self.at_model + seconds,
            loading=None if self.loading is None else (self.loading[0], self.loading[1] + seconds),
            failing=self.failing + seconds,
            troubles=tuple(replace(t, seconds=t.seconds + seconds) for t in self.troubles),
        )


class Health:
    """Plain attributes, each entry written by one thread. Texts in it are shown outside."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.connected = False
        self.obstacle: str | None = None
        self.done = 0
        self._seen_at = time.monotonic()
        self._model_since: float | None = None
        self._loading: dict[str, float] = {}
        self._unloadable: dict[str, str] = {}
        self._failed = 0
        self._failing_since = 0.0
        self._failure = ""
        self._troubles: dict[int, tuple[str, str, float]] = {}

    def seen(self) -> None:
        """Note that the lane's thread is alive."""
        self._seen_at = time.monotonic()

    def lost(self, reason: str) -> None:
        """Note that the connection is lost, or was not made."""
        self.connected = False
        self.obstacle = reason

    def found(self) -> None:
        """Note that the lane is connected and registered."""
        self.seen()
        self.connected = True
        self.obstacle = None

    def at_model(self, busy: bool) -> None:
        """Note that a batch goes to the model, or is back."""
        self._model_since = time.monotonic() if busy else None

    def loading(self, model: str) -> None:
        """Note that a thread loads a model; several threads may load one each."""
        self._loading[model] = time.monotonic()

    def opened(self, model: str) -> None:
        """Note that the load of a model ended, with or without success."""
        self._loading.pop(model, None)

    def loaded(self, model: str, error: str | None) -> None:
        """How the load of a model went."""
        if error is None:
            self._unloadable.pop(model, None)
        else:
            self._unloadable[model] = error

    def did(self, count: int, *, by_model: bool = True) -> None:
        """Rows or questions were done, with or without the model."""
        self.done += count
        if by_model:
            self._failed = 0

    def failed(self, count: int, where: str) -> None:
        """Texts failed, at this place (never with an error's words: these may quote them)."""
        if self._failed == 0:
            self._failing_since = time.monotonic()
        self._failed += count
        self._failure = where

    def in_trouble(self, sources: Mapping[int, tuple[str, str]]) -> None:
        """Note the sources that are stopped now: label and reason by number."""
        now = time.monotonic()
        before = self._troubles
        self._troubles = {
            number: (label, reason, before[number][2] if number in before else now)
            for number, (label, reason) in sources.items()
        }

    def state(self) -> LaneState:
        """Return what is so now."""
        now = time.monotonic()
        since, failed = self._model_since, self._failed
        loading = min(self._loading.copy().items(), key=lambda item: item[1], default=None)
        return LaneState(
            lane=self.lane,
            connected=self.connected,
            obstacle=self.obstacle,
            silent=now - self._seen_at,
            at_model=None if since is None else now - since,
            loading=None if loading is None else (loading[0], now - loading[1]),
            unloadable=tuple(self._unloadable.copy().items()),
            done=self.done,
            failed=failed,
            failing=now - self._failing_since if failed else 0.0,
            failure=self._failure,
            troubles=tuple(
                Trouble(number, label, reason, now - since)
                for number, (label, reason, since) in self._troubles.items()
            ),
        )


class Telemetry:
    """What a lane counts and how it fares."""

    def __init__(self, lane: str = "passages", metrics: Metrics | None = None) -> None:
        self.lane = lane
        self.metrics = Metrics() if metrics is None else metrics
        self.health = Health(lane)

    def __repr__(self) -> str:
        return f"<Telemetry {self.lane}>"
