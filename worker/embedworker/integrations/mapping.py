"""Declaring on a mapped class, or for a plain table, what is searchable by meaning."""

import re
from collections.abc import Sequence
from typing import Any, overload

from sqlalchemy import Column, Table, event, inspect
from sqlalchemy.orm import Mapper

from embedworker.errors import ConfigurationError
from embedworker.integrations.declaration import Embedding, declare, outside_of_classes
from embedworker.integrations.vector_table import EmbeddedAttribute, Passage, passages_relationship

__all__ = ["Embedded", "declare_embedded"]

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Embedded:
    """Declares text columns of a mapped class to be searchable by meaning.

        embedding = Embedded("title", "content", template="{title}: {content}")

    The arguments are those of ``embed.enable``, but ``columns``, ``key`` and the names in
    ``template`` are attributes of the class; ``filter`` is SQL. A class may have several under
    different ``name``. Abstract classes and mixins may have them, too.

    Declaring does not enable: Alembic's ``op.enable_embedding`` does, or :func:`enable_all`.

    SQLModel takes it for a field unless it is annotated: ``embedding: ClassVar[Any] = …``.

    Raises:
        ConfigurationError: when the class is mapped, if it has no such attributes.
    """

    def __init__(
        self,
        *columns: str,
        name: str | None = None,
        model: str | None = None,
        template: str | None = None,
        chunk: bool = True,
        filter: str | None = None,  # noqa: A002 -- named as in embed.enable
        key: Sequence[str] | None = None,
        words: bool = True,
        storage: str | None = None,
    ) -> None:
        outside_of_classes.add(self)
        self._columns = columns
        self._options: dict[str, Any] = {
            "name": name,
            "model": model,
            "template": template,
            "chunk": chunk,
            "filter": filter,
            "key": key,
            "words": words,
            "storage": storage,
        }

    def __set_name__(self, owner: type[Any], name: str) -> None:
        outside_of_classes.discard(self)

    @overload
    def __get__(self, instance: None, owner: Any) -> EmbeddedAttribute: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> list[Passage]: ...
    def __get__(self, instance: object | None, owner: Any) -> Any:
        # Reached only on classes that are not mapped: a mapped one has a relationship instead.
        return self

    def __repr__(self) -> str:
        return f"Embedded({', '.join(map(repr, self._columns))})"

    def _map(self, mapper: Mapper[Any], attribute: str) -> None:
        table, embedding = _resolve(mapper, self._columns, **self._options)
        declare(table.metadata, embedding)
        if attribute in vars(mapper.class_):
            delattr(mapper.class_, attribute)  # or SQLAlchemy would warn that it is replaced
        mapper.add_property(attribute, passages_relationship(mapper, attribute, table, embedding))


def declare_embedded(
    target: type[Any] | Table,
    *columns: str,
    name: str | None = None,
    model: str | None = None,
    template: str | None = None,
    into_column: str | None = None,
    chunk: bool = True,
    filter: str | None = None,  # noqa: A002 -- named as in embed.enable
    key: Sequence[str] | None = None,
    words: bool = True,
    storage: str | None = None,
) -> None:
    """Declare a plain ``Table``, or a mapped class that keeps the vector in a column of its own.

        vector: Mapped[Any] = mapped_column(VECTOR(384), nullable=True)

        declare_embedded(Article, "title", "content", into_column="vector")

    Raises:
        ConfigurationError: it has no such columns.
    """
    columns_of = target if isinstance(target, Table) else inspect(target)
    table, embedding = _resolve(
        columns_of,
        columns,
        name=name,
        model=model,
        template=template,
        into_column=into_column,
        chunk=chunk,
        filter=filter,
        key=key,
        words=words,
        storage=storage,
    )
    declare(table.metadata, embedding)


@event.listens_for(Mapper, "after_mapper_constructed")
def _map_declared(mapper: Mapper[Any], class_: type[Any]) -> None:
    inherited = () if mapper.inherits is None else mapper.inherits.class_.__mro__
    seen: set[str] = set()
    for base in class_.__mro__:
        if base in inherited:
            continue
        for attribute, value in list(vars(base).items()):
            if attribute not in seen and isinstance(value, Embedded):
                value._map(mapper, attribute)
            seen.add(attribute)


def _resolve(
    target: Mapper[Any] | Table,
    columns: Sequence[str],
    *,
    template: str | None,
    key: Sequence[str] | None,
    into_column: str | None = None,
    **options: Any,
) -> tuple[Table, Embedding]:
    """Return the table that has the columns, and the declaration with the database's names."""
    if not columns:
        raise ConfigurationError(
            f"no columns of {target} are named to be embedded; give their names as texts, "
            'for example "title", "content"'
        )

    def find(name: str) -> Column[Any]:
        found = target.columns.get(name)
        if isinstance(found, Column) and isinstance(found.table, Table):
            return found
        raise ConfigurationError(
            f"{target} has no column {name!r} that could be embedded; it has: "
            f"{', '.join(target.columns.keys())}"
        )

    def in_database(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else f"{{{find(match[1]).name}}}"

    found = [find(name) for name in (*columns, *(key or ()))]
    tables = {column.table for column in found}
    if len(tables) > 1:
        raise ConfigurationError(
            f"{', '.join(columns)} of {target} are columns of several tables; expected one. "
            "Declare each table's columns by themselves"
        )
    (table,) = tables
    assert isinstance(table, Table)  # noqa: S101 -- for the type checker; find looked at it
    return table, Embedding(
        table=table.name,
        schema=table.schema,
        columns=tuple(column.name for column in found[: len(columns)]),
        template=None if template is None else _BRACES.sub(in_database, template),
        key=None if key is None else tuple(column.name for column in found[len(columns) :]),
        into_column=None if into_column is None else find(into_column).name,
        **options,
    )
