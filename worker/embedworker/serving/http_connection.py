"""A client's connection, which nobody may hold open without asking."""

import asyncio
from typing import Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CONNECTIONS", "HEAD_TIMEOUT", "HttpConnection"]

CONNECTIONS: Final = 500  # far more than may wait for the model; half of the usual `ulimit -n`
HEAD_TIMEOUT: Final = 10.0  # seconds a client may take to send a request's head


class HttpConnection(H11Protocol):
    """Closed when the head of a request is not there in time, or when there are too many.

    uvicorn has a time for connections that are kept between requests, and forgets it with the first
    byte; before the first request there is none. So 1100 clients that sent nothing, which needs no
    token, kept all file descriptors for good. Its ``limit_concurrency`` counts them as well, and
    would answer everybody else with 503.
    """

    _idle_since = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._watch()
        others = [cast(HttpConnection, each) for each in self.connections]
        there = [each for each in others if not each.transport.is_closing()]
        if len(there) > CONNECTIONS:
            # The one that has asked nothing for the longest; where all others ask, the new one.
            idle = [each for each in there if each._is_idle()]
            min(idle, key=lambda each: each._idle_since).transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._is_idle():
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT, self.timeout_keep_alive_handler)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
