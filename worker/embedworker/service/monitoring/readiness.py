"""Whether a worker does its work: rules over what its lanes and the queue say.

A worker is not ready while it is not connected or loads a model, and it is not ready when rows wait
and it embeds nothing: the model does not return or refuses every text, a source is in trouble, or
nothing moves for a reason nobody foresaw. What is over makes it ready again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embedworker.service.monitoring.health import LaneState, Trouble
from embedworker.settings import Settings

__all__ = ["Backlog", "Readiness", "Reason"]

DATABASE = "database"
AWAY = 10.0  # seconds without the answer of the database that was expected
FAILING = 32  # texts in a row; fewer may just be poisonous ones
STEADY = 3.0  # seconds; a lane comes by about once a second when there is nothing to do


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for one source. ``due``: a row could be taken right now."""

    source: int
    relation: str
    name: str
    model: str
    paused: bool
    waiting: int
    dead: int
    oldest: float | None
    due: bool

    @property
    def labels(self) -> dict[str, str]:
        return {"source": self.relation, "name": self.name}


class Reason(NamedTuple):
    """Why a worker is not ready: the lane, ``database`` or ``process``, and a sentence."""

    part: str
    reason: str


class Readiness:
    """The verdict. ``lanes`` tell their state, or a sentence that says why they have none."""

    def __init__(
        self, settings: Settings, lanes: Mapping[str, Callable[[], LaneState | str]]
    ) -> None:
        self.lanes = lanes
        self.ending = False
        self._limits = {
            "questions": max(settings.query_timeout, STEADY),
            "passages": max(settings.stalled_after, STEADY * settings.poll_max),
        }
        self._stalled_after = settings.stalled_after
        self._backlog: Sequence[Backlog] = ()
        self._answered_at: float | None = None
        self._expected_at = 0.0
        self._error: str | None = "it was not asked yet"
        self._stalled_since: float | None = None
        self._done = -1

    def answered(self, backlog: Sequence[Backlog], again: float) -> None:
        """Note what waits, and in how many seconds the database is to answer again."""
        now = time.monotonic()
        self._backlog, self._answered_at = backlog, now
        self._expected_at, self._error = now + again, None
        state = self._state("passages")
        done = state.done if isinstance(state, LaneState) else self._done
        stopped = {t.source for t in state.troubles} if isinstance(state, LaneState) else set()
        due = any(b.due and not b.paused and b.source not in stopped for b in backlog)
        # From look to look, not by a row's own time: a transaction that was open for an hour hands
        # over rows that are an hour old.
        if not due or done != self._done:
            self._stalled_since = now if due else None
        self._done = done

    def away(self, error: str) -> None:
        """Note that the database could not be asked."""
        self._error = error

    @property
    def fresh(self) -> bool:
        """Whether the database answered last, and not long before it was expected to.

        It is asked less often where answers take long: after one of a second for 20 s not at all.
        """
        return self._error is None and time.monotonic() - self._expected_at <= AWAY

    def reasons(self) -> list[Reason]:
        """Return why the worker is not ready; nothing where it is."""
        reasons = [Reason("process", "it is ending")] if self.ending else []
        if not self.fresh:
            since = self._answered_at
            age = "" if since is None else f" for {time.monotonic() - since:.0f} s"
            error = self._error or "it is still being asked what waits"
            reasons.append(Reason(DATABASE, f"the database has not answered{age}: {error}"))
        for lane in self.lanes:
            state = self._state(lane)
            said = [state] if isinstance(state, str) else self._complaints(state)
            reasons += [Reason(lane, text) for text in said]
        return reasons

    def _state(self, lane: str) -> LaneState | str:
        tell = self.lanes.get(lane)
        return "it is not served here" if tell is None else tell()

    def _complaints(self, state: LaneState) -> list[str]:
        if not state.connected:
            return [f"not connected: {state.obstacle or 'the connection is being made'}"]
        said = []
        if state.loading is not None:
            model, seconds = state.loading
            said.append(f"the model {model!r} has been loading for {seconds:.0f} s")
        elif state.at_model is not None and state.at_model > self._limits[state.lane]:
            said.append(f"a batch has been with the model for {state.at_model:.0f} s")
        elif state.silent > self._limits[state.lane]:
            said.append(f"it has been standing still for {state.silent:.0f} s")
        if state.lane == "questions":
            used = {backlog.model for backlog in self._backlog}
            said += [
                f"the model {model!r} cannot be loaded: {error}"
                for model, error in state.unloadable
                if model in used
            ]
        else:
            said += self._idle(state)
        return said

    def _idle(self, state: LaneState) -> list[str]:
        """Why rows wait that nothing is done about."""
        waiting = {b.source for b in self._backlog if b.waiting and not b.paused}
        said = [
            _told(trouble)
            for trouble in state.troubles
            if trouble.source in waiting and trouble.seconds > self._stalled_after
        ]
        if waiting and state.failed >= FAILING and state.failing > self._stalled_after:
            said.append(
                f"the last {state.failed} texts have all failed {state.failure}; see embed.failure"
            )
        since = self._stalled_since
        stalled = 0.0 if since is None else time.monotonic() - since
        if stalled > self._stalled_after and state.at_model is None:
            said.append(f"rows wait, and nothing has been embedded for {stalled:.0f} s")
        return said


def _told(trouble: Trouble) -> str:
    return f"{trouble.label} has been stopped for {trouble.seconds:.0f} s: {trouble.reason}"
