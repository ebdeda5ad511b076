"""The small HTTP server of a worker: ``/metrics``, ``/healthz`` and ``/readyz``."""

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app
from prometheus_client.registry import Collector

from worker.errors import ConfigurationError
from worker.service.readiness import Reason

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Endpoint"]

log = logging.getLogger("embedworker.endpoint")

CLIENT_TIMEOUT = 10.0  # seconds a client may take to send its request
LOOK = 0.2  # seconds in which a stop is noticed


class Endpoint:
    """Serves in a thread from :meth:`start` to :meth:`stop`. Port 0 takes any that is free.

    Raises ConfigurationError when the address cannot be had.
    """

    def __init__(
        self, host: str, port: int, metrics: Collector, reasons: Callable[[], list[Reason]]
    ) -> None:
        try:
            self._server = _Server(host, port)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error}; choose another EMBEDWORKER_METRICS_PORT"
                " or EMBEDWORKER_METRICS_HOST"
            ) from error
        self._server.set_app(_app(make_wsgi_app(metrics), reasons))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK,), name="endpoint", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        host = self._server.server_name
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        log.info("metrics and readiness on %s", self.url)

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def _app(metrics: "WSGIApplication", reasons: Callable[[], list[Reason]]) -> "WSGIApplication":
    def app(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _json(start, "405 Method Not Allowed", {"error": "only GET is answered here"})
        if path == "/metrics":
            return metrics(environ, start)
        if path == "/healthz":
            return _json(start, "200 OK", {"alive": True})
        if path == "/readyz":
            said = [reason._asdict() for reason in reasons()]
            status = "503 Service Unavailable" if said else "200 OK"
            return _json(start, status, {"ready": not said, "reasons": said})
        return _json(start, "404 Not Found", {"error": "there are /metrics, /healthz and /readyz"})

    return app


def _json(start: "StartResponse", status: str, content: object) -> list[bytes]:
    body = json.dumps(content, ensure_ascii=False).encode()
    start(
        status,
        [("Content-Type", "application/json"), ("Cache-Control", "no-store")],
    )
    return [body]


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base's name)
        """Say nothing: a scrape every few seconds is no news."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name server for our name, and may wait for that.
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()
