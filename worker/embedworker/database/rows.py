"""Results of statements that always give a row."""

from typing import Any

import psycopg

from embedworker.errors import DatabaseError

__all__ = ["fetch_one"]


def fetch_one(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the first row of a statement that always has one.

    Raises DatabaseError where it has none, which a trigger or rule of somebody's must have caused.
    """
    row = cursor.fetchone()
    if row is None:
        raise DatabaseError(f"expected a row from the server, got {cursor.statusmessage or 'none'}")
    return row
