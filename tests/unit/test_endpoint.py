"""The worker's own HTTP server, and what strangers may do to it."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from waiting import wait_until

from embedworker.service.monitoring import endpoint as module
from embedworker.service.monitoring.access import Access
from embedworker.service.monitoring.endpoint import CONNECTIONS, Endpoint
from embedworker.service.monitoring.metrics import Merged, families
from embedworker.service.monitoring.readiness import Reason

TOKEN = "a-token-that-is-long-enough"
REASON = Reason("passages", "public.salary has been stopped")


@contextmanager
def serving(
    *reasons: Reason, host: str = "127.0.0.1", tokens: tuple[str, ...] = ()
) -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("embedworker_ready", "Ready.", ["part"], registry=registry).labels("database").set(1)
    Counter("embedworker_rows", "Rows.", registry=registry).inc(7)
    merged = Merged(lambda: families(registry))
    served = Endpoint(host, 0, merged, lambda: list(reasons), Access(tokens))
    served.start()
    try:
        yield int(served.url.rpartition(":")[2])
    finally:
        served.stop()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT_TIMEOUT", 0.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_falls_silent_is_hung_up_on_without_a_word(
    sent: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving() as port, caplog.at_level(logging.INFO):
        caplog.clear()
        assert raw(port, sent) == b""
        assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("quick")
def test_a_client_that_sends_byte_by_byte_is_hung_up_on() -> None:
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(0.05)

        def ended() -> bool:
            try:
                client.sendall(b"G")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(ended)


def test_many_silent_clients_keep_no_probe_out() -> None:
    before = threading.active_count()
    with serving() as port, ExitStack() as stack:
        for _ in range(3 * CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert ask(port, "/healthz")[0] == 200
        wait_until(lambda: threading.active_count() <= before + CONNECTIONS + 2)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/nothing"])
def test_head_is_get_without_a_body(path: str) -> None:
    with serving() as port:
        status, headers, body = ask(port, path)
        assert ask(port, path, "HEAD")[0] == status == (404 if path == "/nothing" else 200)
        assert ask(port, path, "HEAD")[1]["Content-Length"] == headers["Content-Length"]
        assert ask(port, path, "HEAD")[2] == b"" != body


def test_some_metrics_by_name() -> None:
    with serving() as port:
        asked = "/metrics?name[]=embedworker_rows_total&name%5B%5D=nothing"
        status, _, body = ask(port, asked)
        assert status == 200
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        assert lines == ["embedworker_rows_total 7.0"]
        assert ask(port, "/metrics?name[]=")[0] == 200
        assert ask(port, "/metrics?" + "&".join(["name[]=x"] * 200))[0] == 400


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"secret words\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"NONSENSE /healthz HTTP/1.1\r\n\r\n", b"405"),
    ],
)
def test_what_is_no_request_is_refused_and_not_quoted(sent: bytes, status: bytes) -> None:
    with serving() as port:
        answer = raw(port, sent)
        assert answer.split(b" ", 2)[1] == status
        assert b"secret" not in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_one_request_a_connection() -> None:
    """What follows a body that this server does not read is no second request."""
    smuggled = b"5\r\nabcde\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"
    head = b"GET /healthz HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving() as port:
        assert raw(port, head + smuggled).count(b"HTTP/1.") == 1


def test_a_fault_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Reason]:
        raise ValueError("of somebody's text")

    served = Endpoint("127.0.0.1", 0, CollectorRegistry(), broken)
    served.start()
    try:
        status, _, body = ask(int(served.url.rpartition(":")[2]), "/readyz")
    finally:
        served.stop()
    assert status == 500
    assert b"somebody" not in body
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        "a request failed: ValueError"
    ]


def test_others_get_no_metrics_and_no_reasons_without_a_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(REASON, host="0.0.0.0") as port:  # noqa: S104  (that is the point)
        status, _, body = ask(port, "/metrics")
        assert status == 403
        assert b"EMBEDWORKER_METRICS_TOKEN" in body
        status, _, body = ask(port, "/readyz")
        assert (status, json.loads(body)) == (503, {"ready": False, "reasons": []})
        assert ask(port, "/healthz")[0] == 200
    assert "set EMBEDWORKER_METRICS_TOKEN" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104  (that is the point)
def test_with_a_token(host: str) -> None:
    right = {"Authorization": f"Bearer {TOKEN}"}
    with serving(REASON, host=host, tokens=(TOKEN,)) as port:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            status, headers, _ = ask(port, "/metrics", **wrong)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(ask(port, "/readyz", **wrong)[2])["reasons"] == []
        status, _, body = ask(port, "/metrics", **right)
        assert status == 200
        assert b"embedworker_rows_total 7.0" in body
        status, _, body = ask(port, "/readyz", **right)
        assert status == 503
        assert json.loads(body)["reasons"] == [{"part": "passages", "reason": REASON.reason}]
        assert ask(port, "/healthz")[0] == 200
