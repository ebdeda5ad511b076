"""How far the tables of a fleet are, as the database says: there is no other account of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from embedworker.database.connect import connect
from embedworker.database.connection import Connection
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import ServerUnavailable, SourceError
from embedworker.queue.source import load_sources

__all__ = ["Connections", "Progress", "SourceProgress", "connections"]

CONNECTIONS = 3  # of one worker: the lane's, the writer's, the heartbeat's


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections of the server: all, those it keeps for others, and those in use."""

    most: int
    kept: int
    used: int

    @property
    def free(self) -> int:
        """How many more a fleet may open."""
        return max(0, self.most - self.kept - self.used)


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """One row of the query ``fleet_progress``."""

    id: int
    source: str
    name: str
    rows: int | None
    embedded: int | None
    pending: int | None
    dead: int | None
    paused: bool
    error: str | None
    swept_at: datetime | None
    at: datetime


class Progress:
    """Looks at some sources, over a connection that is made again when it was lost."""

    def __init__(self, url: str, sources: frozenset[int]) -> None:
        self._url = url
        self._sources = sources
        self._connection: Connection | None = None
        self._begun_at: datetime | None = None

    def look(self) -> list[SourceProgress]:
        """Return how far the sources are; nothing while the server cannot be reached.

        Raises SourceError when one of them is no longer enabled.
        """
        try:
            return self._look()
        except (psycopg.OperationalError, ServerUnavailable):
            self.close()
            return []

    def drained(self, found: Sequence[SourceProgress]) -> bool:
        """Whether all is done that waited when the first look was made, or was swept since.

        Rows that the application changes meanwhile are not waited for, or a busy table would never
        be done. Rows that were given up are done.
        """
        begun_at = self._begun_at
        if not found or begun_at is None:
            return False
        try:
            return all(
                one.swept_at is not None and not self._waits(one, max(one.swept_at, begun_at))
                for one in found
            )
        except (psycopg.OperationalError, ServerUnavailable):
            self.close()
            return False

    def close(self) -> None:
        """Close the connection; the next look makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _look(self) -> list[SourceProgress]:
        with self._open().cursor(row_factory=class_row(SourceProgress)) as cursor:
            found = cursor.execute(
                statement("fleet_progress"), {"sources": list(self._sources)}
            ).fetchall()
        if len(found) < len(self._sources):
            raise SourceError("a table of the fleet is no longer enabled; name the others again")
        if self._begun_at is None:
            self._begun_at = found[0].at
        return found

    def _waits(self, one: SourceProgress, since: datetime) -> bool:
        connection = self._open()
        found = load_sources(connection, {one.id})
        if not found:
            return False  # the next look says it
        row = connection.execute(found[0].render("fleet_waiting"), {"at": since})
        return bool(fetch_one(row)[0])

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url, application_name="embedworker fleet")
        return self._connection


def connections(connection: psycopg.Connection[tuple[object, ...]]) -> Connections:
    """Return what the server has."""
    most, kept, used = fetch_one(connection.execute(statement("fleet_connections")))
    return Connections(most, kept, used)
