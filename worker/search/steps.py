"""What a search asks the database, step by step, for connections that wait and those that do not.

A generator yields statements with their parameters, several being one transaction, and is sent the
rows of the last, or thrown the error; what it returns is the answer.
"""

import uuid
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import psycopg
from pgvector import Vector
from psycopg import sql

from worker.database.statements import render, statement
from worker.errors import DatabaseError, SearchWarning
from worker.normalization import normalized

__all__ = ["Hit", "Rows", "Step", "Steps", "ask_steps", "query_steps", "search_steps", "warn"]

NO_ROAD = "EW007"  # SQLSTATE: embed.query cannot reach a worker from inside SQL

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]
Step: TypeAlias = Sequence[tuple[Any, dict[str, Any]]]
Steps: TypeAlias = Generator[Step, Rows, T]


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found.

    ``score`` orders the hits of one search and says nothing by itself; ``similarity`` is the cosine
    of question and passage, ``bm25`` (0 to 1) how much of the question's words is there, None where
    they did not count, ``reranked`` what a cross-encoder says, None where it was not asked or did
    not answer. ``key`` and ``row`` are by column, as PostgreSQL's ``to_jsonb`` has them.
    """

    key: dict[str, Any]
    score: float
    similarity: float
    bm25: float | None
    reranked: float | None
    passage: str
    row: dict[str, Any]


def search_steps(
    table: str,
    question: str,
    k: int,
    *,
    name: str | None,
    lexical: float | None,
    rerank: int | None,
    timeout: float,
) -> Steps[list[Hit]]:
    """Find the rows of a table nearest in meaning to a question."""
    ((row_type, model, key_names),) = yield [
        (statement("search_plan"), {"table": table, "name": name, "k": k})
    ]
    asked: dict[str, Any] = {"question": question, "name": name, "k": k}
    ranking = {"lexical": lexical, "rerank": rerank}
    relation = sql.SQL(row_type.replace("%", "%%"))  # quoted by the server
    try:
        rows = yield [
            _timeout(timeout),
            (render("search_text", relation=relation), asked | ranking),
        ]
    except psycopg.DatabaseError as error:
        asked["question"] = yield from _by_another_road(error, question, model, timeout)
        if rerank:
            warn(f"the rows are not reranked: {error.diag.message_primary}")
        rows = yield [(render("search_vector", relation=relation), asked)]
    keys = [_plain(key) for key in key_names]
    return [
        Hit(
            {key: row[key] for key in keys if key in row},
            score,
            similarity,
            bm25,
            reranked,
            passage,
            row,
        )
        for score, similarity, bm25, reranked, passage, row in rows
    ]


def query_steps(question: str, model: str | None, *, timeout: float) -> Steps[Vector]:
    """Have a question's vector computed."""
    try:
        ((vector,),) = yield [
            _timeout(timeout),
            (statement("search_query"), {"question": question, "model": model}),
        ]
    except psycopg.DatabaseError as error:
        return (yield from _by_another_road(error, question, model, timeout))
    return _vector(vector)


def ask_steps(question: str, model: str, *, timeout: float) -> Steps[Vector]:
    """Have a question's vector computed over this connection, without dblink."""
    request = uuid.uuid4()
    composed = normalized("NFC", question)
    ((known, lost),) = yield [
        (statement("search_ask"), {"id": request, "model": model, "question": composed})
    ]
    if known is not None:
        _warn_if_cut(lost)
        return _vector(known)
    answers = yield [(statement("search_await"), {"id": request, "patience": timeout})]
    if not answers:
        raise DatabaseError(
            f"no worker answered the question within {timeout:g} s; start one with "
            "`embedworker run`"
        )
    ((vector, lost, failure),) = answers
    if failure is not None:
        raise DatabaseError(f"the question could not be embedded: {failure}")
    _warn_if_cut(lost)
    return _vector(vector)


def _by_another_road(
    error: psycopg.DatabaseError, question: str, model: str | None, timeout: float
) -> Steps[Vector]:
    if error.sqlstate != NO_ROAD:
        raise error
    if model is None:
        ((model,),) = yield [(statement("search_default_model"), {})]
    try:
        return (yield from ask_steps(question, str(model), timeout=timeout))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        raise error from None  # what the road's own error says is what helps


def warn(message: str) -> None:
    """Say what is not an error, but not what was asked for either."""
    warnings.warn(message, SearchWarning, stacklevel=4)


def _warn_if_cut(lost: int | None) -> None:
    if lost:
        warn(
            f"the question is longer than the model's window: its last {lost} tokens were left out"
        )


def _timeout(timeout: float) -> tuple[Any, dict[str, Any]]:
    return statement("search_timeout"), {"timeout": f"{timeout:g}s"}


def _vector(value: Any) -> Vector:
    return value if isinstance(value, Vector) else Vector(value)


def _plain(identifier: str) -> str:
    """An identifier as the server quotes it, without its quotes."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
