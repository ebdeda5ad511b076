"""The sweep: finds by text hash what triggers could not see, a page of keys at a time.

It is also the backfill of a newly enabled table and the way to another model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from embedworker.database.connection import pipelined
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.queue.failure import may_be_unreadable
from embedworker.queue.source import Connection, Source

__all__ = ["PAGE", "Page", "Sweep", "due_sweeps", "request"]

PAGE = 1000  # keys; about 20 ms of the server for short texts


@dataclass(frozen=True, slots=True)
class Page:
    """What one page of a sweep found, in rows; ``done``: there is no further page.

    ``held`` False: embed.cut_over has exchanged the vectors since the source was read. The page
    then counts for nothing, and the sweep stays where it was.
    """

    visited: int
    missing: int
    stale: int
    orphaned: int
    queued: int
    done: bool
    held: bool = True


class Sweep:
    """One sweep of one source, resumable: where it stands is kept in the database.

    ``repair=False`` only counts, from the beginning, and keeps nothing.
    """

    def __init__(
        self,
        connection: Connection,
        source: Source,
        fingerprint: int | None,
        *,
        repair: bool = True,
    ) -> None:
        self._connection = connection
        self._source = source
        self._fingerprint = fingerprint
        self._repair = repair
        self._phase = "rows"
        self._cursor: Sequence[str] | None = None
        if repair:
            self._resume()

    def __repr__(self) -> str:
        return f"<Sweep of {self._source}: {self._phase} after {self._cursor}>"

    def _resume(self) -> None:
        row = self._connection.execute(
            statement("sweep_current"), {"source": self._source.id}
        ).fetchone()
        if row is not None:
            self._phase, self._cursor = row[0], row[1]

    @staticmethod
    @contextmanager
    def turn(connection: Connection, source: Source) -> Iterator[bool]:
        """Open a transaction for one page in which no other worker sweeps this source; else False.

        Where the sweep stands may have changed since the last turn.
        """
        with connection.transaction():
            yield bool(
                fetch_one(connection.execute(statement("sweep_turn"), {"source": source.id}))[0]
            )

    @staticmethod
    def begin(connection: Connection, source: Source) -> None:
        """Start over, for everything asked for until now; in a turn."""
        connection.execute(source.render("sweep_begin"), {"source": source.id})
        _count_on(connection, source, recount=True)

    @property
    def done(self) -> bool:
        """Whether both phases are through."""
        return self._phase == "done"

    def page(self, limit: int = PAGE) -> Page:
        """Look at the next ``limit`` keys and queue what is not as it should be."""
        source = self._source
        if self._phase == "rows":
            visited, cursor, missing, stale, queued, held = self._run(
                "sweep_rows", source.qualified("s"), limit
            )
            orphaned = 0
        else:
            visited, cursor, orphaned, held = self._run(
                "sweep_orphans", [f"v.{key}" for key in source.vector_keys], limit
            )
            missing, stale, queued = 0, 0, orphaned
        if not held:
            return Page(0, 0, 0, 0, 0, done=False, held=False)
        if visited < limit:
            self._phase, self._cursor = ("orphans" if self._phase == "rows" else "done"), None
        else:
            self._cursor = cursor
        if self._repair:
            self._connection.execute(
                statement("sweep_save"),
                {
                    "source": source.id,
                    "phase": self._phase,
                    "cursor": self._cursor,
                    "visited": visited,
                    "missing": missing,
                    "stale": stale,
                    "orphaned": orphaned,
                },
            )
            if missing or orphaned or self.done:
                _count_on(
                    self._connection,
                    source,
                    missing=missing,
                    orphaned=orphaned,
                    done=self.done,
                    recount=self.done,
                )
        return Page(visited, missing, stale, orphaned, queued, self.done)

    def _run(self, name: str, columns: list[str], limit: int) -> tuple[Any, ...]:
        try:
            with self._connection.transaction():  # the turn goes on after an error
                return self._look(name, columns, limit)
        except psycopg.Error as error:
            if not self._repair or not may_be_unreadable(error):
                raise
        return self._look(f"{name}_unjudged", columns, limit)

    def _look(self, name: str, columns: list[str], limit: int) -> tuple[Any, ...]:
        source = self._source
        with pipelined(self._connection):
            source.pin_table(self._connection)
            cursor = self._connection.execute(
                source.render(name, after=source.after(columns, self._cursor)),
                {"fingerprint": self._fingerprint, "limit": limit, "repair": self._repair},
            )
        return fetch_one(cursor)


def _count_on(
    connection: Connection,
    source: Source,
    *,
    missing: int = 0,
    orphaned: int = 0,
    done: bool = False,
    recount: bool,
) -> None:
    """Keep the counters of ``embed.status``: rows without a vector that no sweep has queued yet."""
    connection.execute(
        statement("count_swept"),
        {
            "source": source.id,
            "missing": missing,
            "orphaned": orphaned,
            "done": done,
            "recount": recount,
        },
    )


def due_sweeps(connection: Connection, interval: float) -> tuple[set[int], set[int]]:
    """Return the sources with a sweep to begin, and those with a sweep to continue.

    A sweep begins when the last one is older than ``interval`` seconds, or if there was none.
    """
    rows = connection.execute(statement("sweep_due"), {"interval": interval}).fetchall()
    return (
        {int(source) for source, unfinished in rows if not unfinished},
        {int(source) for source, unfinished in rows if unfinished},
    )


def request(connection: Connection, source: Source, reason: str) -> None:
    """Ask for a sweep; a worker takes it up at its next look."""
    connection.execute(statement("source_request_sweep"), {"source": source.id, "reason": reason})
