"""One build of an HNSW index: the memory it gets, what it says meanwhile, and what it leaves."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from psycopg import sql

from embedworker.database.connect import connect
from embedworker.database.connection import Connection, alone
from embedworker.database.rows import fetch_one
from embedworker.database.statements import render, statement
from embedworker.errors import EmbedworkerError
from embedworker.service.index_plan import Plan, WordsPlan
from embedworker.service.monitoring.metrics import Metrics
from embedworker.service.threads import Thread

__all__ = ["build", "create", "drop_broken", "watched"]

log = logging.getLogger("embedworker.indexing")

TICK: Final = 1.0  # seconds between looks at a build
SAY: Final = 10.0  # seconds between lines about it


def build(connection: Connection, plan: Plan, *, memory: int) -> None:
    """Build the index with up to ``memory`` bytes; one that fails leaves nothing behind.

    Raises psycopg.Error.
    """
    for index in plan.leftovers:
        drop_broken(connection, sql.SQL(index))
    if plan.served:
        return
    connection.add_notice_handler(lambda diagnostic: _note_notice(plan, diagnostic))
    _allow(connection, plan, memory)
    try:
        create(connection, plan)
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        # The processes share the graph, and a container often has 64 MB for that.
        log.warning("index of %s: %s; building without parallel workers", plan.table, _said(error))
        connection.execute(statement("index_alone"))
        create(connection, plan)


def drop_broken(connection: Connection, index: sql.Composable) -> None:
    """Drop what a failed build left, unless its name stands for an index in use by now."""
    known = {"index": index.as_string(connection)}
    if fetch_one(connection.execute(statement("index_broken"), known))[0]:
        alone(connection, render("index_drop", index=index))


def create(connection: Connection, plan: Plan | WordsPlan) -> None:
    """Create an index. One that fails is dropped."""
    try:
        alone(
            connection,
            render(
                "index_create",
                index=sql.Identifier(plan.name),
                definition=sql.SQL(plan.definition or ""),
            ),
        )
    except psycopg.errors.DuplicateTable:
        raise  # its name was free a moment ago: another session builds it
    except psycopg.Error:
        with suppress(psycopg.Error):  # what failed is what is worth knowing
            drop_broken(connection, sql.Identifier(plan.schema, plan.name))
        raise


def _allow(connection: Connection, plan: Plan, memory: int) -> None:
    table, column = (name.replace("%", "%%") for name in (plan.table, plan.column))
    counted = render("index_size", table=sql.SQL(table), column=sql.SQL(column))
    known = {"dimensions": plan.source.dimensions, "type": plan.type}
    vectors, needed = fetch_one(connection.execute(counted, known))
    given, workers, _ = fetch_one(
        connection.execute(statement("index_memory"), {"bytes": min(needed, memory)})
    )
    log.info(
        "index of %s: begun over %s vectors, with %s MB of memory and up to %s parallel workers",
        plan.table,
        f"{vectors:,}",
        given >> 20,
        workers,
    )
    if needed > given:
        log.warning(
            "index of %s: the graph needs about %s MB, and EMBEDWORKER_INDEX_MEMORY allows %s MB; "
            "vectors that do not fit take several times as long",
            plan.table,
            needed >> 20,
            given >> 20,
        )


def _note_notice(plan: Plan, diagnostic: psycopg.errors.Diagnostic) -> None:
    log.info("index of %s: %s", plan.table, diagnostic.message_primary)


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or type(error).__name__


@contextmanager
def watched(url: str, plan: Plan | WordsPlan, metrics: Metrics) -> Iterator[None]:
    """Say from time to time how far the build is that the block makes."""
    ended = threading.Event()
    watch = Thread(target=_watch, args=(url, plan, metrics, ended), name="index watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
        with suppress(KeyError):
            metrics.index_ratio.remove(str(plan.source), plan.source.name)


def _watch(url: str, plan: Plan | WordsPlan, metrics: Metrics, ended: threading.Event) -> None:
    ratio = metrics.index_ratio.labels(str(plan.source), plan.source.name)
    ratio.set(0)
    say_at = time.monotonic() + SAY
    try:
        with connect(url, application_name="embedworker index watch") as connection:
            while not ended.wait(TICK):
                row = connection.execute(
                    statement("index_progress"), {"table": plan.table}
                ).fetchone()
                if row is None:
                    continue
                phase, share, pid, application, waited = row
                ratio.set(share or 0)
                if time.monotonic() < say_at:
                    continue
                say_at += SAY
                if pid is not None:
                    log.info(
                        "index of %s: waiting for the end of a transaction that process %s (%s) "
                        "began %.0f s ago",
                        plan.table,
                        pid,
                        application or "no application_name",
                        waited or 0,
                    )
                elif share is not None:
                    log.info("index of %s: %s, %.0f %%", plan.table, phase, 100 * share)
    except (psycopg.Error, EmbedworkerError) as error:
        log.debug("index of %s: its progress cannot be seen: %s", plan.table, error)
