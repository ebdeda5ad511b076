"""The encoder of an endpoint, against one that misbehaves in every way."""

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from fix_endpoint import Answer, Endpoint, data, vectors

from embedworker.endpoints import Endpoints
from embedworker.errors import (
    ConfigurationError,
    DimensionMismatch,
    EndpointUnavailable,
    ModelError,
)
from embedworker.model.remote import RemoteEncoder
from embedworker.model.testing import hash_vector

KEY = "made-up-key"
SECRET = "a text that no message may quote"


def remote(endpoint: Endpoint, **given: Any) -> RemoteEncoder:
    known = Endpoints(f"{endpoint.origin}={KEY}")
    options: dict[str, Any] = {
        "dimensions": 384,
        "max_tokens": 100,
        "query_prefix": "query: ",
        "passage_prefix": "passage: ",
        "texts": 4,
        "requests": 3,
        "timeout": 30.0,
        **given,
    }
    return RemoteEncoder("owner/model", endpoint.url, known, **options)


def test_texts_get_their_prefix_and_vectors_come_back_in_order(endpoint: Endpoint) -> None:
    endpoint.misbehave = lambda texts: vectors(texts, scale=7.0)  # of any length
    encoder = remote(endpoint)
    texts = [f"text {n}" for n in range(30)]
    made = encoder.encode_passages(texts)
    expected = np.array([hash_vector(f"passage: {text}") for text in texts])
    np.testing.assert_allclose(made, expected, atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_queries(["각"])[0], hash_vector("query: 각"), atol=1e-6
    )
    assert max(map(len, endpoint.requests)) == 4
    assert endpoint.most_at_once <= 3
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    assert encoder.fingerprint.revision == "OpenAI-compatible endpoint"
    (tokens,) = encoder.tokenize_passages(["x" * 500])
    assert (len(tokens), tokens.total) == (100, 509)


def refused(endpoint: Endpoint, kind: type[Exception], **given: Any) -> str:
    """What embedding a text raises, once the endpoint was well; its message quotes nothing."""
    misbehave, endpoint.misbehave = endpoint.misbehave, lambda _: None
    encoder = remote(endpoint, **given)
    endpoint.misbehave = misbehave
    with pytest.raises(kind) as raised:
        encoder.encode_passages([SECRET])
    assert type(raised.value) is kind
    assert SECRET not in str(raised.value)
    assert KEY not in str(raised.value)
    return str(raised.value)


ECHO = json.dumps({"error": {"message": f"{SECRET} {KEY}"}}).encode()
FULL = hash_vector("x").tolist()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, {}, ECHO), "status 503"),
        ((500, {}, ECHO), "status 500, for any text"),
        ((400, {}, ECHO), "status 400, for any text"),
        ((401, {}, ECHO), "status 401; give its key in EMBEDWORKER_ENDPOINTS"),
        ((404, {}, ECHO), "status 404; see the address and the name of the model"),
        ((302, {"Location": "http://169.254.169.254/"}, b""), "status 302"),
        ((200, {}, b"<html>" + ECHO), "no list of 1 vectors"),
        (data([]), "no list of 1 vectors"),
        (data(None), "no list of 1 vectors"),
        (data([{"index": 0, "embedding": "AAAA"}]), "no list of 1 vectors"),
        (data([{"index": n, "embedding": FULL} for n in range(2)]), "2 vectors for 1 texts"),
        ((200, {}, b" " * 1_000_000), "more than"),
    ],
)
def test_an_endpoint_that_answers_nobody(endpoint: Endpoint, answer: Answer, said: str) -> None:
    endpoint.misbehave = lambda _: answer
    assert said in refused(endpoint, EndpointUnavailable)


def test_vectors_of_other_dimensions(endpoint: Endpoint) -> None:
    endpoint.misbehave = lambda _: data([{"index": 0, "embedding": [1.0] * 3}])
    assert "3 dimensions, expected 384" in refused(endpoint, DimensionMismatch)
    with pytest.raises(DimensionMismatch):
        remote(endpoint)


@pytest.mark.parametrize("number", [0.0, float("nan")])
def test_a_vector_without_direction(endpoint: Endpoint, number: float) -> None:
    endpoint.misbehave = lambda _: data([{"index": 0, "embedding": [number] * 384}])
    assert "no direction" in refused(endpoint, ModelError)


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_text_is_to_blame_where_others_are_answered(endpoint: Endpoint, status: int) -> None:
    endpoint.misbehave = lambda texts: (status, {}, ECHO) if SECRET in texts[0] else None
    assert f"status {status}; it answers other texts" in refused(endpoint, ModelError)


def test_a_text_that_takes_too_long(endpoint: Endpoint) -> None:
    def hang(texts: list[str]) -> None:
        if SECRET in texts[0]:
            endpoint.released.wait()

    endpoint.misbehave = hang
    assert "did not answer within 2 s" in refused(endpoint, ModelError, timeout=2.0)


def test_it_waits_as_long_as_the_endpoint_says(endpoint: Endpoint) -> None:
    encoder = remote(endpoint)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for header, least, most in (
        *(("7", 7, 7), (later, 7, 90), ("soon", 1, 60), ("99999", 300, 300)),
        *(
            ("9" * 400, 300, 300),
            ("9" * 5000, 300, 300),
            ("Mon, 01 Jan 0001 00:00:00 +2359", 0, 60),
        ),
    ):
        encoder._endpoint._closed_until = 0.0
        endpoint.misbehave = lambda _, header=header: (429, {"Retry-After": header}, ECHO)  # type: ignore[misc]
        with pytest.raises(EndpointUnavailable, match="429") as raised:
            encoder.encode_queries([SECRET])
        assert least <= raised.value.seconds <= most
        asked = len(endpoint.requests)
        with pytest.raises(EndpointUnavailable, match="a moment ago") as again:
            encoder.encode_queries([SECRET])
        assert again.value.seconds <= raised.value.seconds
        assert len(endpoint.requests) == asked
    endpoint.misbehave = lambda _: None
    encoder._endpoint._closed_until = time.monotonic()
    assert encoder.encode_queries([SECRET]).shape == (1, 384)


def test_nothing_is_sent_to_a_host_that_the_environment_does_not_name(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigurationError, match="EMBEDWORKER_ENDPOINTS"):
        RemoteEncoder(
            "owner/model",
            endpoint.url,
            Endpoints("https://elsewhere.example=key"),
            dimensions=384,
            max_tokens=100,
            query_prefix="",
            passage_prefix="",
            texts=1,
            requests=1,
            timeout=1.0,
        )
    assert endpoint.requests == []


def test_a_server_that_is_gone(endpoint: Endpoint) -> None:
    endpoint.close()
    with pytest.raises(EndpointUnavailable, match="cannot be reached"):
        remote(endpoint)
