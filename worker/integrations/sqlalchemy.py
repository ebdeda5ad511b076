"""Search by meaning in SQLAlchemy's models.

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        content: Mapped[str]
        embedding = Embedded("title", "content")

    for hit in search(session, Article, "how do I fix a flat tyre?", k=3):
        print(hit.score, hit.row.title, hit.passage)

    select(Article).order_by(Article.embedding.distance(query("a flat tyre"))).limit(3)

``Article.embedding`` is a read-only relationship to the passages of a row's text and their vectors.
Their table is in no MetaData of the application.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pgvector import Vector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    Double,
    Integer,
    Select,
    String,
    Table,
    cast,
    func,
    inspect,
    literal,
    null,
    select,
)
from sqlalchemy.orm import Mapper, Session, scoped_session
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql.elements import ColumnElement, Grouping
from sqlalchemy.sql.expression import and_, column
from sqlalchemy.types import UserDefinedType

from worker.errors import ConfigurationError
from worker.integrations.declaration import declarations, enable_all
from worker.integrations.embedded import Embedded, declare_embedded
from worker.integrations.expressions import Question, query, text_or_null
from worker.integrations.passages import EmbeddedAttribute, Passage

if TYPE_CHECKING:  # without greenlet it cannot be imported
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

__all__ = [
    "Embedded",
    "EmbeddedAttribute",
    "Hit",
    "Passage",
    "Question",
    "declare_embedded",
    "enable_all",
    "query",
    "search",
    "search_async",
    "search_statement",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """One row that was found, and the passage of its text that matched best.

    ``score`` orders the hits of one search and says nothing by itself; ``similarity`` is the cosine
    of question and passage, ``bm25`` (0 to 1) how much of the question's words is there, None where
    they did not count, ``reranked`` what a cross-encoder says, None where it was not asked or did
    not answer. ``passage`` is ``[passage_start, passage_end)`` of the embedded text.
    """

    row: T
    score: float
    similarity: float
    bm25: float | None
    reranked: float | None
    passage: str
    passage_start: int
    passage_end: int


def search(
    session: Session | scoped_session[Any],
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    options: Iterable[ORMOption] = (),
) -> list[Hit[T]]:
    """Return the ``k`` rows nearest in meaning to a question, or to a vector, the nearest first.

    ``name`` is that of the declaration, where the class has several. ``lexical`` is the weight of
    the question's words beside its meaning, None for that of the table. ``rerank`` is how many of
    the best rows a cross-encoder reads to order them; with a question in words only. ``options``
    are the loader options of the rows, such as ``selectinload(Article.comments)``.

    Raises:
        sqlalchemy.exc.DBAPIError: what the server refuses; ``error.orig.sqlstate`` is EW001 where
            no worker answered, EW002 where the table is not enabled.
    """
    statement = search_statement(
        entity, question, k, name=name, lexical=lexical, rerank=rerank
    ).options(*options)
    return [Hit(*found) for found in session.execute(statement).unique()]


async def search_async(
    session: "AsyncSession | async_scoped_session[Any]",
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    options: Iterable[ORMOption] = (),
) -> list[Hit[T]]:
    """Do what :func:`search` does with an asynchronous session."""
    statement = search_statement(
        entity, question, k, name=name, lexical=lexical, rerank=rerank
    ).options(*options)
    return [Hit(*found) for found in (await session.execute(statement)).unique()]


def search_statement(
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
) -> "Select[T, float, float, float | None, float | None, str, int, int]":
    """Return what :func:`search` executes: the entity and the other fields of :class:`Hit`.

    What is added to it, such as ``where``, filters the ``k`` rows that were found.

    Raises:
        ConfigurationError: the class is not mapped to a table; ``k`` or ``rerank`` is no whole
            number, or ``question`` neither a text nor a vector.
    """
    _check_arguments(question, k, rerank)
    table, source = _source(inspect(entity), name)
    arguments: list[Any] = [cast(null(), _RowType(table))]
    if isinstance(question, str):
        given: ColumnElement[Any] = null() if lexical is None else literal(lexical)
        weight: ColumnElement[Any] = cast(given, Double())
        read = cast(null() if rerank is None else literal(rerank), Integer())
        arguments += [text_or_null(question), k, text_or_null(source), weight, read]
    else:
        arguments += [cast(literal(question, VECTOR()), VECTOR()), k, text_or_null(source)]
    found = (
        func.embed.search(*arguments)
        .table_valued(
            "row",
            column("score", Double()),
            column("similarity", Double()),
            column("bm25", Double()),
            column("reranked", Double()),
            column("passage", String()),
            "passage_start",
            "passage_end",
            with_ordinality="rank",
        )
        # Named anew, or PostgreSQL would take hit.rank for a call of the function rank.
        .render_derived()
    )
    is_found = and_(*(key == _field(found.c.row, key.name) for key in table.primary_key.columns))
    fields = [
        found.c[name]
        for name in (
            "score",
            "similarity",
            "bm25",
            "reranked",
            "passage",
            "passage_start",
            "passage_end",
        )
    ]
    return select(entity, *fields).join(found, is_found).order_by(found.c.rank)


def _check_arguments(question: object, k: object, rerank: object) -> None:
    """Refuse here what the server could only call a function that does not exist."""
    for name, value in (("k", k), ("rerank", 0 if rerank is None else rerank)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name} is {value!r}; expected a whole number of rows")
    # Of a text in bytes, the numbers would be taken for a vector.
    if isinstance(question, bytes | bytearray) or not (
        isinstance(question, str | Vector | Sequence) or hasattr(question, "__array__")
    ):
        raise ConfigurationError(
            f"the question is of type {type(question).__name__}; expected a text or a vector"
        )


def _source(mapper: Mapper[Any], name: str | None) -> tuple[Table, str | None]:
    """The table that is searched, and the name of the source where only one can be meant."""
    for table in mapper.tables:
        if not isinstance(table, Table):
            continue
        declared = [
            found.source_name
            for found in declarations(table.metadata)
            if (found.schema, found.table) == (table.schema, table.name)
            and name in (None, found.source_name)
        ]
        if declared:
            return table, declared[0] if len(declared) == 1 else None
    if not isinstance(mapper.local_table, Table):
        raise ConfigurationError(f"{mapper} is not mapped to a table, which could be searched")
    return mapper.local_table, name


class _RowType(UserDefinedType[Any]):
    """The type of a table's rows, by which embed.search knows the table."""

    cache_ok = True

    def __init__(self, table: Table) -> None:
        self.table = table

    def get_col_spec(self, **kw: Any) -> str:
        # The statement's own, which knows of schema_translate_map.
        return str(kw["identifier_preparer"].format_table(self.table))


def _field(row: ColumnElement[Any], name: str) -> ColumnElement[Any]:
    """``(row).name``"""
    return Grouping(row).op(".")(column(name))
