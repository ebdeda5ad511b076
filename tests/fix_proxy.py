"""A TCP proxy that breaks on demand, between a worker and its database.

proxy  a Proxy to the server of the tests
"""

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from embedworker.database.embedded.cluster import Cluster

CHUNK = 65536
LOOK = 0.05  # seconds in which an end is noticed
# Closing with this sends RST instead of FIN: what a peer sees whose other side has crashed.
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards bytes both ways from one local port to ``target``, until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._forwards = threading.Event()
        self._forwards.set()
        self._accepts = threading.Event()
        self._accepts.set()
        self._refuses = False
        self._ended = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._silent: set[tuple[socket.socket, socket.socket]] = set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def url(self, url: str, **more: str) -> str:
        """The same database through this proxy."""
        given = conninfo_to_dict(url)
        return make_conninfo("", **{**given, "host": "127.0.0.1", "port": str(self.port), **more})

    @property
    def connections(self) -> int:
        """How many connections are forwarded now."""
        with self._lock:
            return len(self._pairs)

    def cut(self) -> None:
        """Reset all connections, and every new one: a network that is down, and says so."""
        self._refuses = True
        self.reset()

    def reset(self) -> None:
        """Reset all connections; new ones are served."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._close(pair, reset=True)

    def hush(self) -> None:
        """Go silent: nothing is accepted or forwarded any more, and nothing closed."""
        self._accepts.clear()
        self.forget()

    def forget(self) -> None:
        """Go silent for the connections there are, as a firewall that was restarted; serve others.

        The kernel goes on acknowledging what is sent to us: neither keepalives nor
        tcp_user_timeout see anything amiss.
        """
        with self._lock:
            self._silent |= self._pairs

    def restore(self) -> None:
        """Serve again. What was silent is lost for good: its connections end."""
        with self._lock:
            silent = list(self._silent)
        for pair in silent:
            self._close(pair, reset=True)
        self._refuses = False
        self._accepts.set()

    def end(self) -> None:
        """Stop the threads and close everything."""
        self._ended = True
        self.restore()
        self._listening.close()
        self.reset()
        self._acceptor.join()

    def _accept(self) -> None:
        self._listening.settimeout(LOOK)
        while not self._ended:
            if not self._accepts.wait(LOOK):
                continue
            try:
                client, _ = self._listening.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                if self._refuses:
                    raise ConnectionError
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._forward, args=(pair,), daemon=True).start()

    def _forward(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        with suppress(OSError, ValueError), selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while pair in self._pairs:
                for key, _ in ready.select(LOOK):
                    if pair in self._silent:
                        threading.Event().wait(LOOK)
                        continue
                    data = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]  # a socket
                    if not data:
                        return self._close(pair)
                    key.data.sendall(data)
        return self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket], *, reset: bool = False) -> None:
        with self._lock:
            self._pairs.discard(pair)
            self._silent.discard(pair)
        for end in pair:
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                # Wakes whoever waits for it; close alone does not.
                end.shutdown(socket.SHUT_RD)
            with suppress(OSError):
                end.close()


@pytest.fixture
def proxy(server: Cluster) -> Iterator[Proxy]:
    assert server.port is not None
    made = Proxy("127.0.0.1", server.port)
    yield made
    made.end()
