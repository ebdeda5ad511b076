"""The error that ``embed.status`` shows of each source."""

import psycopg

from embedworker.database.statements import statement
from embedworker.errors import EmbedworkerError
from embedworker.queue.source import Connection
from embedworker.service.logs import without_context

__all__ = ["LOCKED", "SourceErrors", "explained", "is_fault"]

LOCKED = (
    "an open transaction has locked the table, its vectors or its queue; end it (see "
    "pg_stat_activity)"
)


class SourceErrors:
    """Writes errors of sources, by number, into ``embed.source_state``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cleared: set[int] = set()

    def set(self, number: int, error: str | Exception) -> None:
        """Store the error of a source."""
        self._write(number, error if isinstance(error, str) else explained(error))

    def clear(self, number: int) -> None:
        """Store that a source has no error any more."""
        self._cleared.discard(number)
        self._write(number, None)

    def clear_once(self, number: int) -> None:
        """Clear what an earlier worker left, or this one before a pause."""
        if number not in self._cleared:
            self._write(number, None)
            self._cleared.add(number)

    def forget(self, number: int) -> None:
        """Let the next :meth:`clear_once` write again."""
        self._cleared.discard(number)

    def _write(self, number: int, error: str | None) -> None:
        self._connection.execute(statement("source_error"), {"source": number, "error": error})


def is_fault(error: Exception) -> bool:
    """Whether the error is a fault of this program, and none of the database or a model."""
    return not isinstance(error, EmbedworkerError | psycopg.Error)


def explained(error: Exception) -> str:
    """Return the text that is stored as the source's error.

    The words of a fault are left out, because they may quote a row.
    """
    if is_fault(error):
        return (
            f"{type(error).__name__} in embedworker. The worker's log has the traceback: please"
            " report it. The worker tries again"
        )
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return LOCKED
    return without_context(error)
