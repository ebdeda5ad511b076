"""Questions, vectors and distances as SQLAlchemy expressions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pgvector import Vector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import ColumnElement, Text, cast, func, literal, null, select

__all__ = ["Comparable", "Question", "distance", "query", "text_or_null"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question's vector as an expression, see :func:`query`."""

    text: str
    model: str | None = None

    def __clause_element__(self) -> ColumnElement[Any]:
        call = func.embed.query(text_or_null(self.text), text_or_null(self.model), type_=VECTOR())
        # In a subquery: computed once, also where every row is compared (a function that is stable
        # is called for each).
        return select(call).scalar_subquery()


Comparable: TypeAlias = str | Question | Vector | Sequence[float] | ColumnElement[Any]


def query(text: str, model: str | None = None) -> Question:
    """Return ``embed.query(text, model)``, which a running worker answers, for use as a vector.

    Without ``model`` it is the model of what it is compared with.
    """
    return Question(text, model)


def distance(vectors: Any, question: Comparable, model: str | None) -> ColumnElement[float]:
    """Return the cosine distance of a column of vectors; a text is a question to ``model``."""
    if isinstance(question, str):
        question = Question(question)
    if isinstance(question, Question) and question.model is None:
        question = replace(question, model=model)
    compared: ColumnElement[float] = vectors.cosine_distance(question)
    return compared


def text_or_null(value: str | None) -> ColumnElement[Any]:
    """Return the value as SQL's text, which functions with several forms are told apart by."""
    given: ColumnElement[Any] = null() if value is None else literal(value, Text())
    return cast(given, Text())
