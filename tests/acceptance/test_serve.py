"""The embeddings API over HTTP, asked by the official client of OpenAI."""

import asyncio
import base64
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fix_serve import SLOW, ServerProcess, Serving
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from embedworker.model import open_encoder
from embedworker.model.catalog import DEFAULT_MODEL, TESTING_MODEL
from embedworker.model.testing import MAX_TOKENS, hash_vector
from embedworker.serving.http_connection import CONNECTIONS, HEAD_TIMEOUT

TOKEN = "a-token-that-is-long-enough"
TOLERANCE = 1e-7


PAGE = Path(__file__).parents[2] / "docs" / "http.md"


@pytest.fixture(scope="module")
def client(embeddings_server: ServerProcess) -> Iterator[openai.OpenAI]:
    with client_of(embeddings_server) as opened:
        yield opened


def client_of(server: ServerProcess, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def embed(client: openai.OpenAI, given: Any, model: str = TESTING_MODEL, **more: Any) -> Any:
    return client.embeddings.create(model=model, input=given, **more)


def assert_vector(found: list[float], text: str) -> None:
    assert np.allclose(found, hash_vector(text), atol=TOLERANCE)


def refused(kind: type[openai.APIStatusError], words: str, call: Any) -> Any:
    with pytest.raises(kind) as caught:
        call()
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    assert words in body["message"], body
    return body


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
@pytest.mark.smoke
def test_one_text_and_several(client: openai.OpenAI, encoding: dict[str, Any]) -> None:
    one = embed(client, "가을 하늘", **encoding)
    assert (one.object, one.model, len(one.data)) == ("list", TESTING_MODEL, 1)
    assert_vector(one.data[0].embedding, "query: 가을 하늘")
    # Of this encoder, a character is a token.
    assert one.usage.prompt_tokens == one.usage.total_tokens == len("query: 가을 하늘")
    texts = [f"{'길게 ' * (n % 7 * 40)}글 {n}" for n in range(100)]  # in several batches
    many = embed(client, texts, **encoding)
    assert [item.index for item in many.data] == list(range(100))
    for item, text in zip(many.data, texts, strict=True):
        assert_vector(item.embedding, f"query: {text}")


def test_the_page_about_it(embeddings_server: ServerProcess) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    code = code.replace("http://127.0.0.1:8100", embeddings_server.url)
    assert code.count(DEFAULT_MODEL) == 1
    exec(code.replace(DEFAULT_MODEL, TESTING_MODEL), {"openai": openai})  # noqa: S102 -- what is tested


def test_a_role_for_clients_that_name_none_and_a_second_name(serving: Serving) -> None:
    """LangChain's client has one model for questions and documents, and sends no input_type."""
    with (
        serving("--default-role", "passage", "--alias", "text-embedding-3-small") as server,
        client_of(server) as client,
    ):
        assert "a text without a role is a passage" in server.output()
        for name in (TESTING_MODEL, "text-embedding-3-small"):
            found = embed(client, "글", name)
            assert found.model == name
            assert_vector(found.data[0].embedding, "passage: 글")
            assert_vector(embed(client, "글", f"{name}:query").data[0].embedding, "query: 글")
            asked = embed(client, "글", name, extra_body={"input_type": "query"})
            assert_vector(asked.data[0].embedding, "query: 글")
            assert client.models.retrieve(f"{name}:passage").id == f"{name}:passage"
        assert len(client.models.list().data) == 6
        refused(
            openai.NotFoundError,
            "'text-embedding-3-small:passage'",
            lambda: embed(client, "글", "another"),
        )


def test_base64_is_little_endian_float32(embeddings_server: ServerProcess) -> None:
    status, body = embeddings_server.get(
        "/v1/embeddings",
        json.dumps({"model": TESTING_MODEL, "input": "x", "encoding_format": "base64"}).encode(),
    )
    assert status == 200
    found = np.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), "<f4")
    assert_vector(list(found), "query: x")


def test_decomposed_korean_is_the_same_text(client: openai.OpenAI) -> None:
    assert_vector(embed(client, "\u1112\u1161\u11ab").data[0].embedding, "query: 한")


@pytest.mark.parametrize(
    ("model", "more", "prefix"),
    [
        (TESTING_MODEL, {}, "query: "),
        (f"{TESTING_MODEL}:query", {}, "query: "),
        (f"{TESTING_MODEL}:passage", {}, "passage: "),
        (TESTING_MODEL, {"input_type": "query"}, "query: "),
        (TESTING_MODEL, {"input_type": "passage"}, "passage: "),
        (TESTING_MODEL, {"input_type": "search_query"}, "query: "),
        (TESTING_MODEL, {"input_type": "search_document"}, "passage: "),
        (f"{TESTING_MODEL}:passage", {"input_type": "document"}, "passage: "),
    ],
)
def test_who_asks_chooses_the_prefix(
    client: openai.OpenAI, model: str, more: dict[str, str], prefix: str
) -> None:
    found = embed(client, "글", model, extra_body=more)
    assert found.model == model
    assert_vector(found.data[0].embedding, f"{prefix}글")


@pytest.mark.smoke
def test_what_is_refused_and_why(client: openai.OpenAI) -> None:
    bad = openai.BadRequestError
    refused(bad, "token numbers", lambda: embed(client, [1, 2, 3]))
    refused(bad, "token numbers", lambda: embed(client, [[1, 2], [3]]))
    refused(bad, "input[1] is empty", lambda: embed(client, ["글", " \n"]))
    refused(bad, "missing or empty", lambda: embed(client, []))
    refused(bad, "at most 2048", lambda: embed(client, ["글"] * 2049))
    refused(bad, "at most 1000000", lambda: embed(client, ["글" * 1001] * 1000))
    refused(bad, "384 dimensions", lambda: embed(client, "글", dimensions=256))
    assert embed(client, "글", dimensions=384).data
    refused(bad, "input_typo", lambda: embed(client, "글", extra_body={"input_typo": "query"}))
    refused(
        bad, "input_type is none of", lambda: embed(client, "글", extra_body={"input_type": "q"})
    )
    refused(
        bad,
        "suffix says 'passage'",
        lambda: embed(client, "글", f"{TESTING_MODEL}:passage", extra_body={"input_type": "query"}),
    )
    body = refused(
        openai.NotFoundError, "not served here", lambda: embed(client, "글", "text-embedding-3")
    )
    assert body["code"] == "model_not_found"


def test_too_long_is_refused_as_by_openai(client: openai.OpenAI) -> None:
    fits = "가" * (MAX_TOKENS - len("query: "))
    assert_vector(embed(client, fits).data[0].embedding, f"query: {fits}")
    body = refused(
        openai.BadRequestError,
        f"maximum context length is {MAX_TOKENS} tokens, however input[1] has {MAX_TOKENS + 1}",
        lambda: embed(client, ["짧은 글", fits + "나"]),
    )
    assert body["code"] == "context_length_exceeded"


def test_models(client: openai.OpenAI) -> None:
    names = [TESTING_MODEL, f"{TESTING_MODEL}:query", f"{TESTING_MODEL}:passage"]
    assert [model.id for model in client.models.list()] == names
    assert client.models.retrieve(names[1]).owned_by == "embedworker"
    refused(openai.NotFoundError, "not served here", lambda: client.models.retrieve("other/model"))


def test_what_is_not_a_request(embeddings_server: ServerProcess) -> None:
    def refusal(status: int, *given: Any, **headers: str) -> str:
        found, body = embeddings_server.get(*given, **headers)
        assert found == status
        return str(json.loads(body)["error"]["message"])

    path = "/v1/embeddings"
    assert "not JSON" in refusal(400, path, b"{")
    assert "not JSON" in refusal(400, path, b"[" * 100_000)
    assert "not a JSON object" in refusal(400, path, b"[]")
    assert "half a surrogate" in refusal(
        400, path, json.dumps({"model": TESTING_MODEL, "input": "\ud800"}).encode()
    )
    assert r"'mod\ud800el'" in refusal(400, path, rb'{"mod\ud800el": 1}')
    for name in ("model", "encoding_format", "user", "input_type"):
        for value in ({}, [], 0, False):
            sent = {"model": TESTING_MODEL, "input": "글", name: value}
            assert f"{name} is not a text" in refusal(400, path, json.dumps(sent).encode())
    assert "application/json" in refusal(415, path, b"{}", Content_Type="text/plain")
    assert "longer than 8388608 bytes" in refusal(413, path, b" " * (8 * 1024 * 1024 + 1))
    assert "not allowed" in refusal(405, path)
    assert "does not exist" in refusal(404, "/v1/nothing")
    assert "does not exist" in refusal(404, "/metrics/", Host="elsewhere.example")


def test_many_at_once(embeddings_server: ServerProcess) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{embeddings_server.url}/v1", api_key="x", timeout=60
        ) as client:
            return await asyncio.gather(
                *(
                    client.embeddings.create(
                        model=TESTING_MODEL, input=[f"{n} {k}" for k in range(n + 1)]
                    )
                    for n in range(30)
                )
            )

    for n, found in enumerate(asyncio.run(ask_all())):
        for k, item in enumerate(found.data):
            assert_vector(item.embedding, f"query: {n} {k}")


def test_a_text_that_cannot_be_embedded(
    client: openai.OpenAI, embeddings_server: ServerProcess
) -> None:
    body = refused(
        openai.InternalServerError,
        "could not be embedded",
        lambda: embed(client, ["은밀한 글", "은밀한 <<fail>>", "글"]),
    )
    assert body["type"] == "server_error"
    assert embed(client, "다음 것").data
    assert "은밀한" not in embeddings_server.output()
    assert "Traceback" not in embeddings_server.output()


def test_metrics_and_one_line_a_request(
    client: openai.OpenAI, embeddings_server: ServerProcess
) -> None:
    embed(client, ["은밀한 글"] * 3)
    status, body = embeddings_server.get("/metrics")
    assert status == 200
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert samples["embedworker_http_requests_total", "/v1/embeddings", "200"] >= 1
    assert samples["embedworker_http_request_seconds_count", "/v1/embeddings"] >= 1
    assert samples["embedworker_passages_total", "http"] >= 3
    assert samples["embedworker_tokens_total", "http"] >= 3 * len("query: 은밀한 글")
    line = embeddings_server.output().splitlines()[-1]
    assert "path=/v1/embeddings status=200 role=query texts=3 tokens=36" in line
    for path in ("/embeddings", "/secret", "/v1/embeddings"):
        embeddings_server.get(path)
    known, *others = reversed(embeddings_server.output().splitlines()[-3:])
    assert all("method=GET path=other status=404" in line for line in others)
    assert "method=GET path=other status=405" in known
    assert "secret" not in embeddings_server.output()
    assert "은밀한" not in embeddings_server.output()


def test_tokens_open_the_door(serving: Serving, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\nanother-{TOKEN}\n")
    with serving(serve_token_file=str(tokens)) as server:
        for key in (TOKEN, f"another-{TOKEN}"):
            with client_of(server, key) as client:
                assert embed(client, "글").data
        with client_of(server, f"wrong-{TOKEN}") as client:
            body = refused(openai.AuthenticationError, "API key", lambda: embed(client, "글"))
            assert body["code"] == "invalid_api_key"
        for path in ("/v1/models", "/metrics"):
            assert server.get(path)[0] == 401
            assert server.get(path, Authorization=f"Basic {TOKEN}")[0] == 401
            assert server.get(path, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert server.get("/v1/embeddings", b"not read before the token is")[0] == 401
        assert (server.get("/healthz")[0], server.get("/readyz")[0]) == (200, 200)
        assert TOKEN not in server.output()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"serve_host": "0.0.0.0"}, "there is no token"),  # noqa: S104  (that is the point)
        ({"serve_host": "::"}, "there is no token"),
        ({"serve_host": "example.org"}, "there is no token"),
        ({"serve_token": "hunter2"}, "fewer than 16 characters"),
        ({"serve_token": TOKEN, "serve_token_file": "/nowhere"}, "both set"),
        ({"serve_token_file": "/nowhere"}, "cannot be read"),
        ({"model": "BAAI/bge-reranker-v2-m3"}, "is a reranker"),
        ({"model": "some/unknown-model"}, "EMBEDWORKER_QUERY_PREFIX"),
    ],
)
def test_what_it_does_not_start_with(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    server = ServerProcess(tmp_path / "log", **settings)
    assert server.process.wait(60) == 2, server
    assert said in server.output()
    assert "Traceback" not in server.output()
    assert "hunter2" not in server.output()
    assert TOKEN not in server.output()


def test_a_token_lets_it_listen_to_others(serving: Serving) -> None:
    with serving("--host", "0.0.0.0", serve_token=TOKEN) as server:  # noqa: S104  (that is the point)
        assert server.url.startswith("http://0.0.0.0:")


@pytest.mark.slow  # imports torch
@pytest.mark.timeout(400)
def test_a_model_on_torch(serving: Serving, tiny_model: Path) -> None:
    prefixes = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    with serving(model=str(tiny_model), dtype="float32", device="cpu", **prefixes) as server:
        encoder = open_encoder(str(tiny_model), dtype="float32", device="cpu", **prefixes)
        texts = ["가을 하늘", "x" * 40, "바다"]
        with client_of(server) as client:
            name = client.models.list().data[0].id
            assert name == tiny_model.name, "the folder's path is nobody's business"
            for model, expected in (
                (f"{name}:query", encoder.encode_queries(texts)),
                (f"{name}:passage", encoder.encode_passages(texts)),
            ):
                found = [item.embedding for item in embed(client, texts, model).data]
                assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.slow  # imports torch
@pytest.mark.timeout(400)
def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    prefixes = ("--query-prefix", "", "--passage-prefix", "")
    server = ServerProcess(tmp_path / "log", *prefixes, model="/no/such/folder")
    assert server.process.wait(300) == 1
    assert "does not exist" in server.output()
    assert "Traceback" not in server.output()
    assert "listening" not in server.output()


def test_too_many_and_a_model_that_hangs(serving: Serving, tmp_path: Path) -> None:
    """One is at the model, one waits, the third is told to come again; then all goes on."""
    gate = tmp_path / "gate"
    with serving(serve_waiting="1", testing_gate=str(gate), stalled_after="0.5") as server:
        answers: list[int] = []

        def ask() -> None:
            with client_of(server) as client:
                answers.append(len(embed(client, "<<hang>>").data))

        at_model = threading.Thread(target=ask)
        at_model.start()
        wait_until(lambda: "with the model for" in server.get("/readyz")[1], 60)
        waits = threading.Thread(target=ask)
        waits.start()
        wait_until(
            lambda: "\nembedworker_http_waiting_requests 1.0" in server.get("/metrics")[1], 60
        )
        with client_of(server) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                embed(client, "글")
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "rate_limit_exceeded"
        assert server.get("/readyz")[0] == 503
        assert server.get("/healthz")[0] == 200
        gate.touch()
        for thread in (at_model, waits):
            thread.join(60)
        assert answers == [1, 1]
        wait_until(lambda: server.get("/readyz")[0] == 200, 60)


def test_clients_that_only_connect_keep_nobody_out(embeddings_server: ServerProcess) -> None:
    """Without a limit, these few more than `ulimit -n` were all it took, and no token."""
    with ExitStack() as opened:
        asked = opened.enter_context(closing(connected(embeddings_server)))
        asked.sendall(HEAD)
        assert_answered(asked)
        silent = [
            opened.enter_context(closing(connected(embeddings_server)))
            for _ in range(CONNECTIONS + 20)
        ]
        assert embeddings_server.get("/healthz")[0] == 200
        for connection in (asked, *silent[:20]):
            assert is_closed(connection), "those that have been idle for the longest"
        assert not is_closed(silent[-1])


@pytest.mark.slow
def test_a_head_that_is_never_finished(serving: Serving, tmp_path: Path) -> None:
    """One may be kept open between requests; one that waits for the model is in no hurry."""
    gate = tmp_path / "gate"
    with serving(testing_gate=str(gate)) as server, ExitStack() as opened:
        silent, begun, again, kept, waits = (
            opened.enter_context(closing(connected(server))) for _ in range(5)
        )
        for connection in (again, kept):
            connection.sendall(HEAD)
            assert_answered(connection)
        body = json.dumps({"model": TESTING_MODEL, "input": "<<hang>>"}).encode()
        waits.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        started = time.monotonic()
        begun.sendall(HEAD[:20])

        def too_late() -> bool:
            with suppress(OSError):
                again.sendall(b"G")  # a byte at a time makes it no better
            return all(map(is_closed, (silent, begun, again)))

        wait_until(too_late, SLOW)
        assert time.monotonic() - started > HEAD_TIMEOUT / 2
        assert not is_closed(kept)
        kept.sendall(HEAD)
        assert_answered(kept)
        assert not is_closed(waits)
        gate.touch()
        assert_answered(waits)


HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(server: ServerProcess) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=SLOW)


def assert_answered(connection: socket.socket) -> None:
    answer = HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200
    assert answer.read()


def is_closed(connection: socket.socket) -> bool:
    """By the server; what it still had to say is left to be read."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


def test_sigterm_answers_what_is_under_way(serving: Serving, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving(testing_gate=str(gate), stalled_after="0.2") as server:
        answers: list[int] = []

        def ask() -> None:
            with client_of(server) as client:
                answers.append(len(embed(client, "<<hang>>").data))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: "with the model for" in server.get("/readyz")[1], 60)
        server.process.terminate()
        gate.touch()
        assert server.process.wait(60) == 0, server
        asking.join(60)
        assert answers == [1]


def test_sigterm_while_the_model_loads(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "log")
    wait_until(lambda: "listening" in server.output(), 60, repr(server))
    assert server.terminate() == 0, server


@pytest.mark.parametrize(
    "framing",
    [
        b"HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n",
        b"HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("line", [b"POST /v1/embeddings ", b"GET /healthz ", b"GET /nothing "])
def test_a_request_with_two_lengths_is_refused_and_ends_the_connection(
    embeddings_server: ServerProcess, line: bytes, framing: bytes
) -> None:
    """What follows would be a request to one reader and a body to another (RFC 9112, 6.3)."""
    follows = b"1\r\nx\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    host, _, port = embeddings_server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=SLOW) as peer:
        peer.sendall(line + framing + follows)
        answer = b"".join(iter(lambda: peer.recv(65536), b""))
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/1.1 ") == 1, "the second request is not answered"
    assert b"connection: close" in answer.lower()
