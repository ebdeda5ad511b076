"""What a search asks the database, step by step, for connections that wait and those that do not.

A generator yields statements with their parameters, several being one transaction, and is sent the
rows of the last, or thrown the error; what it returns is the answer.
"""

import json
import uuid
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import psycopg
from pgvector import Vector
from psycopg import sql
from psycopg.types.json import Jsonb

from embedworker.database.numbers import loads_row
from embedworker.database.statements import render, statement
from embedworker.errors import (
    ConfigurationError,
    NoWorker,
    QuestionError,
    QuestionRefused,
    SearchWarning,
    SourceError,
)
from embedworker.normalization import normalized
from embedworker.search.suggestion import meant

__all__ = [
    "WORDS_ALONE",
    "Hit",
    "Hits",
    "Rows",
    "Step",
    "Steps",
    "ask_steps",
    "check_arguments",
    "query_steps",
    "search_steps",
    "similar_steps",
    "sources_steps",
    "status_steps",
    "warn",
]

NOBODY = "EW001"  # SQLSTATE: no worker answers questions
WORDS_ALONE = "EW011"  # SQLSTATE of a notice: no worker answered, the words alone rank the rows
NO_LOOPBACK = "EW007"  # SQLSTATE: embed.query cannot reach a worker from inside SQL

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]
Step: TypeAlias = Sequence[tuple[Any, dict[str, Any]]]
Steps: TypeAlias = Generator[Step, Rows, T]


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that was found.

    ``score`` orders the hits of one search and says nothing by itself; ``similarity`` is the cosine
    of question and passage, None where the words alone ranked the rows; ``bm25`` (0 to 1) how much
    of the question's words is there, None where they did not count; ``reranked`` what a
    cross-encoder says, None where it was not asked or did not answer. ``key`` and ``row`` are by
    column, as PostgreSQL's ``to_json`` has them; a column of type numeric is a Decimal.
    """

    key: dict[str, Any]
    score: float
    similarity: float | None
    bm25: float | None
    reranked: float | None
    passage: str
    row: dict[str, Any]


class Hits(list[Hit]):
    """The rows of a search, the best first.

    ``degraded`` says why the words of the question alone ranked them: no worker answered. It is
    None where the search was answered in full, also where nothing was found.
    """

    def __init__(self, hits: Iterable[Hit] = (), degraded: str | None = None) -> None:
        super().__init__(hits)
        self.degraded = degraded


def search_steps(
    table: str,
    question: str | Vector | Sequence[float],
    k: int,
    *,
    name: str | None,
    lexical: float | None,
    rerank: int | None,
    matching: Mapping[str, Any] | None,
    skip: int,
    timeout: float,
) -> Steps[Hits]:
    """Find the rows of a table nearest in meaning to a question, or to a vector."""
    check_arguments(question, k, rerank, skip)
    relation, model, key_names, numeric = yield from _plan(table, name, k)
    asked: dict[str, Any] = {"question": question, "name": name, "k": k, "skip": skip}
    asked["matching"] = None if matching is None else Jsonb(dict(matching), dumps=_as_json)
    if not isinstance(question, str):
        if lexical is not None or rerank is not None:
            raise ConfigurationError(
                "lexical and rerank are for a question in words; leave them out with a vector"
            )
        asked["question"] = _vector(question)
        rows = yield [(render("search_vector", relation=relation), asked)]
        return Hits(_hits(rows, key_names, numeric))
    ranking = {"lexical": lexical, "rerank": rerank}
    try:
        *rows, (*_, degraded) = yield [
            _timeout(timeout),
            (render("search_text", relation=relation), asked | ranking),
        ]
    except psycopg.DatabaseError as error:
        asked["question"] = yield from _without_loopback(error, question, model, timeout)
        if rerank:
            warn(f"the rows are not reranked: {error.diag.message_primary}")
        rows = yield [(render("search_vector", relation=relation), asked)]
        return Hits(_hits(rows, key_names, numeric))
    rows = [row[:-1] for row in rows]
    if degraded and degraded.startswith(NO_LOOPBACK):
        try:
            asked["question"] = yield from ask_steps(question, model, timeout=timeout)
        except (psycopg.DatabaseError, QuestionError):
            pass  # this connection has no way to a worker either: the words have answered
        else:
            if rerank:
                warn(f"the rows are not reranked: {degraded}")
            degraded = None
            rows = yield [(render("search_vector", relation=relation), asked)]
    if degraded:
        warn(f"the words alone rank the rows: {degraded}")
    return Hits(_hits(rows, key_names, numeric), degraded or None)


def similar_steps(table: str, key: Any, k: int, *, name: str | None) -> Steps[list[Hit]]:
    """Find the rows of a table nearest in meaning to one of its own."""
    check_arguments("", k, None, 0)
    relation, _, key_names, numeric = yield from _plan(table, name, k)
    asked = {"key": Jsonb(key, dumps=_as_json), "name": name, "k": k}
    rows = yield [(render("search_similar", relation=relation), asked)]
    return _hits(rows, key_names, numeric)


def sources_steps() -> Steps[list[dict[str, Any]]]:
    """Read what is enabled."""
    rows = yield [(statement("search_sources"), {})]
    return [source for (source,) in rows]


def status_steps(name: str | None) -> Steps[list[dict[str, Any]]]:
    """Read ``embed.status``, of one source or of all."""
    rows = yield [(statement("search_status"), {"name": name})]
    if name is not None and not rows:
        raise SourceError(f"nothing is enabled under the name {name!r}; see Client.sources()")
    return [status for (status,) in rows]


def check_arguments(question: object, k: object, rerank: object, skip: object) -> None:
    """Refuse here what the server could only call a function that does not exist."""
    given = (("k", k), ("rerank", 0 if rerank is None else rerank), ("skip", skip))
    for name, value in given:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name} is {value!r}; expected a whole number of rows")
    # Of a text in bytes, the numbers would be taken for a vector.
    if isinstance(question, bytes | bytearray) or not (
        isinstance(question, str | Vector | Sequence) or hasattr(question, "__array__")
    ):
        raise ConfigurationError(
            f"the question is of type {type(question).__name__}; expected a text or a vector"
        )


def _plan(table: str, name: str | None, k: int) -> Steps[tuple[sql.SQL, str, list[str], list[str]]]:
    """Ask what a search of a table needs: row type, model, key columns and numeric columns."""
    try:
        ((row_type, model, key_names, numeric),) = yield [
            (statement("search_plan"), {"table": table, "name": name, "k": k})
        ]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        if "embed." in (error.diag.message_primary or ""):
            raise  # not migrated
        enabled = yield [(statement("search_tables"), {})]
        unknown = SourceError(
            f"no table is named {table!r}; of the tables that can be searched, "
            f"{meant(table, [(shown, bare) for shown, bare in enabled]) or 'there is none yet'}"
        )
        unknown.sqlstate = error.sqlstate
        raise unknown from None
    return sql.SQL(row_type.replace("%", "%%")), model, key_names, numeric  # quoted by the server


def _as_json(key: Any) -> str:
    """Return a key as JSON; values without a JSON form, such as a date or a UUID, are text."""
    return json.dumps(key, default=str, ensure_ascii=False)


def _hits(rows: Rows, key_names: list[str], numeric: list[str]) -> list[Hit]:
    keys = [_plain(key) for key in key_names]
    found = [(*ranks, loads_row(row, numeric)) for *ranks, row in rows]
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
        for score, similarity, bm25, reranked, passage, row in found
    ]


def query_steps(question: str, model: str | None, *, timeout: float) -> Steps[Vector]:
    """Have a question's vector computed."""
    try:
        ((vector,),) = yield [
            _timeout(timeout),
            (statement("search_query"), {"question": question, "model": model}),
        ]
    except psycopg.DatabaseError as error:
        return (yield from _without_loopback(error, question, model, timeout))
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
    try:
        answers = yield [(statement("search_await"), {"id": request, "timeout": timeout})]
    except psycopg.DatabaseError as error:
        if error.sqlstate == NOBODY:  # then nobody deletes the request either
            yield [(statement("search_await"), {"id": request, "timeout": 0})]
        raise
    if not answers:
        raise NoWorker(
            f"no worker answered the question within {timeout:g} s; start one with "
            "`embedworker run`"
        )
    ((vector, lost, failure),) = answers
    if failure is not None:
        raise QuestionRefused(f"the question could not be embedded: {failure}")
    _warn_if_cut(lost)
    return _vector(vector)


def _without_loopback(
    error: psycopg.DatabaseError, question: str, model: str | None, timeout: float
) -> Steps[Vector]:
    if error.sqlstate != NO_LOOPBACK:
        raise error
    if model is None:
        ((model,),) = yield [(statement("model_default"), {})]
    try:
        return (yield from ask_steps(question, str(model), timeout=timeout))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        raise error from None  # the error of the loopback says what to do


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
    """Return an identifier that the server has quoted, without its quotes."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
