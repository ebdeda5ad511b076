"""How the passage process tells its parent what it counts: a line of JSON a second, over a pipe.

Pushed and not asked for: a process whose model never returns answers no question, and its silence
is what the parent has to know. What a process counted in its last second is lost when it is killed.
"""

import json
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from embedworker.service.monitoring.health import LaneState, Telemetry, Trouble
from embedworker.service.monitoring.metrics import Family, Metrics, add, families

__all__ = ["PIPE", "Reporter", "Reports", "report_to_parent"]

log = logging.getLogger("embedworker.child_metrics")

PIPE = "EMBEDWORKER_REPORT_PIPE"  # number of a file descriptor that the parent has opened for us
INTERVAL = 1.0  # seconds between reports
SHARE = 0.1  # seconds between reports for each database: 40 report every 4 s
SILENT = 10.0  # seconds after which a process that does not report is not taken for well


Telemetries = Callable[[], Mapping[str, Telemetry]]
"""The lanes of the child by database; the name is empty where it has one."""


class Reporter(threading.Thread):
    """In the child: writes until the parent is gone."""

    def __init__(self, telemetries: Telemetries, descriptor: int) -> None:
        super().__init__(name="reporter", daemon=True)
        self._telemetries = telemetries
        self._descriptor = descriptor

    def run(self) -> None:
        try:
            with os.fdopen(self._descriptor, "w", encoding="utf-8") as pipe:
                while True:
                    telemetries = self._telemetries()
                    for database, telemetry in telemetries.items():
                        report = {
                            "database": database,
                            "families": families(telemetry.metrics.registry),
                            "state": asdict(telemetry.health.state()),
                        }
                        pipe.write(json.dumps(report) + "\n")
                    pipe.flush()
                    time.sleep(max(INTERVAL, SHARE * len(telemetries)))
        except BrokenPipeError:
            log.debug("nobody reads the reports any more")


def report_to_parent(telemetries: Telemetries) -> None:
    """Start a reporter if a parent wants reports."""
    descriptor = os.environ.get(PIPE)
    if descriptor is not None:
        Reporter(telemetries, int(descriptor)).start()


class _Reported:
    """Of one database: the last report, and the sums of the children that are gone."""

    def __init__(self) -> None:
        self.before: dict[str, Family] = {}
        self.done_before = 0
        self.families: list[Family] = []
        self.state: LaneState | None = None
        self.at = 0.0
        self.absence = "the passage process has not reported yet"

    def ended(self, code: int) -> None:
        for family in self.families:
            if family["type"] != "gauge":
                self.before[family["name"]] = _sum(self.before.get(family["name"]), family)
        if self.state is not None:
            self.done_before += self.state.done
        self.families, self.state = [], None
        self.absence = f"the passage process ended with code {code}; it is started again"


class Reports:
    """In the parent: what the child has reported of each database."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._of: defaultdict[str, _Reported] = defaultdict(_Reported)

    def receive(self, line: str) -> None:
        """Take a report."""
        report = json.loads(line)
        state = _state(report["state"])
        with self._lock:
            of = self._of[report["database"]]
            of.families, of.state, of.at = report["families"], state, time.monotonic()

    def ended(self, code: int) -> None:
        """Keep the counts of a child that ended, and drop its gauges."""
        self._metrics.ends.inc()
        with self._lock:
            for of in self._of.values():
                of.ended(code)

    def families(self, database: str = "") -> list[Family]:
        """Return the sum of the counts of all children."""
        with self._lock:
            of = self._of[database]
            return [*of.before.values(), *of.families]

    def state(self, database: str = "") -> LaneState | str:
        """How the lane is, or a sentence that says why that is not known."""
        with self._lock:
            of = self._of[database]
            age = time.monotonic() - of.at
            if of.state is None:
                return of.absence
            if age > SILENT:
                return f"the passage process has said nothing for {age:.0f} s"
            return replace(of.state.later(age), done=of.state.done + of.done_before)


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
