"""Checks whether the table of a source still fits it, and remembers the verdicts."""

import logging
import time
from collections.abc import Iterable, Mapping, Set

import psycopg

from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.queue.source import Connection
from embedworker.service.source_errors import SourceErrors, explained
from embedworker.service.walk import STRETCH

__all__ = ["TableChecks"]

log = logging.getLogger("embedworker.sources")

REFRESH = 60.0  # seconds between looks at whether a table has changed
RETRY = 2.0  # seconds until the next look where one failed

WELL = ("same", "changed")  # verdicts without trouble


class TableChecks:
    """The verdict of the last check of each table, by the number of its source."""

    def __init__(self, connection: Connection, errors: SourceErrors) -> None:
        self._connection = connection
        self._errors = errors
        self._verdicts: dict[int, str] = {}
        self._due_at: dict[int, float] = {}
        self.checked = False
        """Whether no table is due to be checked after the last look."""

    def look(self, sources: Mapping[int, object], new: Set[int]) -> set[int]:
        """Check the ``new`` tables, and those that are due in a stretch; return which.

        ``sources`` are all of them by number, each with its name in the log.
        """
        looked = set(new)
        for number in new:
            self._check(number, sources[number])
        until = time.monotonic() + STRETCH
        due = self._due(sources.keys() - new)
        for number in due:
            self._check(number, sources[number])
            looked.add(number)
            if time.monotonic() > until:
                break
        self.checked = not self._due(sources)
        return looked

    def _due(self, numbers: Iterable[int]) -> list[int]:
        """Return the tables that are to be checked, the one due first first."""
        now = time.monotonic()
        due = [(at, n) for n in numbers if (at := self._due_at.get(n, 0.0)) <= now]
        return [n for _, n in sorted(due)]

    def soon(self, number: int) -> None:
        """Have a table checked at the next look."""
        self._due_at[number] = 0.0

    def _check(self, number: int, label: object) -> None:
        checked = True
        try:
            (verdict,) = fetch_one(
                self._connection.execute(statement("source_refresh"), {"source": number})
            )
        except Exception as error:
            if self._connection.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                raise
            verdict = explained(error)
            checked = False
        self._due_at[number] = time.monotonic() + (REFRESH if checked else RETRY)
        before = self._verdicts.get(number)
        self._verdicts[number] = verdict
        if verdict == "gone":
            log.info("source %s is gone with its table", label)
        elif verdict in WELL:
            if verdict == "changed" and before is not None:
                log.info("source %s: the triggers follow the table's new form", label)
            if before not in (None, *WELL):
                self._errors.clear(number)
        elif verdict != before:
            log.error("source %s: %s", label, verdict)
            self._errors.set(number, verdict)

    def well(self, number: int) -> bool:
        """Whether the last check of a table found no trouble."""
        return self._verdicts.get(number) in WELL

    def cover(self, numbers: Set[int]) -> bool:
        """Whether each of these tables was checked."""
        return numbers <= self._verdicts.keys()

    def reasons(self) -> dict[int, str]:
        """Return what is wrong with tables."""
        return {n: verdict for n, verdict in self._verdicts.items() if verdict not in WELL}
