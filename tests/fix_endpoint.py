"""An endpoint of the form of OpenAI's embeddings API, which misbehaves when it is told to.

endpoint  it answers with the vectors of the tests' encoder, as ``embedworker serve`` would
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embedworker.model.testing import hash_vector

Answer = tuple[int, dict[str, str], bytes]


class Endpoint:
    """``misbehave(texts)`` returns what is sent instead of the vectors, or None."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.misbehave: Callable[[list[str]], Answer | None] = lambda _: None
        self.most_at_once = 0
        self.released = threading.Event()
        self._now = 0
        self._counting = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, body = endpoint._answer(sent, dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, sent: dict[str, Any], headers: dict[str, str]) -> Answer:
        texts = sent["input"]
        with self._counting:
            self.requests.append(texts)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.misbehave(texts) or vectors(texts)
        finally:
            with self._counting:
                self._now -= 1

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def vectors(texts: list[str], scale: float = 1.0) -> Answer:
    rows = [
        {"index": i, "embedding": (scale * hash_vector(text)).tolist()}
        for i, text in enumerate(texts)
    ]
    return data(rows[::-1])  # the index counts, and not the order


def data(rows: Any) -> Answer:
    return 200, {}, json.dumps({"data": rows}).encode()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    opened = Endpoint()
    try:
        yield opened
    finally:
        opened.close()
