"""The small HTTP server of a worker: ``/metrics``, ``/healthz`` and ``/readyz``."""

import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from embedworker.errors import ConfigurationError
from embedworker.service.logs import redacted
from embedworker.service.monitoring.access import Access, is_loopback
from embedworker.service.monitoring.readiness import Reason

__all__ = ["Endpoint"]

log = logging.getLogger("embedworker.endpoint")

CLIENT_TIMEOUT = 10.0  # seconds from a connection to its end
CONNECTIONS = 32  # at once; a thread each
LOOK = 0.2  # seconds in which a stop, and the end of a client's time, are noticed
FIELDS = 100  # of a query
LONGEST_LINE = 8192  # bytes


class Endpoint:
    """Serves in a thread from :meth:`start` to :meth:`stop`. Port 0 takes any that is free.

    Where others reach the address, ``/metrics`` needs a token, and only with one are reasons given.

    Raises ConfigurationError when the address is not available.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Collector,
        reasons: Callable[[], list[Reason]],
        access: Access | None = None,
    ) -> None:
        self._open_to_others = not is_loopback(host)
        self._access = access or Access(())
        try:
            self._server = _Server(host, port, self._answer)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error}; choose another EMBEDWORKER_METRICS_PORT"
                " or EMBEDWORKER_METRICS_HOST"
            ) from error
        self._metrics = metrics
        self._reasons = reasons
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOK,), name="endpoint", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        host = str(host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        log.info("metrics and readiness on %s", self.url)
        if self._open_to_others and not self._access.guarded:
            log.warning(
                "others can reach %s, and there is no token: /metrics is refused; set"
                " EMBEDWORKER_METRICS_TOKEN or EMBEDWORKER_METRICS_TOKEN_FILE",
                self.url,
            )

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, target: str, headers: Any) -> "_Answer":
        place = urlsplit(target)
        known = self._access.permits(headers.get("Authorization"))
        if place.path == "/healthz":
            return _json(200, {"alive": True})
        if place.path == "/readyz":
            said = [reason._asdict() for reason in self._reasons()]
            told = said if known and (self._access.guarded or not self._open_to_others) else []
            return _json(503 if said else 200, {"ready": not said, "reasons": told})
        if place.path != "/metrics":
            return _json(404, {"error": "there are /metrics, /healthz and /readyz"})
        if not known:
            refused = {"error": "the token is missing or wrong; send it as a bearer token"}
            return _json(401, refused, {"WWW-Authenticate": "Bearer"})
        if self._open_to_others and not self._access.guarded:
            needed = "others can reach this address; set EMBEDWORKER_METRICS_TOKEN"
            return _json(403, {"error": needed})
        try:
            names = parse_qs(place.query, max_num_fields=FIELDS).get("name[]")
        except ValueError:
            return _json(400, {"error": f"the query has more than {FIELDS} fields"})
        encode, kind = choose_encoder(headers.get("Accept") or "")
        shown = self._metrics if names is None else _Only(self._metrics, frozenset(names))
        return 200, {"Content-Type": kind}, encode(shown)


_Answer = tuple[int, dict[str, str], bytes]


def _json(status: int, content: object, more: dict[str, str] | None = None) -> _Answer:
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **(more or {})}
    return status, headers, body


class _Only(Collector):
    """The samples of some names, as Prometheus asks for them by ``?name[]=``."""

    def __init__(self, metrics: Collector, names: frozenset[str]) -> None:
        self._metrics = metrics
        self._names = names

    def collect(self) -> Iterable[Metric]:
        for metric in self._metrics.collect():
            samples = [sample for sample in metric.samples if sample.name in self._names]
            if samples:
                some = Metric(metric.name, metric.documentation, metric.type)
                some.samples = samples
                yield some


class _Handler(BaseHTTPRequestHandler):
    """One request a connection, in HTTP/1.0: nothing that follows a body is read as another."""

    server: "_Server"
    timeout: ClassVar[float] = CLIENT_TIMEOUT

    def handle_one_request(self) -> None:
        """Read a request and answer it; a client that is silent, or goes away, gets nothing."""
        self.close_connection = True
        try:
            self.raw_requestline = self.rfile.readline(LONGEST_LINE + 1)
            if len(self.raw_requestline) > LONGEST_LINE:
                self.requestline = self.command = ""
                self.send_error(414)
            elif self.raw_requestline and self.parse_request():
                self._send(*self._answer())
        except (TimeoutError, ConnectionError) as error:
            log.debug("a client was too slow, or went away: %s", type(error).__name__)
        self.close_connection = True

    def _answer(self) -> _Answer:
        if self.command not in ("GET", "HEAD"):
            return _json(405, {"error": "only GET is answered here"}, {"Allow": "GET, HEAD"})
        try:
            return self.server.answer(self.path, self.headers)
        except Exception as error:
            log.error("a request failed: %s", redacted(error), exc_info=error)
            return _json(500, {"error": "the answer could not be made; the log says why"})

    def send_error(self, code: int, *_: object) -> None:
        """Refuse what is no request, without quoting it."""
        self.request_version = "HTTP/1.0"  # taken for HTTP/0.9, it would get no status
        self._send(*_json(int(code), {"error": "this request is not understood"}))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base's name)
        """Say nothing: a scrape every few seconds is no news, nor is a client that is silent."""

    def version_string(self) -> str:
        return "embedworker"

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, of which there are a few at most, each for a few seconds."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Callable[[str, Any], "_Answer"]) -> None:
        self.answer = answer
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._guard = threading.Lock()
        self._since: dict[socket.socket, float] = {}
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            # The one that has been there for the longest makes room: a client that sends nothing
            # must not keep probes out.
            while len(self._since) >= CONNECTIONS:
                oldest = next(iter(self._since))
                del self._since[oldest]
                _hang_up(oldest)
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on clients whose time is over, whether they are silent or send byte by byte."""
        late = time.monotonic() - CLIENT_TIMEOUT
        with self._guard:
            for request in [r for r, since in self._since.items() if since < late]:
                del self._since[request]
                _hang_up(request)

    def handle_error(self, *_: Any) -> None:
        """Ignore a client that went away; socketserver would print a traceback."""
        log.debug("a connection broke", exc_info=True)


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("a client had gone already")
