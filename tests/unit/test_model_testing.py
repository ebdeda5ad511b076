"""The deterministic encoder that the queue's tests use."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from embedworker.errors import ConfigurationError, ModelError
from embedworker.model import TESTING_MODEL, Encoder, open_encoder
from embedworker.model.testing import HashEncoder, hash_vector


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    return open_encoder(TESTING_MODEL)


@pytest.mark.parametrize("value", [None, "", "0", "yes"])
def test_it_is_refused_outside_tests(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("EMBEDWORKER_ALLOW_TESTING_MODEL", raising=False)
    else:
        monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", value)
    with pytest.raises(ConfigurationError, match="for tests only"):
        open_encoder(TESTING_MODEL)
    with pytest.raises(ConfigurationError, match="for tests only"):
        HashEncoder()


def test_vectors_are_unit_and_follow_the_prefixed_text(encoder: Encoder) -> None:
    vectors = encoder.encode_passages(["하나", "둘", "하나"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], hash_vector("passage: 하나"))
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(encoder.encode_queries(["하나"])[0], hash_vector("query: 하나"))
    assert abs(float(vectors[0] @ vectors[1])) < 0.3


def test_vectors_are_the_same_in_another_process() -> None:
    code = "from embedworker.model.testing import hash_vector; print(hash_vector('x')[:4].tolist())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == str(hash_vector("x")[:4].tolist())


def test_decomposed_korean_gives_the_same_vector(encoder: Encoder) -> None:
    composed, decomposed = "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"
    np.testing.assert_array_equal(*encoder.encode_passages([composed, decomposed]))


def test_tokens_are_characters_and_long_texts_are_cut(encoder: Encoder) -> None:
    short, long = encoder.tokenize_passages(["ab", "x" * 10_000])
    assert (len(short), short.total, short.truncated) == (11, 11, False)
    assert (len(long), long.total, long.truncated) == (8192, 10_009, True)


def test_fail_marker(encoder: Encoder) -> None:
    with pytest.raises(ModelError, match="index 1 of the batch"):
        encoder.encode_tokens(encoder.tokenize_passages(["fine", "<<fail>>"]))


def test_nan_marker_spares_the_others(encoder: Encoder) -> None:
    vectors = encoder.encode_tokens(encoder.tokenize_passages(["fine", "<<nan>>"]))
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False]
    assert encoder.encode_tokens([]).shape == (0, 384)


def test_oom_marker_spares_a_text_alone(encoder: Encoder) -> None:
    tokens = encoder.tokenize_passages(["fine", "<<oom>>"])
    with pytest.raises(MemoryError):
        encoder.encode_tokens(tokens)
    assert encoder.encode_tokens(tokens[1:]).shape == (1, 384)


def test_crash_marker_ends_the_process() -> None:
    code = (
        "from embedworker.model.testing import HashEncoder\n"
        "HashEncoder().encode_passages(['<<crash>>'])"
    )
    environment = {**os.environ, "EMBEDWORKER_ALLOW_TESTING_MODEL": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert process.returncode == 137


def test_hang_marker_waits_for_the_gate(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="EMBEDWORKER_TESTING_GATE"):
        encoder.encode_passages(["<<hang>>"])
    gate = tmp_path / "gate"
    monkeypatch.setenv("EMBEDWORKER_TESTING_GATE", str(gate))
    done = threading.Event()

    def encode() -> None:
        encoder.encode_passages(["<<hang>>"])
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    assert not done.wait(0.1)
    gate.touch()
    assert done.wait(10)
    thread.join()


def test_delay_is_per_batch_and_rate_per_text(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setenv("EMBEDWORKER_TESTING_DELAY", "0.25")
    monkeypatch.setattr("embedworker.model.testing.time.sleep", waits.append)
    encoder.encode_tokens(encoder.tokenize_passages(["a", "b"]))
    monkeypatch.setenv("EMBEDWORKER_TESTING_RATE", "8")  # texts a second
    encoder.encode_tokens(encoder.tokenize_passages(["a", "b"]))
    assert waits == [0.25, 0.5]
