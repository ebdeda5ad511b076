"""Builds a source's HNSW index once its vectors are there, beside everything else.

After the backfill, not before it: filling an index row by row costs several times a build. A small
table stays without; reading it whole is exact and fast.
"""

import logging
import threading
import time

import psycopg
from psycopg import sql

from worker.database.connect import connect
from worker.database.statements import render, statement
from worker.errors import EmbedworkerError
from worker.queue.looks import Looks
from worker.queue.source import Connection, Source
from worker.service.logs import sayable
from worker.settings import DEFAULT_ANSWER_TIMEOUT

__all__ = ["Indexer"]

log = logging.getLogger("embedworker.indexing")

NAME_BYTES = 63


class Indexer:
    """One build at a time, in a thread with a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        after_rows: int,
        application_name: str = "embedworker index",
        answer_timeout: float = DEFAULT_ANSWER_TIMEOUT,
    ) -> None:
        self._url = url
        self._after_rows = after_rows
        self._application_name = application_name
        self._answer_timeout = answer_timeout
        self.looks = Looks()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a build is under way."""
        return self._thread is not None and self._thread.is_alive()

    def consider(self, connection: Connection, source: Source) -> None:
        """Start a build if the source has enough vectors and no valid index.

        One that was left broken is built anew however few there are: it costs every write.
        """
        if self.busy or not self.looks.due(source.id):
            return
        table = (source.relation if source.into_column else source.vectors) or ""
        column = source.into_column or "embedding"
        facts = connection.execute(
            statement("index_facts"),
            {"table": table, "column": column.strip('"').replace('""', '"')},
        ).fetchone()
        broken, valid, building = facts or (None, False, False)
        if valid:
            self._note(connection, source, "valid")
            return
        if building:  # by its owner, or another worker
            self.looks.changed(source.id)
            self._note(connection, source, "building")
            return
        if broken is None and not self._has_enough(connection, table, column):
            self._note(connection, source, "none: few rows")
            return
        self.looks.changed(source.id)  # it may fail
        self._note(connection, source, "building")
        self._thread = threading.Thread(
            target=self._build,
            args=(source, table, column, broken),
            name="indexer",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> bool:
        """Wait for a build that is under way; say whether one was begun since the last wait."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        thread.join()
        return True

    def _has_enough(self, connection: Connection, table: str, column: str) -> bool:
        enough = max(self._after_rows, 1)
        row = connection.execute(
            # With parameters, a percent sign in a name has to be doubled.
            render(
                "index_count",
                table=_quoted(table.replace("%", "%%")),
                column=_quoted(column.replace("%", "%%")),
            ),
            {"enough": enough},
        ).fetchone()
        return row is not None and row[0] >= enough

    def _build(self, source: Source, table: str, column: str, broken: str | None) -> None:
        started = time.monotonic()
        name = _index_name(source, table, column if source.into_column else "")
        try:
            # No limit on waiting: CREATE INDEX CONCURRENTLY waits for old transactions to end, and
            # nobody waits for it meanwhile.
            with connect(
                self._url,
                lock_timeout=0,
                application_name=self._application_name,
                answer_timeout=self._answer_timeout,
            ) as connection:
                if broken is not None:
                    connection.execute(render("index_drop", index=_quoted(broken)))
                connection.execute(
                    render(
                        "index_create",
                        index=sql.Identifier(name),
                        table=_quoted(table),
                        column=_quoted(column),
                        schema=sql.Identifier(source.vector_schema),
                    )
                )
                self._note(connection, source, "valid")
        except (psycopg.Error, EmbedworkerError) as error:
            log.warning("index of %s: %s; trying again later", table, sayable(error))
            return
        log.info("index of %s built in %.1f s", table, time.monotonic() - started)

    @staticmethod
    def _note(connection: Connection, source: Source, state: str) -> None:
        connection.execute(
            statement("source_index_state"), {"source": source.id, "index_state": state}
        )


def _index_name(source: Source, table: str, column: str) -> str:
    base = "_".join(filter(None, (table.rpartition(".")[2].strip('"'), column.strip('"'))))
    if len(base.encode()) + len("_hnsw") <= NAME_BYTES:
        return base + "_hnsw"
    # Cut, so two tables' names may be the same: the source's number tells them apart.
    suffix = f"_{source.id}_hnsw"
    return base.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _quoted(identifier: str) -> sql.SQL:
    return sql.SQL(identifier)  # quoted by the server already
