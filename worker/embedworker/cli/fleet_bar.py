"""What ``embedworker fleet`` shows while it runs: a bar on a terminal, lines elsewhere."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from embedworker import figures
from embedworker.cli.console import console, note
from embedworker.fleet.progress import SourceProgress

__all__ = ["Bar"]

INTERVAL = 10.0  # seconds between two lines where there is no terminal
WINDOW = 30.0  # seconds of which the rate is


class Bar:
    """Shows rows, rate and time that is left; on stderr, because the result is on stdout."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        shown = console(stderr=True)
        self._live = shown.is_terminal
        self._progress = Progress(
            BarColumn(), TextColumn("{task.description}"), console=shown, disable=not self._live
        )
        self._task = self._progress.add_task("starting", total=None)
        self._seen: deque[tuple[float, int]] = deque()
        self._said: set[str] = set()
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, found: Sequence[SourceProgress], running: int, workers: int) -> None:
        """Show how far the sources are and how many workers run."""
        if not found:
            return
        rows = sum(one.rows or 0 for one in found)
        left = sum(one.pending or 0 for one in found)
        line = self._line(rows, rows - left, running, workers)
        if self._live:
            self._progress.update(self._task, total=rows, completed=rows - left, description=line)
        elif time.monotonic() - self._said_at >= INTERVAL:
            self._said_at = time.monotonic()
            note(line)

    def say(self, remark: str) -> None:
        """Say something once."""
        if remark not in self._said:
            self._said.add(remark)
            note(remark)

    def say_end(self, summary: dict[str, Any]) -> None:
        """Say what was done, and what was not."""
        how = "drained" if summary["drained"] else "stopped"
        note(
            f"{how}: {figures.count(summary['rows'])} rows in {summary['seconds']} s, "
            f"{figures.count(summary['rows_per_second'])} rows/s, restarts: {summary['restarts']}"
        )
        for one in summary["sources"]:
            if one["dead"]:
                note(f"{one['source']}: {one['dead']} rows were given up; see embed.failure")

    def _line(self, rows: int, done: int, running: int, workers: int) -> str:
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = max(0.0, (done - before) / (now - since)) if now > since else 0.0
        left = figures.span(timedelta(seconds=(rows - done) / rate) if rate else None)
        return (
            f"{figures.count(done)} of {figures.count(rows)} rows, {figures.count(rate)} rows/s, "
            f"{left} left, workers: {running} of {workers}"
        )
