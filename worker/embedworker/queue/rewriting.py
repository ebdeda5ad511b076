"""Computes vectors of terms of an older scheme again: from the texts, without the model.

It goes in pieces of some milliseconds. A passage is written only where it is still the one that was
read and no worker has it locked, so neither the queue nor a row is waited for.
"""

import logging
from collections.abc import Iterator
from typing import Final

from pgvector import SparseVector

from embedworker.database.connection import pipelined
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.model.lexical import DIMENSIONS, MARK, SCHEME, length, term_vectors
from embedworker.queue.source import Connection, Source

__all__ = ["clear", "older_workers", "rewrite"]

SINCE: Final = "0003"  # the version of the schema whose workers make the newest scheme
PAGES: Final = 16  # read at once, about 60 passages
ENOUGH: Final = 250  # passages whose average length stands for all

log = logging.getLogger("embedworker.queue")


def older_workers(connection: Connection) -> bool:
    """Say whether workers may live that still write vectors of terms of an older scheme."""
    found = connection.execute(statement("migrate_older"), {"version": SINCE})
    return fetch_one(found)[0] is not None


def rewrite(connection: Connection, source: Source, pages: int) -> Iterator[None]:
    """Compute the source's vectors of terms again, some pages at each step.

    ``pages`` is the size of the table of vectors.
    """
    average = _average_length(connection, source, pages)
    written = 0
    for start in range(0, pages, PAGES):
        rows = _read(connection, source, start)
        if rows:
            written += connection.execute(
                source.render("terms_write"),
                {
                    "places": [place for place, _, _ in rows],
                    "seqs": [seq for _, seq, _ in rows],
                    "terms": term_vectors([text for _, _, text in rows], average),
                },
                binary=True,
            ).rowcount
        yield
    if written:
        log.info("source %s: computed the terms of %s passages again", source, f"{written:,}")


def clear(connection: Connection, source: Source, pages: int) -> Iterator[None]:
    """Remove the source's vectors of terms, some pages at each step."""
    cleared = 0
    for start in range(0, pages, PAGES):
        cleared += connection.execute(
            source.render("terms_clear"), {"first": start, "last": start + PAGES}
        ).rowcount
        yield
    if cleared:
        log.info("source %s: removed the terms of %s passages", source, f"{cleared:,}")


def _average_length(connection: Connection, source: Source, pages: int) -> float:
    """Return the terms of a passage on average, of the first that are found."""
    lengths: list[int] = []
    for start in range(0, pages, PAGES):
        lengths += [length(text) for _, _, text in _read(connection, source, start)]
        if len(lengths) >= ENOUGH:
            break
    return sum(lengths) / max(len(lengths), 1)


def _read(connection: Connection, source: Source, start: int) -> list[tuple[str, int, str]]:
    """Return place, number and text of each passage of an older scheme on some pages."""
    with pipelined(connection):
        source.pin_table(connection)
        found = connection.execute(
            source.render("terms_read"),
            {
                "first": start,
                "last": start + PAGES,
                "mark": SparseVector({SCHEME: 1.0}, DIMENSIONS),
                "value": MARK,
            },
        )
    return found.fetchall()
