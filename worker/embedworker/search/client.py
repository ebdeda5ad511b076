"""Search and question vectors for Python programs, through the functions of the schema ``embed``.

    with Client("postgresql://…") as client:
        for hit in client.search("article", "how do I fix a flat tyre?", k=3):
            print(hit.score, hit.key, hit.passage)

Nothing here loads a model: a running worker answers.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import psycopg
from pgvector import Vector

from embedworker.database.connect import connect, connect_async
from embedworker.database.refusal import refusal
from embedworker.errors import ConfigurationError
from embedworker.search.pool import Pool
from embedworker.search.run import AsyncConnection, Connection, run, run_async
from embedworker.search.steps import (
    Hit,
    Hits,
    Steps,
    query_steps,
    search_steps,
    similar_steps,
    sources_steps,
    status_steps,
)
from embedworker.settings import load, obfuscate
from embedworker.settings.worker import DEFAULT_QUERY_TIMEOUT

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
C = TypeVar("C", bound=psycopg.BaseConnection[Any])
S = TypeVar("S")
APPLICATION = "embedworker client"
DEFAULT_CONNECTIONS = 8


class _Client(Generic[C, S]):
    _semaphore: ClassVar[type[Any]]

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = DEFAULT_QUERY_TIMEOUT,
        connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        self._url = _url(url)
        self._timeout = timeout
        self._pool = Pool[C, S](lambda: self._semaphore(connections))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {obfuscate(self._url)}>"


class Client(_Client[Connection, threading.Semaphore]):
    """Asks one database, over connections that are opened when needed and kept.

    Without ``url`` it is DATABASE_URL. ``timeout`` (seconds, up to 60) bounds the wait for workers.
    May be used from several threads; more than ``connections`` at once wait for each other. A
    client reopens a lost connection, and opens new ones in a forked child.

    Raises:
        ConfigurationError: no database is named, or an argument is wrong.
        ServerUnavailable: when asked, if no connection could be made.
        DatabaseError: when asked, what the server refuses; NoWorker where no worker answers.
    """

    _semaphore = threading.BoundedSemaphore

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

        See :func:`embedworker.search.functions.search`.
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
            return run(connection, steps)
        finally:
            if not self._pool.give_back(connection):
                connection.close()


class AsyncClient(_Client[AsyncConnection, asyncio.Semaphore]):
    """:class:`Client` for programs that use asyncio: the same, awaited.

    async with AsyncClient("postgresql://…") as client:
        hits = await client.search("article", "how do I fix a flat tyre?")

    """

    _semaphore = asyncio.BoundedSemaphore

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
            return await run_async(connection, steps)
        finally:
            if not self._pool.give_back(connection):
                await connection.close()


def _url(url: str | None) -> str:
    found = url or load().database_url
    if found is None:
        raise ConfigurationError(
            "no database is named; give its URL, or set DATABASE_URL (`embedworker db url` says "
            "that of the embedded server)"
        )
    return found


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Raise what the server refuses as an error of this package, whose text holds no question."""
    try:
        yield
    except (psycopg.Error, UnicodeEncodeError) as error:
        refused = refusal(error)
        if refused is None:
            raise
        raise refused from None
