"""Questions, vectors and distances as SQLAlchemy expressions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pgvector import Vector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import ColumnElement, Text, cast, func, literal, null, select

__all__ = ["Comparable", "Question", "distance", "index_distance", "query", "text_or_null"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question's vector as an expression, see :func:`query`."""

    text: str
    model: str | None = None

    def __clause_element__(self) -> ColumnElement[Any]:
        # In a subquery: computed once. A stable function is called for each row that is compared.
        return select(self.call()).scalar_subquery()

    def call(self) -> ColumnElement[Any]:
        """Return the call of ``embed.query`` alone."""
        return func.embed.query(text_or_null(self.text), text_or_null(self.model), type_=VECTOR())


Comparable: TypeAlias = str | Question | Vector | Sequence[float] | ColumnElement[Any]


def query(text: str, model: str | None = None) -> Question:
    """Return ``embed.query(text, model)``, which a running worker answers, for use as a vector.

    Without ``model`` it is the model of what it is compared with.
    """
    return Question(text, model)


def distance(vectors: Any, question: Comparable, model: str | None) -> ColumnElement[float]:
    """Return the cosine distance of a column of vectors; a text is a question to ``model``."""
    asked = _asked(question, model)
    if not isinstance(asked, ColumnElement | Question):
        asked = literal(asked, VECTOR())  # which the server also reads as a halfvec
    compared: ColumnElement[float] = vectors.cosine_distance(asked)
    return compared


def index_distance(vectors: Any, question: Comparable, model: str | None) -> ColumnElement[float]:
    """Return the same for an order that an index gives.

    The scan of the index looks far enough for as many rows as are asked for: ``embed._far`` sets
    that for the transaction before the scan begins.
    """
    asked = _asked(question, model)
    if isinstance(asked, ColumnElement):  # another row's vector, of which there is no index scan
        return distance(vectors, asked, model)
    given = (
        asked.call() if isinstance(asked, Question) else cast(literal(asked, VECTOR()), VECTOR())
    )
    far = select(func.embed._far(given, type_=VECTOR())).scalar_subquery()
    compared: ColumnElement[float] = vectors.cosine_distance(far)
    return compared


def _asked(question: Comparable, model: str | None) -> Comparable:
    if isinstance(question, str):
        question = Question(question)
    if isinstance(question, Question) and question.model is None:
        question = replace(question, model=model)
    return question


def text_or_null(value: str | None) -> ColumnElement[Any]:
    """Return the value as SQL's text, which functions with several forms are told apart by."""
    given: ColumnElement[Any] = null() if value is None else literal(value, Text())
    return cast(given, Text())
