"""Search over a connection of the caller."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgvector import Vector

from embedworker.search.run import Connection, run
from embedworker.search.steps import Hit, Hits, ask_steps, search_steps, similar_steps
from embedworker.settings.worker import DEFAULT_QUERY_TIMEOUT

__all__ = ["query_vector", "search", "similar"]


def search(
    connection: Connection,
    table: str,
    question: str | Vector | Sequence[float],
    k: int = 10,
    *,
    name: str | None = None,
    lexical: float | None = None,
    rerank: int | None = None,
    matching: Mapping[str, Any] | None = None,
    skip: int = 0,
    timeout: float = DEFAULT_QUERY_TIMEOUT,
) -> Hits:
    """Return the ``k`` rows of ``table`` nearest in meaning to ``question``, the nearest first.

    ``table`` is written as in SQL. A vector is compared as it is. ``lexical`` is the weight of the
    question's words beside its meaning, None for that of the table. ``rerank`` (up to 200) is how
    many of the best rows a cross-encoder reads to order them. ``matching`` are values of columns,
    ``{"lang": "ko", "tenant": [5, 6]}``: only rows that have them are searched, a list is any of
    them. ``skip`` leaves out that many of the best rows. ``timeout`` (seconds, up to 60)
    bounds the wait for a worker, for each of the two. ``connection`` is in autocommit mode. Where
    the server has no loopback (no dblink), the question is asked over this connection,
    which needs the right to execute embed.ask, its words do not count, and nothing is reranked.

    Warns:
        SearchWarning: the rows are not reranked, or the question was cut to the model's window.

    Raises:
        psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
    """
    return run(
        connection,
        search_steps(
            table,
            question,
            k,
            name=name,
            lexical=lexical,
            rerank=rerank,
            matching=matching,
            skip=skip,
            timeout=timeout,
        ),
    )


def similar(connection: Connection, table: str, key: Any, k: int = 10) -> list[Hit]:
    """Return what :meth:`Client.similar` does, over a connection of the caller.

    Raises:
        psycopg.Error: what the server refuses.
    """
    return run(connection, similar_steps(table, key, k, name=None))


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
    return run(connection, ask_steps(question, model, timeout=timeout))
