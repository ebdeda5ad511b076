"""What an application declares to be searchable, and the SQL that makes it so.

Declarations live in ``MetaData.info``: models put them there, Alembic compares them with the
database. They are plain SQLAlchemy Core, so that both can use them.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from sqlalchemy import Boolean, Connection, MetaData, Select, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS, array
from sqlalchemy.sql.elements import ColumnElement, literal_column

from embedworker.errors import ConfigurationError

__all__ = [
    "Embedding",
    "declarations",
    "declare",
    "disable_call",
    "enable_all",
    "enable_call",
    "outside_of_classes",
    "quoted_name",
    "vector_table_name",
]

INFO = "embedworker"
SUFFIX = "_embedding"
MAX_NAME = 63  # bytes of a PostgreSQL identifier

outside_of_classes: WeakSet[Any] = WeakSet()
"""Each ``Embedded`` that was made and is not in the body of a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One call of ``embed.enable``: names as in the database, None where it has its default."""

    table: str
    columns: tuple[str, ...]
    schema: str | None = None
    name: str | None = None
    model: str | None = None
    template: str | None = None
    into_column: str | None = None
    chunk: bool = True
    filter: str | None = None
    key: tuple[str, ...] | None = None
    words: bool = True
    storage: str | None = None

    @property
    def source_name(self) -> str:
        """The name by which ``embed.source`` knows it."""
        return self.name or self.table

    @property
    def place(self) -> tuple[str | None, str, str]:
        """What tells one declaration from another: schema, table, name."""
        return self.schema, self.table, self.source_name


def declare(metadata: MetaData, embedding: Embedding) -> None:
    """Add a declaration; the same one twice is once.

    Raises:
        ConfigurationError: the table is declared already, in another way.
    """
    known: dict[Any, Embedding] = metadata.info.setdefault(INFO, {})
    if known.setdefault(embedding.place, embedding) != embedding:
        raise ConfigurationError(
            f"the table {embedding.table!r} is declared twice under the name "
            f"{embedding.source_name!r}, in different ways; give one of them another name=…"
        )


def declarations(metadata: MetaData) -> list[Embedding]:
    """Return what is declared for the tables that ``metadata`` has.

    Warns of an ``Embedded`` that was assigned to a class when it was mapped already.
    """
    for lost in list(outside_of_classes):
        outside_of_classes.discard(lost)
        warnings.warn(
            f"{lost!r} is in no class body and does nothing; write it into the body of the class, "
            "or call declare_embedded(…) for one with into_column",
            stacklevel=3,
        )
    tables = {(table.schema, table.name) for table in metadata.tables.values()}
    known: dict[Any, Embedding] = metadata.info.get(INFO, {})
    return [found for found in known.values() if (found.schema, found.table) in tables]


def enable_all(connection: Connection, metadata: MetaData) -> None:
    """Call ``embed.enable`` for everything that is declared; safe to repeat.

    For applications without migrations, after ``metadata.create_all(connection)``; asynchronously
    ``await connection.run_sync(enable_all, metadata)``. The transaction is the caller's, and
    ``schema_translate_map`` counts.

    Raises:
        sqlalchemy.exc.DBAPIError: what the server refuses; without the schema ``embed``, run
            ``embedworker migrate`` first.
    """
    translated: Mapping[str | None, str | None] = (
        connection.get_execution_options().get("schema_translate_map") or {}
    )
    for embedding in declarations(metadata):
        schema = translated.get(embedding.schema, embedding.schema)
        connection.execute(enable_call(embedding, schema=schema))


def enable_call(embedding: Embedding, *, schema: str | None) -> Select[Any]:
    """``select embed.enable(…)`` of the table in ``schema``, None for that of the search_path."""
    named: list[ColumnElement[Any]] = [
        _named(name, value)
        for name in ("name", "model", "template", "into_column", "filter", "storage")
        if (value := getattr(embedding, name)) is not None
    ]
    named += [
        literal_column(name).op("=>")(literal(False, Boolean()))
        for name in ("chunk", "words")
        if not getattr(embedding, name)
    ]
    if embedding.key is not None:
        named.append(literal_column("key").op("=>")(_texts(embedding.key)))
    relation = _relation(schema, embedding.table)
    return select(func.embed.enable(relation, _texts(embedding.columns), *named))


def disable_call(
    table: str, *, schema: str | None, name: str | None, drop_vectors: bool
) -> Select[Any]:
    """``select embed.disable(…)``; no name is every name."""
    named: list[ColumnElement[Any]] = [
        literal_column("drop_vectors").op("=>")(literal(drop_vectors, Boolean()))
    ]
    if name is not None:
        named.append(_named("name", name))
    return select(func.embed.disable(_relation(schema, table), *named))


def vector_table_name(source_name: str) -> str:
    """Return the name that ``embed.enable`` gives to the vector table, cut between characters."""
    while len((source_name + SUFFIX).encode()) > MAX_NAME:
        source_name = source_name[:-1]
    return source_name + SUFFIX


def quoted_name(schema: str | None, table: str) -> str:
    """Return the table's name, quoted for SQL."""
    names = (table,) if schema is None else (schema, table)
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def _relation(schema: str | None, table: str) -> ColumnElement[Any]:
    return cast(literal(quoted_name(schema, table), Text()), REGCLASS())


def _texts(values: tuple[str, ...]) -> ColumnElement[Any]:
    return cast(array([literal(value, Text()) for value in values]), ARRAY(Text()))


def _named(name: str, value: str) -> ColumnElement[Any]:
    return literal_column(name).op("=>")(cast(literal(value, Text()), Text()))
