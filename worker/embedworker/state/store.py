"""What the page and assistants read from the database, and the few things that the page writes.

Every look is a transaction that is read only and has a statement_timeout. Rights and row security
are those of the login that connects.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import OperationalError, sql
from psycopg.rows import class_row

from embedworker.database.connect import connect
from embedworker.database.connection import Connection
from embedworker.database.rows import fetch_one
from embedworker.database.statements import render, statement
from embedworker.errors import NotMigrated, SearchWarning, SourceError
from embedworker.search.functions import search
from embedworker.search.marking import marked
from embedworker.search.pool import Pool
from embedworker.state.rows import (
    Found,
    Group,
    NumberedStatus,
    Queue,
    Rights,
    Source,
    Switch,
    Worker,
)

__all__ = ["Change", "Look", "Store"]

CONNECTIONS = 4
STATEMENT_TIMEOUT = 5.0  # seconds; a look takes some milliseconds
LOCK_TIMEOUT = 1.0  # seconds
FAILURES_READ = 2000  # rows of a queue of each kind, the oldest first
FAILURES_SHOWN = 10  # keys of one reason


class Store:
    """Asks one database over connections that are opened when needed and kept.

    May be used from several threads; more than CONNECTIONS at once wait for each other.
    The server shows ``application`` as the name of each connection.
    """

    def __init__(self, url: str, application: str = "embedworker web") -> None:
        self._url = url
        self._application = application
        self._pool = Pool[Connection, threading.Semaphore](
            lambda: threading.BoundedSemaphore(CONNECTIONS)
        )

    def close(self) -> None:
        """Close the connections that are not in use."""
        while (connection := self._pool.take()) is not None:
            connection.close()

    @contextmanager
    def look(self, timeout: float = STATEMENT_TIMEOUT) -> Iterator["Look"]:
        """Open a transaction that only reads, and whose statements take ``timeout`` s at most.

        Raises:
            NotMigrated: the schema embed is not there.
            ServerUnavailable: no connection could be made.
            psycopg.Error: what the server refuses.
        """
        with self._transaction(timeout, read_only=True) as connection:
            yield Look(connection)

    @contextmanager
    def change(self) -> Iterator["Change"]:
        """Open a transaction that writes. Raises what :meth:`look` raises."""
        with self._transaction(STATEMENT_TIMEOUT, read_only=False) as connection:
            yield Change(connection)

    @contextmanager
    def _transaction(self, timeout: float, *, read_only: bool) -> Iterator[Connection]:
        with self._pool.turns:
            connection = self._connection()
            try:
                connection.read_only = read_only
                with connection.transaction():
                    connection.execute(
                        statement("web_bounds"),
                        {"statement": f"{timeout:g}s", "lock": f"{LOCK_TIMEOUT:g}s"},
                    )
                    if not fetch_one(connection.execute(statement("cli_migrated")))[0]:
                        raise NotMigrated(
                            f"the database {connection.info.dbname!r} is not set up for "
                            "embedworker; run `embedworker migrate`"
                        )
                    yield connection
            finally:
                if not self._pool.give_back(connection):
                    connection.close()

    def _connection(self) -> Connection:
        while (kept := self._pool.take()) is not None:
            if _alive(kept):
                return kept
            kept.close()
        return connect(self._url, application_name=self._application, patient=False)


def _alive(connection: Connection) -> bool:
    """Whether a kept connection still answers; the server may have been restarted."""
    try:
        connection.execute("select 1")
    except OperationalError:
        return False
    return True


class Look:
    """What one page reads, in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rights(self) -> Rights:
        """Return what this login may see."""
        return Rights(*fetch_one(self.connection.execute(statement("web_rights"))))

    def status(self, source: int | None = None) -> list[NumberedStatus]:
        """Return every source, or one, and how far it is."""
        with self.connection.cursor(row_factory=class_row(NumberedStatus)) as cursor:
            return cursor.execute(statement("web_status"), {"source": source}).fetchall()

    def source(self, number: int) -> Source:
        """Return what a source is made of. Raises SourceError where it is not there."""
        with self.connection.cursor(row_factory=class_row(Source)) as cursor:
            found = cursor.execute(statement("web_source"), {"source": number}).fetchone()
        if found is None:
            raise _unknown(number)
        return found

    def workers(self) -> list[Worker]:
        """Return the live workers, each once; its lanes are two processes."""
        lanes: dict[tuple[str, int], list[dict[str, Any]]] = {}
        cursor = self.connection.execute(statement("cli_workers"))
        names = [column.name for column in cursor.description or ()]
        for values in cursor:
            row = dict(zip(names, values, strict=True))
            lanes.setdefault((row["host"], row["process"]), []).append(row)

        def done(rows: list[dict[str, Any]], lane: str) -> int:
            return sum(row["embedded"] for row in rows if lane in row["lanes"])

        return [
            Worker(
                place=f"{host}/{process}",
                lanes=sorted({lane for row in rows for lane in row["lanes"]}),
                embedded=done(rows, "passages"),
                answered=done(rows, "questions"),
                rows_per_second=sum(
                    row["rows_per_second"] for row in rows if "passages" in row["lanes"]
                ),
                models=sorted({row["model"] for row in rows if row["model"]}),
                started_at=min(row["started_at"] for row in rows),
            )
            for (host, process), rows in lanes.items()
        ]

    def switches(self) -> list[Switch]:
        """Return the changes of a model that are under way."""
        return [Switch(*row) for row in self.connection.execute(statement("web_switches"))]

    def questions_waiting(self) -> int:
        """Return how many questions nobody has answered yet."""
        (waiting,) = fetch_one(self.connection.execute(statement("web_questions")))
        return int(waiting)

    def queues(self, source: int | None = None) -> list[Queue]:
        """Return every queue, or that of one source."""
        rows = self.connection.execute(statement("web_queues"), {"source": source})
        return [Queue(*row) for row in rows]

    def failures(self, source: int | None = None) -> list[Group]:
        """Return the rows that failed by source and reason: at most FAILURES_READ of a queue."""
        groups = []
        for queue in self.queues(source):
            if queue.countable:
                groups += self._failures(queue)
        return groups

    def _failures(self, queue: Queue) -> list[Group]:
        query = render(
            "web_failures" if queue.readable else "web_failure_counts",
            queue=sql.Identifier("embed", f"queue_{queue.id}"),
        )
        cursor = self.connection.execute(query, {"bound": FAILURES_READ, "shown": FAILURES_SHOWN})
        names = [column.name for column in cursor.description or ()]
        found = []
        for values in cursor:
            row = dict(zip(names, values, strict=True))
            entries = zip(row.pop("numbers", ()), row.pop("entries", ()), strict=True)
            keys = [(number, _key(queue.keys, entry)) for number, entry in entries]
            found.append(Group(queue=queue, rows=keys, **{"error": None, **row}))
        return found

    def searchable(self, table: str | None = None) -> list[tuple[str, str]]:
        """Return the tables whose rows this login may read: as shown, and qualified."""
        rows = self.connection.execute(statement("web_searchable"), {"table": table})
        return [(shown, qualified) for shown, qualified in rows]

    def search(
        self,
        table: str,
        question: str,
        k: int,
        *,
        lexical: float | None,
        rerank: int | None,
        matching: dict[str, str] | None,
        skip: int,
        timeout: float,
    ) -> Found:
        """Search a table that :meth:`searchable` has named.

        Raises psycopg.Error, after which this look reads no more.
        """
        said: list[str] = []

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            said.append(notice.message_primary or "")

        self.connection.add_notice_handler(hear)
        try:
            with warnings.catch_warnings():
                # The page shows the remarks. As warnings they would go to the log of the process.
                warnings.simplefilter("ignore", SearchWarning)
                hits = search(
                    self.connection,
                    table,
                    question,
                    k,
                    lexical=lexical,
                    rerank=rerank,
                    matching=matching,
                    skip=skip,
                    timeout=timeout,
                )
        finally:
            self.connection.remove_notice_handler(hear)
        passages = marked(self.connection, [hit.passage for hit in hits], question)
        return Found(hits, passages, list(dict.fromkeys(said)))


class Change(Look):
    """What a person may do to a source. Each raises SourceError where it is not there."""

    def tell(self, query: str, number: int) -> str:
        """Pause, resume or retry the table of a source; return the table."""
        source = self.source(number)
        self.connection.execute(statement(query), {"relation": source.relation})
        return self._name(number)

    def switch(self, query: str, number: int, **arguments: bool) -> str:
        """Go on with, or end, the change of a source's model; return the table."""
        table, name = self._names(number)
        relation = self.source(number).relation
        given = {"relation": relation, "name": name, **arguments}
        self.connection.execute(statement(query), given)
        return table

    def sweep(self, number: int) -> str:
        """Ask a worker for a sweep; to count what differs here would read every row."""
        name = self._name(number)
        self.connection.execute(
            statement("source_request_sweep"), {"source": number, "reason": "asked for"}
        )
        self.connection.execute(statement("web_wake"))
        return name

    def retry(self, number: int, *, row: int | None, error: str | None) -> tuple[str, int]:
        """Have a dead row, or all with the same error, tried again; return table and count."""
        queues = self.queues(number)
        if not queues:
            raise _unknown(number)
        keys = [sql.Identifier(f"k{place}") for place, _ in enumerate(queues[0].keys, 1)]
        query = render(
            "web_retry_alike" if row is None else "web_retry_one",
            inbox=sql.Identifier("embed", f"inbox_{number}"),
            queue=sql.Identifier("embed", f"queue_{number}"),
            keys=sql.SQL(", ").join(keys),
        )
        done = self.connection.execute(query, {"number": row, "error": error}).rowcount
        self.connection.execute(statement("web_wake"))
        return queues[0].source, done

    def _name(self, number: int) -> str:
        return self._names(number)[0]

    def _names(self, number: int) -> tuple[str, str]:
        queues = self.queues(number)
        if not queues:
            raise _unknown(number)
        return queues[0].source, queues[0].name


def _key(names: list[str], entry: dict[str, Any]) -> str:
    return ", ".join(f"{name}={entry[f'k{place}']}" for place, name in enumerate(names, 1))


def _unknown(number: int) -> SourceError:
    return SourceError(f"no table is enabled under the number {number}; it may be disabled by now")
