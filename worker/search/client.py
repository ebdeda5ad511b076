"""Search and question vectors for Python programs, through the functions of the schema ``embed``.

    with Client("postgresql://…") as client:
        for hit in client.search("article", "how do I fix a flat tyre?", k=3):
            print(hit.score, hit.key, hit.passage)

Nothing here loads a model: a running worker answers.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from pgvector import Vector

from worker.database.connect import connect, connect_async
from worker.errors import ConfigurationError
from worker.search.steps import Hit, Rows, Step, Steps, ask_steps, query_steps, search_steps, warn
from worker.settings import DEFAULT_QUERY_TIMEOUT, load, obfuscate

__all__ = ["AsyncClient", "Client", "Hit", "query_vector", "search"]

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

APPLICATION = "embedworker client"


class Client:
    """Asks one database, over one connection, which is opened when first needed.

    Without ``url`` it is DATABASE_URL. ``timeout`` (seconds, up to 60) bounds the wait for workers.
    May be used from several threads, which take turns. A connection that was lost is opened anew.

    Raises:
        ConfigurationError: no database is named.
        ServerUnavailable: when asked, if no connection could be made.
    """

    def __init__(self, url: str | None = None, *, timeout: float = DEFAULT_QUERY_TIMEOUT) -> None:
        self._url = _url(url)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<Client {obfuscate(self._url)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def search(
        self,
        table: str,
        question: str,
        k: int = 10,
        *,
        name: str | None = None,
        lexical: float | None = None,
        rerank: int | None = None,
    ) -> list[Hit]:
        """Return the ``k`` rows of ``table`` nearest in meaning to ``question``, best first.

        See :func:`search`.
        """
        return self._run(
            lambda: search_steps(
                table,
                question,
                k,
                name=name,
                lexical=lexical,
                rerank=rerank,
                timeout=self._timeout,
            )
        )

    def query(self, question: str, model: str | None = None) -> Vector:
        """Return a question's vector; without ``model`` by the database's default one.

        Raises:
            psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
            DatabaseError: the same on a server without a road for questions (no dblink).
        """
        return self._run(lambda: query_steps(question, model, timeout=self._timeout))

    def close(self) -> None:
        """Close the connection; another question opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _run(self, ask: Callable[[], Steps[T]]) -> T:
        with self._lock:
            if self._connection is not None:
                try:
                    return _run(self._connection, ask())
                except psycopg.OperationalError:
                    if not self._connection.closed:
                        raise
            self._connection = connect(self._url, application_name=APPLICATION)
            return _run(self._connection, ask())


class AsyncClient:
    """:class:`Client` for programs that use asyncio: the same, awaited.

        async with AsyncClient("postgresql://…") as client:
            hits = await client.search("article", "how do I fix a flat tyre?")

    Tasks take turns on its one connection.
    """

    def __init__(self, url: str | None = None, *, timeout: float = DEFAULT_QUERY_TIMEOUT) -> None:
        self._url = _url(url)
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection | None = None

    def __repr__(self) -> str:
        return f"<AsyncClient {obfuscate(self._url)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def search(
        self,
        table: str,
        question: str,
        k: int = 10,
        *,
        name: str | None = None,
        lexical: float | None = None,
        rerank: int | None = None,
    ) -> list[Hit]:
        """Do what :meth:`Client.search` does."""
        return await self._run(
            lambda: search_steps(
                table,
                question,
                k,
                name=name,
                lexical=lexical,
                rerank=rerank,
                timeout=self._timeout,
            )
        )

    async def query(self, question: str, model: str | None = None) -> Vector:
        """Do what :meth:`Client.query` does."""
        return await self._run(lambda: query_steps(question, model, timeout=self._timeout))

    async def close(self) -> None:
        """Close the connection; another question opens it again."""
        async with self._lock:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    async def _run(self, ask: Callable[[], Steps[T]]) -> T:
        async with self._lock:
            if self._connection is not None:
                try:
                    return await _run_async(self._connection, ask())
                except psycopg.OperationalError:
                    if not self._connection.closed:
                        raise
            self._connection = await connect_async(self._url, application_name=APPLICATION)
            return await _run_async(self._connection, ask())


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
    return _run(
        connection,
        search_steps(
            table,
            question,
            k,
            name=name,
            lexical=lexical,
            rerank=rerank,
            timeout=timeout,
        ),
    )


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
    return _run(connection, ask_steps(question, model, timeout=timeout))


def _run(connection: Connection, steps: Steps[T]) -> T:
    with _remarks(connection):
        try:
            step = next(steps)
            while True:
                try:
                    rows = _execute(connection, step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
    return answer


async def _run_async(connection: AsyncConnection, steps: Steps[T]) -> T:
    with _remarks(connection):
        try:
            step = next(steps)
            while True:
                try:
                    rows = await _execute_async(connection, step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
    return answer


def _execute(connection: Connection, step: Step) -> Rows:
    # A lone statement in autocommit mode: a question must be committed for a worker to see it.
    with connection.transaction() if len(step) > 1 else nullcontext():
        for statement in step:
            rows = connection.execute(*statement)
    return rows.fetchall()


async def _execute_async(connection: AsyncConnection, step: Step) -> Rows:
    async with connection.transaction() if len(step) > 1 else nullcontext():
        for statement in step:
            rows = await connection.execute(*statement)
    return await rows.fetchall()


@contextmanager
def _remarks(connection: Connection | AsyncConnection) -> Iterator[None]:
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
        warn(remark)


def _url(url: str | None) -> str:
    found = url or load().database_url
    if found is None:
        raise ConfigurationError(
            "no database is named; give its URL, or set DATABASE_URL (`embedworker db url` says "
            "that of the embedded server)"
        )
    return found
