"""Search and question vectors for Python programs, through the functions of the schema ``embed``.

    with connect(url) as connection:
        for hit in search(connection, "article", "how do I fix a flat tyre?", k=3):
            print(hit.score, hit.key, hit.passage)

The connection is an ordinary one of psycopg, in autocommit mode.
"""

import unicodedata
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from pgvector import Vector
from psycopg import sql

from worker.database.rows import one
from worker.database.statements import render, statement
from worker.errors import DatabaseError, SearchWarning
from worker.settings import DEFAULT_QUERY_TIMEOUT

__all__ = ["Hit", "query_vector", "search"]

Connection = psycopg.Connection[tuple[Any, ...]]

NO_ROAD = "EW007"  # SQLSTATE: embed.query cannot reach a worker from inside SQL


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


def search(
    connection: Connection,
    table: str,
    question: str,
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    timeout: float = DEFAULT_QUERY_TIMEOUT,
) -> list[Hit]:
    """Return the ``k`` rows of ``table`` nearest in meaning to ``question``, the nearest first.

    ``table`` is written as in SQL. ``lexical`` is the weight of the question's words beside its
    meaning, None for that of the table. ``rerank`` (up to 200) is how many of the best rows a
    cross-encoder reads to order them. ``timeout`` (seconds, up to 60) bounds the wait for a worker,
    for each of the two. ``connection`` is in autocommit mode. Where the server has no road for
    questions (no dblink), the question is asked over this connection, which needs the right to
    execute embed.ask, its words do not count, and nothing is reranked.

    Warns:
        SearchWarning: the rows are not reranked, or the question was cut to the model's window.

    Raises:
        psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
    """
    row_type, model, key_names = one(
        connection.execute(statement("search_plan"), {"table": table, "name": name, "k": k})
    )
    asked: dict[str, Any] = {"question": question, "name": name, "k": k}
    ranking = {"lexical": lexical, "rerank": rerank}
    relation = sql.SQL(row_type.replace("%", "%%"))  # quoted by the server
    try:
        with connection.transaction(), _remarks(connection):
            connection.execute(statement("search_timeout"), {"timeout": f"{timeout:g}s"})
            rows = connection.execute(
                render("search_text", relation=relation), asked | ranking
            ).fetchall()
    except psycopg.DatabaseError as error:
        if error.sqlstate != NO_ROAD:
            raise
        try:
            asked["question"] = query_vector(connection, question, model, timeout=timeout)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
            raise error from None  # what the road's own error says is what helps
        if rerank:
            _warn(f"the rows are not reranked: {error.diag.message_primary}")
        rows = connection.execute(render("search_vector", relation=relation), asked).fetchall()
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


def query_vector(
    connection: Connection,
    question: str,
    model: str,
    *,
    timeout: float = DEFAULT_QUERY_TIMEOUT,
) -> Vector:
    """Return a question's vector by way of the workers, without dblink.

    ``connection`` is in autocommit mode, or no worker could see the request.

    Raises:
        DatabaseError: no worker answered within ``timeout`` seconds, or it could not embed it.
        psycopg.Error: what the server refuses.
    """
    request = uuid.uuid4()
    known, lost = one(
        connection.execute(
            statement("search_ask"),
            {
                "id": request,
                "model": model,
                "question": unicodedata.normalize("NFC", question),
            },
        )
    )
    if known is not None:
        _warn_if_cut(lost)
        return known if isinstance(known, Vector) else Vector(known)
    answer = connection.execute(
        statement("search_await"), {"id": request, "patience": timeout}
    ).fetchone()
    if answer is None:
        raise DatabaseError(
            f"no worker answered the question within {timeout:g} s; start one with "
            "`embedworker run`"
        )
    vector, lost, failure = answer
    if failure is not None:
        raise DatabaseError(f"the question could not be embedded: {failure}")
    _warn_if_cut(lost)
    return vector if isinstance(vector, Vector) else Vector(vector)


@contextmanager
def _remarks(connection: Connection) -> Iterator[None]:
    """Turn what the server remarks on a statement into warnings, after the statement."""
    said: list[str] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        said.append(diagnostic.message_primary or "")

    connection.add_notice_handler(hear)
    try:
        yield
    finally:
        connection.remove_notice_handler(hear)
    for remark in said:
        _warn(remark)


def _warn_if_cut(lost: int | None) -> None:
    if lost:
        _warn(
            f"the question is longer than the model's window: its last {lost} tokens were left out"
        )


def _warn(message: str) -> None:
    warnings.warn(message, SearchWarning, stacklevel=3)


def _plain(identifier: str) -> str:
    """An identifier as the server quotes it, without its quotes."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
