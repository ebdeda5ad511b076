"""The vector table of a mapped class: its own mapped class, and a relationship to it."""

from typing import TYPE_CHECKING, Any

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Boolean, Column, DateTime, Integer, MetaData, Table, func, select, tuple_
from sqlalchemy.orm import (
    InstrumentedAttribute,
    Mapped,
    Mapper,
    RelationshipProperty,
    foreign,
    registry,
    relationship,
    remote,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import and_

from embedworker.integrations.declaration import Embedding, vector_table_name
from embedworker.integrations.expressions import Comparable, distance, index_distance

__all__ = ["EmbeddedAttribute", "Passage", "passages_relationship"]

INFO = "embedworker_vectors"


class Passage:
    """A passage of a row's text with its vector. Each declaration has a mapped subclass.

    The columns of the row's key are attributes, too, named as in the database.
    """

    if TYPE_CHECKING:
        from datetime import datetime

        chunk: Mapped[int]  # which passage of the row, from 0
        passage_start: Mapped[int]  # [start, end) in characters of the embedded text
        passage_end: Mapped[int]
        truncated: Mapped[bool]  # whether a part of it was too long for the model
        embedding: Mapped[list[float]]
        fingerprint: Mapped[int]  # what made the vector: id in embed.fingerprint
        embedded_at: Mapped[datetime]

    _model: str | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.chunk} [{self.passage_start}, {self.passage_end})>"

    @classmethod
    def distance(cls, question: Comparable) -> ColumnElement[float]:
        """Cosine distance of the passage to a question or a vector; a text is a question.

        ``order_by`` it with a ``limit``, and the HNSW index is used. Under a condition it gives as
        many rows as are asked for: what pgvector needs for that is set for the transaction.
        """
        return index_distance(cls.embedding, question, cls._model)


class _Comparator(RelationshipProperty.Comparator[Any]):
    """What ``Article.embedding`` can do beyond being a relationship: see EmbeddedAttribute."""

    @property
    def passage(self) -> Any:
        return self.property.mapper.class_

    def distance(self, question: Comparable) -> ColumnElement[float]:
        vectors = self._table.alias()
        nearest = select(func.min(distance(vectors.c.embedding, question, self.passage._model)))
        return (
            nearest.where(*(vectors.c[key.name] == own for own, key in self._keys()))
            .correlate_except(vectors)
            .scalar_subquery()
        )

    def nearest(self, question: Comparable, passages: int = 100) -> ColumnElement[bool]:
        vectors = self._table.alias()
        keys = self._keys()
        found = (
            select(*(vectors.c[key.name] for _, key in keys))
            .order_by(index_distance(vectors.c.embedding, question, self.passage._model))
            .limit(passages)
            .correlate(None)
        )
        own = [column for column, _ in keys]
        return own[0].in_(found) if len(own) == 1 else tuple_(*own).in_(found)

    @property
    def _table(self) -> Table:
        table: Table = self.property.target
        return table

    def _keys(self) -> list[tuple[ColumnElement[Any], ColumnElement[Any]]]:
        """Return the key columns of the row, by their names in this query, and of the vectors."""
        adapt = self.adapter
        return [
            (adapt(own) if adapt is not None else own, key)
            for own, key in self.property.local_remote_pairs
        ]


if TYPE_CHECKING:

    class EmbeddedAttribute(InstrumentedAttribute[list[Passage]]):
        """``Article.embedding``: a read-only relationship that can be compared with questions."""

        @property
        def passage(self) -> type[Passage]:
            """The mapped class of the vectors, joined by ``select(…).join(Article.embedding)``."""

        def distance(self, question: Comparable) -> ColumnElement[float]:
            """Cosine distance of a row's best passage to a question (a text is one) or a vector.

            One value for each row. Where it has no vector yet it is null, which sorts last: leave
            such rows out with ``where(Article.embedding.any())``. It is exact, so it looks at
            every row that the query selects: narrow a large table with :meth:`nearest`.
            """

        def nearest(self, question: Comparable, passages: int = 100) -> ColumnElement[bool]:
            """Whether the row has one of the nearest ``passages``, which the HNSW index finds.

            Conditions of the query come after that, and can leave fewer rows.
            """

else:
    EmbeddedAttribute = InstrumentedAttribute


def passages_relationship(
    mapper: Mapper[Any], attribute: str, table: Table, embedding: Embedding
) -> Any:
    """Map the vectors of a declaration, and return the relationship to them."""
    by_name = {column.name: column for column in table.columns}
    names = embedding.key or [column.name for column in table.primary_key.columns]
    keys = [by_name[name] for name in names]
    # Apart from the application's MetaData: neither create_all nor Alembic may touch these tables.
    apart: registry = table.metadata.info.setdefault(INFO, registry(metadata=MetaData()))
    vectors = Table(
        vector_table_name(embedding.source_name),
        apart.metadata,
        *(Column(key.name, key.type, primary_key=True) for key in keys),
        Column("chunk", Integer, primary_key=True),
        Column("passage_start", Integer, nullable=False),
        Column("passage_end", Integer, nullable=False),
        Column("truncated", Boolean, nullable=False),
        Column(
            "embedding", HALFVEC() if embedding.storage == "halfvec" else VECTOR(), nullable=False
        ),
        Column("fingerprint", Integer, nullable=False),
        Column("embedded_at", DateTime(timezone=True), nullable=False),
        schema=table.schema,
        keep_existing=True,
    )
    passage = type(
        f"{mapper.class_.__name__}_{attribute}",
        (Passage,),
        {"__module__": mapper.class_.__module__, "_model": embedding.model},
    )
    taken = {"distance", "_model"}
    apart.map_imperatively(
        passage,
        vectors,
        properties={f"key_{name}": vectors.c[name] for name in taken & set(names)},
    )
    return relationship(
        passage,
        primaryjoin=and_(*(remote(foreign(vectors.c[key.name])) == key for key in keys)),
        order_by=vectors.c.chunk,
        viewonly=True,
        uselist=True,
        comparator_factory=_Comparator,
    )
