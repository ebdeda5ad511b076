"""Which indexes a source is to have: their names, their place, and what is there already."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import sql

from embedworker.database.rows import fetch_one
from embedworker.database.statements import render, statement
from embedworker.queue.source import Connection, Source

__all__ = ["Plan", "WordsPlan", "has_enough", "indexes", "plan"]

NAME_BYTES = 63


class Index(NamedTuple):
    """An index that is there."""

    quoted: str
    name: str
    valid: bool
    building: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build, or only to drop where a valid index is there (``served``).

    ``table``, ``column`` and ``leftovers``, broken indexes to drop first, arrive quoted.
    """

    source: Source
    name: str
    schema: str
    table: str
    column: str
    definition: str | None
    type: str
    served: bool
    leftovers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WordsPlan:
    """What index over words to build.

    ``superfluous`` indexes, quoted, are dropped first: a failed build left them.
    ``wanted`` is false where words do not count: then nothing is built.
    """

    source: Source
    name: str
    schema: str
    definition: str
    superfluous: tuple[str, ...]
    wanted: bool

    @property
    def table(self) -> str:
        """The table of the passages, quoted."""
        return self.source.vectors or ""


def indexes(connection: Connection, source: Source) -> list[Index]:
    """Return the indexes over a source's vectors."""
    rows = connection.execute(statement("index_facts"), {"source": source.id})
    return [Index(*row) for row in rows]


def has_enough(connection: Connection, source: Source, rows: int) -> bool:
    """Return whether a source has so many vectors that an index pays."""
    table, column = _place(source)
    enough = max(rows, 1)
    row = connection.execute(
        # With parameters, a percent sign in a name has to be doubled.
        render(
            "index_count",
            table=sql.SQL(table.replace("%", "%%")),
            column=sql.SQL(column.replace("%", "%%")),
        ),
        {"enough": enough},
    ).fetchone()
    return row is not None and row[0] >= enough


def plan(connection: Connection, source: Source, found: Sequence[Index]) -> Plan:
    """Return what to build for a source, or to drop, with the indexes that are there."""
    table, column = _place(source)
    name = _index_name(source, table, column if source.into_column else "")
    definition, kind, schema = fetch_one(
        connection.execute(statement("index_definition"), {"source": source.id})
    )
    served = any(index.valid for index in found)
    # A table of the application may have a broken index of its owner's, and so may ours beside
    # one that serves. REINDEX CONCURRENTLY that fails leaves one of our name and "_ccnew".
    ours = re.compile(re.escape(name) + r"(_cc(new|old)\d*)?")
    leftovers = tuple(
        index.quoted
        for index in found
        if not index.valid and (ours.fullmatch(index.name) or not (served or source.into_column))
    )
    return Plan(source, name, schema, table, column, definition, kind, served, leftovers)


def _place(source: Source) -> tuple[str, str]:
    """Return the table and the column of the vectors, quoted."""
    return (source.relation if source.into_column else source.vectors) or "", (
        source.into_column or "embedding"
    )


def _index_name(source: Source, table: str, column: str) -> str:
    base = "_".join(filter(None, (table.rpartition(".")[2].strip('"'), column.strip('"'))))
    if len(base.encode()) + len("_hnsw") <= NAME_BYTES:
        return base + "_hnsw"
    # Cut, so two tables' names may be the same: the source's number tells them apart.
    suffix = f"_{source.id}_hnsw"
    return base.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
