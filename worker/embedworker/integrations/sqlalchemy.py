"""Search by meaning in SQLAlchemy's models.

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        content: Mapped[str]
        embedding = Embedded("title", "content")

    for hit in search(session, Article, "how do I fix a flat tyre?", k=3):
        print(hit.score, hit.row.title, hit.passage)

    by_distance = Article.embedding.distance(query("a flat tyre"))
    select(Article).where(Article.embedding.any()).order_by(by_distance).limit(3)

A row without a vector has no distance and would come last.

``Article.embedding`` is a read-only relationship to the passages of a row's text and their vectors.
Their table is in no MetaData of the application.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

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
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session, scoped_session
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql.elements import ColumnElement, Grouping
from sqlalchemy.sql.expression import and_, column
from sqlalchemy.types import UserDefinedType

from embedworker.database.refusal import refusal
from embedworker.errors import ConfigurationError
from embedworker.integrations.declaration import declarations, enable_all
from embedworker.integrations.expressions import Question, query, text_or_null
from embedworker.integrations.mapping import Embedded, declare_embedded
from embedworker.integrations.matching import matching
from embedworker.integrations.vector_table import EmbeddedAttribute, Passage
from embedworker.search.steps import check_arguments, warn

if TYPE_CHECKING:  # without greenlet it cannot be imported
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

__all__ = [
    "Embedded",
    "EmbeddedAttribute",
    "Hit",
    "Hits",
    "Passage",
    "Question",
    "declare_embedded",
    "enable_all",
    "query",
    "search",
    "search_async",
    "search_statement",
    "typed_errors",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """One row that was found, and the passage of its text that matched best.

    ``score`` orders the hits of one search and says nothing by itself; ``similarity`` is the cosine
    of question and passage, None where the words alone ranked the rows; ``bm25`` (0 to 1) how much
    of the question's words is there, None where they did not count; ``reranked`` what a
    cross-encoder says, None where it was not asked or did not answer. ``passage`` is
    ``[passage_start, passage_end)`` of the embedded text.
    """

    row: T
    score: float
    similarity: float | None
    bm25: float | None
    reranked: float | None
    passage: str
    passage_start: int
    passage_end: int


class Hits(list[Hit[T]]):
    """The rows of a search, the best first.

    ``degraded`` says why the words of the question alone ranked them: no worker answered. It is
    None where the search was answered in full, also where nothing was found.
    """

    def __init__(self, hits: Iterable[Hit[T]] = (), degraded: str | None = None) -> None:
        super().__init__(hits)
        self.degraded = degraded
        if degraded:
            warn(f"the words alone rank the rows: {degraded}")


_DEGRADED = select(func.nullif(func.current_setting("embed.degraded", True), "", type_=String()))


def _may_be_degraded(question: object, hits: list[Hit[T]]) -> bool:
    return isinstance(question, str) and (not hits or hits[0].similarity is None)


def search(
    session: Session | scoped_session[Any],
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    where: Sequence[ColumnElement[bool]] = (),
    offset: int = 0,
    options: Iterable[ORMOption] = (),
) -> Hits[T]:
    """Return the ``k`` rows nearest in meaning to a question, or to a vector, the nearest first.

    ``name`` is that of the declaration, where the class has several. ``lexical`` is the weight of
    the question's words beside its meaning, None for that of the table. ``rerank`` is how many of
    the best rows a cross-encoder reads to order them; with a question in words only. ``where`` are
    conditions, ``[Article.lang == "ko", Article.price < 10]``: only rows that pass all of them are
    searched. ``offset`` leaves out that many of the best rows. ``options`` are the loader options
    of the rows, such as ``selectinload(Article.comments)``.

    Warns:
        SearchWarning: no worker answered, and the words alone ranked the rows.

    Raises:
        NoWorker: no worker answered, and the words must not; more in :mod:`embedworker.errors`.
        SourceError: the table is not enabled.
    """
    statement = search_statement(
        entity, question, k, name=name, lexical=lexical, rerank=rerank, where=where, offset=offset
    ).options(*options)
    with typed_errors():
        hits = [Hit(*found) for found in session.execute(statement).unique()]
        return Hits(hits, session.scalar(_DEGRADED) if _may_be_degraded(question, hits) else None)


async def search_async(
    session: "AsyncSession | async_scoped_session[Any]",
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    where: Sequence[ColumnElement[bool]] = (),
    offset: int = 0,
    options: Iterable[ORMOption] = (),
) -> Hits[T]:
    """Do what :func:`search` does with an asynchronous session."""
    statement = search_statement(
        entity, question, k, name=name, lexical=lexical, rerank=rerank, where=where, offset=offset
    ).options(*options)
    with typed_errors():
        hits = [Hit(*found) for found in (await session.execute(statement)).unique()]
        degraded = await session.scalar(_DEGRADED) if _may_be_degraded(question, hits) else None
        return Hits(hits, degraded)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise what the server refuses as an error of :mod:`embedworker.errors`.

    For statements of yours that ask a question: SQLAlchemy's own error shows their parameters, and
    so the question. Errors that embedworker does not know stay as they are.

        with typed_errors():
            session.scalars(select(Article).order_by(by_distance).limit(3)).all()
    """
    try:
        yield
    except DBAPIError as error:
        refused = None if error.orig is None else refusal(error.orig)
        if refused is None:
            raise
        raise refused from None


def search_statement(
    entity: type[T],
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    where: Sequence[ColumnElement[bool]] = (),
    offset: int = 0,
) -> "Select[T, float, float | None, float | None, float | None, str, int, int]":
    """Return what :func:`search` executes: the entity and the other fields of :class:`Hit`.

    Give conditions as ``where``. The method of that name filters the ``k`` rows that were found,
    and warns.

    Raises:
        ConfigurationError: the class is not mapped to a table; ``k``, ``rerank`` or ``offset`` is
            no whole number; ``question`` is neither a text nor a vector; or a condition is no
            equality and the table has a key of several columns.
    """
    check_arguments(question, k, rerank, offset)
    table, source = _source(inspect(entity), name)
    arguments: list[Any] = [cast(null(), _RowType(table))]
    if isinstance(question, str):
        given: ColumnElement[Any] = null() if lexical is None else literal(lexical)
        weight: ColumnElement[Any] = cast(given, Double())
        read = cast(null() if rerank is None else literal(rerank), Integer())
        arguments += [text_or_null(question), k, text_or_null(source), weight, read]
    else:
        arguments += [cast(literal(question, VECTOR()), VECTOR()), k, text_or_null(source)]
    arguments += [matching(table, where), offset]
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
        # With new names, because PostgreSQL would read hit.rank as a call of the function rank.
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
    found_rows: Select[Any] = _Found(entity, *fields)
    return found_rows.join(found, is_found).order_by(found.c.rank)


class _Found(Select[Any]):
    """The rows that a search has found; a further condition leaves fewer of them."""

    inherit_cache = True

    def where(self, *conditions: Any) -> Self:
        warn(
            "where() filters the rows that the search has found, and can leave fewer than k; give "
            "search_statement(…, where=[…]) the conditions instead"
        )
        return super().where(*conditions)


def _source(mapper: Mapper[Any], name: str | None) -> tuple[Table, str | None]:
    """Return the table to search, and the name of the source if there is only one."""
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
