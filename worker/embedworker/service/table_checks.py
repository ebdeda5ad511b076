"""Checks whether the table of a source still fits it, and remembers the verdicts."""

import logging
from collections.abc import Set

import psycopg

from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.queue.source import Connection
from embedworker.service.source_errors import SourceErrors, explained

__all__ = ["TableChecks"]

log = logging.getLogger("embedworker.sources")

WELL = ("same", "changed")  # verdicts without trouble


class TableChecks:
    """The verdict of the last check of each table, by the number of its source."""

    def __init__(self, connection: Connection, errors: SourceErrors) -> None:
        self._connection = connection
        self._errors = errors
        self._verdicts: dict[int, str] = {}

    def check(self, number: int, label: object) -> bool:
        """Check one table; False when even the check failed. The log calls it ``label``."""
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
        return checked

    def well(self, number: int) -> bool:
        """Whether the last check of a table found no trouble."""
        return self._verdicts.get(number) in WELL

    def cover(self, numbers: Set[int]) -> bool:
        """Whether each of these tables was checked."""
        return numbers <= self._verdicts.keys()

    def reasons(self) -> dict[int, str]:
        """Return what is wrong with tables."""
        return {n: verdict for n, verdict in self._verdicts.items() if verdict not in WELL}
