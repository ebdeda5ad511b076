"""Builds the index over the words of a source's passages, beside everything else.

A search looks its rarest words up in it. Small tables are read in whole instead.
"""

from typing import Final, NamedTuple

from psycopg import sql
from psycopg.rows import class_row

from embedworker.database.connection import Connection as OwnConnection
from embedworker.database.connection import alone
from embedworker.database.statements import render, statement
from embedworker.queue.source import Connection, Source
from embedworker.service.building import create
from embedworker.service.index_plan import WordsPlan

__all__ = ["build_words", "words_plan"]

MEMORY: Final = 64 << 20  # bytes, for 100,000 passages at once


class _Facts(NamedTuple):
    """The row of the query ``index_words``."""

    superfluous: list[str]
    wanted: bool
    valid: bool
    building: bool
    name: str
    schema: str
    definition: str
    passages: int


def words_plan(connection: Connection, source: Source, *, after_rows: int) -> WordsPlan | None:
    """Return what is to be built; None where there is nothing to do."""
    with connection.cursor(row_factory=class_row(_Facts)) as cursor:
        facts = cursor.execute(statement("index_words"), {"source": source.id}).fetchone()
    if facts is None or facts.building:
        return None
    enough = facts.wanted and not facts.valid and facts.passages >= after_rows
    if not enough and not facts.superfluous:
        return None
    return WordsPlan(
        source,
        facts.name,
        facts.schema,
        facts.definition,
        tuple(facts.superfluous),
        facts.wanted and not facts.valid,
    )


def build_words(connection: OwnConnection, plan: WordsPlan) -> None:
    """Build the index; a build that fails leaves nothing behind. Raises psycopg.Error."""
    for index in plan.superfluous:
        alone(connection, render("index_drop", index=sql.SQL(index)))
    if not plan.wanted:
        return
    connection.execute(statement("index_words_memory"), {"bytes": MEMORY})
    create(connection, plan)
