"""A table whose rows are kept embedded, and the statements made for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from worker.database.scripts import extension_schema
from worker.database.statements import render, statement
from worker.errors import DatabaseError

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
    into_column: str | None
    chunk: bool
    model: str
    dimensions: int
    paused: bool
    version: int
    fingerprint: int | None
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

    def hold(self, connection: Connection) -> None:
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
    def places(self) -> list[str]:
        """The key columns of queue and inbox: k1, k2, …"""
        return [f"k{place}" for place in range(1, len(self.key_types) + 1)]

    @cached_property
    def _parts(self) -> dict[str, sql.Composable]:
        places = self.places
        s_keys = self.qualified("s")
        v_keys = [f"v.{key}" for key in self.vector_keys]

        def listed(alias: str) -> str:
            return ", ".join(f"{alias}.{place}" for place in places)

        def equal(left: Sequence[str], alias: str) -> str:
            pairs = zip(left, places, strict=True)
            return " and ".join(f"{one} = {alias}.{place}" for one, place in pairs)

        # The same, but the order of the key's index is of no use to it. A queue that was analysed
        # when it was empty counts as one row, and then "=" may read all of that index for every
        # job, which the planner takes for one page: beside a foreign snapshot, 54,000 pages.
        def looked_up(left: Sequence[str], alias: str) -> str:
            pairs = zip(left, places, strict=True)
            return " and ".join(f"{one} = any (array[{alias}.{place}])" for one, place in pairs)

        def texts(alias: str) -> str:
            # By output functions: a cast to text may be a function of whoever owns the type.
            shown = (f"pg_catalog.format('%s', {alias}.{place})" for place in places)
            return f"array[{', '.join(shown)}]"

        q_keys = [f"q.{place}" for place in places]
        # Keys travel as text of no type, so that every type of key takes the same road, that of its
        # input function; from the type text it would be a cast, which its owner may have written.
        arrays = sql.SQL(", ").join(
            sql.SQL("{}::{}[]").format(sql.Placeholder(f"k{place}"), _trusted(kind))
            for place, kind in enumerate(self.key_types, 1)
        )
        text: dict[str, str] = {
            "places": ", ".join(places),
            **{f"{alias}_places": listed(alias) for alias in "ipxqjm"},
            "j_places_desc": ", ".join(f"j.{place} desc" for place in places),
            "q_texts": texts("q"),
            "j_texts": texts("j"),
            "q_is_p": looked_up(q_keys, "p"),
            "q_is_j": looked_up(q_keys, "j"),
            "q_is_m": looked_up(q_keys, "m"),
            "s_is_j": equal(s_keys, "j"),
            "s_is_m": equal(s_keys, "m"),
            "v_is_j": equal(v_keys, "j"),
            "v_is_m": looked_up(v_keys, "m"),
            "s_keys": ", ".join(s_keys),
            "s_keys_as_places": ", ".join(
                f"{key} as {place}" for key, place in zip(s_keys, places, strict=True)
            ),
            "v_keys_as_places": ", ".join(
                f"{key} as {place}" for key, place in zip(v_keys, places, strict=True)
            ),
            "vector_keys": ", ".join(self.vector_keys),
            "only": "" if self.partitioned else "only",
            "relation": self.relation or "",
            "vectors": self.vectors or "",
            "rows": self.rows or "",
            "text": self.text or "",
            "into_column": self.into_column or "",
            # Where the vector of a row stands: in the vector table, or in the row.
            "row_stored": f"s.{self.into_column}" if self.into_column else "null",
            "read_stored": "t.stored" if self.into_column else "v.embedding",
            "judged_stored": "j.stored" if self.into_column else "v.embedding",
        }
        return {
            "inbox": sql.Identifier("embed", f"inbox_{self.id}"),
            "queue": sql.Identifier("embed", f"queue_{self.id}"),
            "vector": sql.Identifier(self.vector_schema, "vector"),
            "sparsevec": sql.Identifier(self.vector_schema, "sparsevec"),
            "sparsevec_send": sql.Identifier(self.vector_schema, "sparsevec_send"),
            "key_arrays": arrays,
            "vector_send": sql.Identifier(self.vector_schema, "vector_send"),
            **{name: _trusted(value) for name, value in text.items()},
        }


def load_sources(connection: Connection) -> list[Source]:
    """Return all sources, by id."""
    schema = extension_schema(connection, "vector")
    if schema is None:
        raise DatabaseError("the extension vector is gone; run `embedworker migrate`")
    with connection.cursor(row_factory=class_row(Source)) as cursor:
        rows = cursor.execute(statement("source_list"), {}).fetchall()
    for row in rows:
        object.__setattr__(row, "vector_schema", schema)
    return rows


def _trusted(text: str) -> sql.SQL:
    """SQL that the server itself wrote (``quote_ident``, ``format_type``), never a user's text."""
    return sql.SQL(text.replace("%", "%%"))
