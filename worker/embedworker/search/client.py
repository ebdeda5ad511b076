"""Search and question vectors for Python programs, through the functions of the schema ``embed``.

    with Client("postgresql://…") as client:
        for hit in client.search("article", "how do I fix a flat tyre?", k=3):
            print(hit.score, hit.key, hit.passage)

Nothing here loads a model: a running worker answers.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from pgvector import Vector

from embedworker.database.connect import connect, connect_async
from embedworker.database.refusal import refusal
from embedworker.errors import ConfigurationError
from embedworker.search.pool import Pool
from embedworker.search.steps import (
    WORDS_ALONE,
    Hit,
    Hits,
    Rows,
    Step,
    Steps,
    ask_steps,
    query_steps,
    search_steps,
    similar_steps,
    sources_steps,
    status_steps,
    warn,
)
from embedworker.settings import load, obfuscate
from embedworker.settings.worker import DEFAULT_QUERY_TIMEOUT

__all__ = ["AsyncClient", "Client", "Hit", "Hits", "query_vector", "search", "similar"]

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

APPLICATION = "embedworker client"
DEFAULT_CONNECTIONS = 8


class Client:
    """Asks one database, over connections that are opened when needed and kept.

    Without ``url`` it is DATABASE_URL. ``timeout`` (seconds, up to 60) bounds the wait for workers.
    May be used from several threads; more than ``connections`` at once wait for each other. A
    client reopens a lost connection, and opens new ones in a forked child.

    Raises:
        ConfigurationError: no database is named, or an argument is wrong.
        ServerUnavailable: when asked, if no connection could be made.
        DatabaseError: when asked, what the server refuses; NoWorker where no worker answers.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = DEFAULT_QUERY_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._url = _url(url)
        self._timeout = timeout
        self._pool = Pool[Connection, threading.Semaphore](
            lambda: threading.BoundedSemaphore(connections)
        )

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
        question: str | Vector | Sequence[float],
        k: int = 10,
        *,
        name: str | None = None,
        lexical: float | None = None,
        rerank: int | None = None,
        matching: Mapping[str, Any] | None = None,
        skip: int = 0,
    ) -> Hits:
        """Return the ``k`` rows of ``table`` nearest to a question or a vector, best first.

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
                matching=matching,
                skip=skip,
                timeout=self._timeout,
            )
        )

    def query(self, question: str, model: str | None = None) -> Vector:
        """Return a question's vector; without ``model`` by the database's default one."""
        return self._run(lambda: query_steps(question, model, timeout=self._timeout))

    def similar(self, table: str, key: Any, k: int = 10, *, name: str | None = None) -> list[Hit]:
        """Return the ``k`` rows of ``table`` nearest in meaning to the row with ``key``.

        A key of several columns is a sequence in their order, or a mapping by column, as ``key`` of
        a hit is. No worker is asked.
        """
        return self._run(lambda: similar_steps(table, key, k, name=name))

    def sources(self) -> list[dict[str, Any]]:
        """Return what is enabled: ``name``, ``table``, ``columns`` and ``model`` of each."""
        return self._run(sources_steps)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of ``embed.status`` by column, of all sources or of the one ``name``."""
        return self._run(lambda: status_steps(name))

    def close(self) -> None:
        """Close the connections that are not in use; another question opens one again."""
        while (connection := self._pool.take()) is not None:
            connection.close()

    def _run(self, ask: Callable[[], Steps[T]]) -> T:
        with self._pool.turns, _typed_errors():
            kept = self._pool.take()
            if kept is not None:
                try:
                    return self._ask(kept, ask())
                except psycopg.OperationalError:
                    if not kept.closed:
                        raise
            return self._ask(connect(self._url, application_name=APPLICATION, patient=False), ask())

    def _ask(self, connection: Connection, steps: Steps[T]) -> T:
        try:
            return _run(connection, steps)
        finally:
            if not self._pool.give_back(connection):
                connection.close()


class AsyncClient:
    """:class:`Client` for programs that use asyncio: the same, awaited.

    async with AsyncClient("postgresql://…") as client:
        hits = await client.search("article", "how do I fix a flat tyre?")

    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = DEFAULT_QUERY_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._url = _url(url)
        self._timeout = timeout
        self._pool = Pool[AsyncConnection, asyncio.Semaphore](
            lambda: asyncio.BoundedSemaphore(connections)
        )

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
        question: str | Vector | Sequence[float],
        k: int = 10,
        *,
        name: str | None = None,
        lexical: float | None = None,
        rerank: int | None = None,
        matching: Mapping[str, Any] | None = None,
        skip: int = 0,
    ) -> Hits:
        """Do what :meth:`Client.search` does."""
        return await self._run(
            lambda: search_steps(
                table,
                question,
                k,
                name=name,
                lexical=lexical,
                rerank=rerank,
                matching=matching,
                skip=skip,
                timeout=self._timeout,
            )
        )

    async def query(self, question: str, model: str | None = None) -> Vector:
        """Do what :meth:`Client.query` does."""
        return await self._run(lambda: query_steps(question, model, timeout=self._timeout))

    async def similar(
        self, table: str, key: Any, k: int = 10, *, name: str | None = None
    ) -> list[Hit]:
        """Do what :meth:`Client.similar` does."""
        return await self._run(lambda: similar_steps(table, key, k, name=name))

    async def sources(self) -> list[dict[str, Any]]:
        """Do what :meth:`Client.sources` does."""
        return await self._run(sources_steps)

    async def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Do what :meth:`Client.status` does."""
        return await self._run(lambda: status_steps(name))

    async def close(self) -> None:
        """Close the connections that are not in use; another question opens one again."""
        while (connection := self._pool.take()) is not None:
            await connection.close()

    async def _run(self, ask: Callable[[], Steps[T]]) -> T:
        async with self._pool.turns:
            with _typed_errors():
                kept = self._pool.take()
                if kept is not None:
                    try:
                        return await self._ask(kept, ask())
                    except psycopg.OperationalError:
                        if not kept.closed:
                            raise
                opened = await connect_async(self._url, application_name=APPLICATION)
                return await self._ask(opened, ask())

    async def _ask(self, connection: AsyncConnection, steps: Steps[T]) -> T:
        try:
            return await _run_async(connection, steps)
        finally:
            if not self._pool.give_back(connection):
                await connection.close()


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
    return _run(
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
    return _run(connection, similar_steps(table, key, k, name=None))


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


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Raise what the server refuses as an error of this package, whose text holds no question."""
    try:
        yield
    except psycopg.Error as error:
        refused = refusal(error)
        if refused is None:
            raise
        raise refused from None


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
        if diagnostic.sqlstate != WORDS_ALONE:  # search_steps warns, if it finds no other way
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
