"""A table whose rows are kept embedded, and the statements made for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from embedworker.database.scripts import extension_schema
from embedworker.database.statements import render, statement
from embedworker.errors import DatabaseError

__all__ = ["Connection", "Source", "load_sources"]

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Source:
    """One row of ``embed.source`` as it is now. Names arrive quoted by the server.

    ``relation``, ``text`` or ``vectors`` is None when the table, a text column or the vector table
    was dropped; then nothing can be done for the source.
    """

    id: int
    name: str
    relation: str | None
    partitioned: bool | None
    vectors: str | None
    vector_keys: list[str]
    source_keys: list[str | None]
    key_types: list[str]
    rows: str | None
    text: str | None
    fault: str | None
    into_column: str | None
    chunk: bool
    model: str
    dimensions: int
    paused: bool
    version: int
    fingerprint: int | None
    words: dict[str, str]  # of keys, see embed._key_sql
    with_terms: bool = True  # words count in searches
    storage: str = "vector"  # the type of the column that holds the vectors, or halfvec
    twin: str | None = None  # vectors of the same model and table, see embed._twin
    vector_schema: str = field(default="public", compare=False)

    @property
    def usable(self) -> bool:
        """Whether table, columns and vector table are all there."""
        return None not in (self.relation, self.text, self.vectors, *self.source_keys)

    def __str__(self) -> str:
        return self.name if self.relation is None else self.relation

    def render(self, name: str, **more: sql.Composable) -> bytes:
        """Return the named query with this source's identifiers; made once where it has no more."""
        if more:
            return render(name, **{**self._parts, **more}).as_bytes(None)
        if name not in self._rendered:
            self._rendered[name] = render(name, **self._parts).as_bytes(None)
        return self._rendered[name]

    def key_parameters(self, keys: Sequence[Sequence[str]]) -> dict[str, list[str]]:
        """Return ``keys`` column by column, as the placeholder ``{key_arrays}`` wants them."""
        return {
            f"k{place}": [key[place - 1] for key in keys]
            for place in range(1, len(self.key_types) + 1)
        }

    def pin_table(self, connection: Connection) -> None:
        """See to it that its rows can be read, all of them, until the current transaction ends.

        Raises psycopg.errors.UndefinedTable where its name stands for something else by now, and
        InsufficientPrivilege where row security hides rows.
        """
        connection.execute(statement("source_hold"), {"source": self.id, "relation": self.relation})

    def after(self, columns: list[str], cursor: Sequence[str] | None) -> sql.Composable:
        """Return the condition "behind the key ``cursor``" over ``columns`` in key order."""
        if cursor is None:
            return sql.SQL("true")
        values = (
            sql.SQL("{}::{}").format(value, _trusted(kind))
            for value, kind in zip(cursor, self.key_types, strict=True)
        )
        return sql.SQL("({}) > ({})").format(
            _trusted(", ".join(columns)), sql.SQL(", ").join(values)
        )

    def qualified(self, alias: str) -> list[str]:
        """Return the source's key columns, qualified."""
        return [f"{alias}.{key}" for key in self.source_keys]

    @cached_property
    def _rendered(self) -> dict[str, bytes]:
        return {}

    @cached_property
    def _parts(self) -> dict[str, sql.Composable]:
        # Keys are sent as text of no type, so that the input function of each type reads them. From
        # the type text it would be a cast, which the owner of the type may have written.
        arrays = sql.SQL(", ").join(
            sql.SQL("{}::{}[]").format(sql.Placeholder(f"k{place}"), _trusted(kind))
            for place, kind in enumerate(self.key_types, 1)
        )
        text: dict[str, str] = {
            **self.words,
            "only": "" if self.partitioned else "only",
            "relation": self.relation or "",
            "vectors": self.vectors or "",
            "rows": self.rows or "",
            "text": self.text or "",
            "fault": self.fault or "",
            "into_column": self.into_column or "",
            "twin": self.twin or "",
            # The vector of a row, where the row itself holds it.
            "row_stored": f"s.{self.into_column}" if self.into_column else "null",
        }
        schema = self.vector_schema.replace("%", "%%")
        return {
            "inbox": sql.Identifier("embed", f"inbox_{self.id}"),
            "queue": sql.Identifier("embed", f"queue_{self.id}"),
            "compact": sql.Identifier("embed", f"source_{self.id}_compact"),
            "vector": sql.Identifier(schema, "vector"),
            "sparsevec": sql.Identifier(schema, "sparsevec"),
            "inner": sql.SQL("operator({}.<#>)").format(sql.Identifier(schema)),
            "sparsevec_send": sql.Identifier(schema, "sparsevec_send"),
            "key_arrays": arrays,
            "stored": sql.Identifier(schema, self.storage),
            "stored_send": sql.Identifier(schema, f"{self.storage}_send"),
            **{name: _trusted(value) for name, value in text.items()},
        }


def load_sources(connection: Connection, numbers: Iterable[int] | None = None) -> list[Source]:
    """Return all sources, or those of these numbers that are there, by id."""
    schema = extension_schema(connection, "vector")
    if schema is None:
        raise DatabaseError("the extension vector is gone; run `embedworker migrate`")
    with connection.cursor(row_factory=class_row(Source)) as cursor:
        wanted = None if numbers is None else list(numbers)
        rows = cursor.execute(statement("source_list"), {"sources": wanted}).fetchall()
    for row in rows:
        object.__setattr__(row, "vector_schema", schema)
    return rows


def _trusted(text: str) -> sql.SQL:
    """Return SQL that the server wrote (``quote_ident``, ``format_type``), never a user's text."""
    return sql.SQL(text.replace("%", "%%"))
