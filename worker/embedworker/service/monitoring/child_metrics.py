"""How the passage process tells its parent what it counts: a line of JSON a second, over a pipe.

Pushed and not asked for: a process whose model never returns answers no question, and its silence
is what the parent has to know. What a process counted in its last second is lost when it is killed.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from embedworker.service.monitoring.health import LaneState, Telemetry, Trouble
from embedworker.service.monitoring.metrics import Family, Metrics, add, families

__all__ = ["PIPE", "Reporter", "Reports", "report_to_parent"]

log = logging.getLogger("embedworker.child_metrics")

PIPE = "EMBEDWORKER_REPORT_PIPE"  # number of a file descriptor that the parent has opened for us
INTERVAL = 1.0  # seconds between reports
SILENT = 10.0  # seconds after which a process that does not report is not taken for well


class Reporter(threading.Thread):
    """In the child: writes until the parent is gone."""

    def __init__(self, telemetry: Telemetry, descriptor: int) -> None:
        super().__init__(name="reporter", daemon=True)
        self._telemetry = telemetry
        self._descriptor = descriptor

    def run(self) -> None:
        try:
            with os.fdopen(self._descriptor, "w", encoding="utf-8") as pipe:
                while True:
                    report = {
                        "families": families(self._telemetry.metrics.registry),
                        "state": asdict(self._telemetry.health.state()),
                    }
                    pipe.write(json.dumps(report) + "\n")
                    pipe.flush()
                    time.sleep(INTERVAL)
        except BrokenPipeError:
            log.debug("nobody reads the reports any more")


def report_to_parent(telemetry: Telemetry) -> None:
    """Start a reporter if a parent wants reports."""
    descriptor = os.environ.get(PIPE)
    if descriptor is not None:
        Reporter(telemetry, int(descriptor)).start()


class Reports:
    """In the parent: the last report, and the sums of the children that are gone."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._before: dict[str, Family] = {}
        self._done_before = 0
        self._families: list[Family] = []
        self._state: LaneState | None = None
        self._at = 0.0
        self._absence = "the passage process has not reported yet"

    def receive(self, line: str) -> None:
        """Take a report."""
        report = json.loads(line)
        state = _state(report["state"])
        with self._lock:
            self._families, self._state, self._at = report["families"], state, time.monotonic()

    def ended(self, code: int) -> None:
        """Keep the counts of a child that ended, and drop its gauges."""
        self._metrics.ends.inc()
        with self._lock:
            for family in self._families:
                if family["type"] != "gauge":
                    self._before[family["name"]] = _sum(self._before.get(family["name"]), family)
            if self._state is not None:
                self._done_before += self._state.done
            self._families, self._state = [], None
            self._absence = f"the passage process ended with code {code}; it is started again"

    def families(self) -> list[Family]:
        """Return the sum of the counts of all children."""
        with self._lock:
            return [*self._before.values(), *self._families]

    def state(self) -> LaneState | str:
        """How the lane is, or a sentence that says why that is not known."""
        with self._lock:
            state, age = self._state, time.monotonic() - self._at
            if state is None:
                return self._absence
            if age > SILENT:
                return f"the passage process has said nothing for {age:.0f} s"
            return replace(state.later(age), done=state.done + self._done_before)


def _sum(one: Family | None, other: Family) -> Family:
    sums: dict[Any, float] = {}
    for family in (one, other):
        if family is not None:
            add(sums, family)
    samples = [(name, dict(labels), value) for (name, labels), value in sums.items()]
    return {**other, "samples": samples}


def _state(told: Mapping[str, Any]) -> LaneState:
    loading = told["loading"]
    return LaneState(
        **{
            **told,
            "loading": None if loading is None else tuple(loading),
            "unloadable": tuple(tuple(pair) for pair in told["unloadable"]),
            "troubles": tuple(Trouble(**trouble) for trouble in told["troubles"]),
        }
    )
