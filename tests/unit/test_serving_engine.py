"""Whose turn it is at the model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from embedworker.errors import ModelError
from embedworker.model.encoder import Tokens, Vectors
from embedworker.model.testing import HashEncoder, hash_vector
from embedworker.service.monitoring.health import Telemetry
from embedworker.serving.engine import Busy, EncodingJob, Engine

LIMIT = 10.0  # seconds


class Recorder(HashEncoder):
    """Waits before its first batch until ``go`` is set, and keeps the texts of every batch."""

    token_budget = 40

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.reached = threading.Event()
        self.batches: list[list[str]] = []

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        self.reached.set()
        assert self.go.wait(LIMIT)
        texts = ["".join(map(chr, tokens.ids)).removeprefix("query: ") for tokens in batch]
        self.batches.append(texts)
        return super().encode_tokens(batch)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")


@contextmanager
def engine(*, merge: bool, waiting: int = 10) -> Iterator[tuple[Engine, Recorder]]:
    encoder = Recorder()
    loaded = threading.Event()

    def opened() -> Recorder:
        loaded.set()
        return encoder

    running = Engine(opened, waiting=waiting, telemetry=Telemetry("http"), merge=merge)
    running.start()
    assert loaded.wait(LIMIT)
    while running.encoder is None:
        running.join(0.001)
    yield running, encoder
    encoder.go.set()
    running.stop()
    running.join(LIMIT)
    assert running.error is None


def submit(running: Engine, *texts: str) -> EncodingJob:
    assert running.encoder is not None
    return running.submit(running.encoder.tokenize_queries(texts))


def assert_right(job: EncodingJob, *texts: str) -> None:
    vectors = job.future.result(LIMIT)
    assert np.array_equal(vectors, [hash_vector(f"query: {text}") for text in texts])


def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    with engine(merge=False) as (running, encoder):
        large = submit(running, *[f"large {n:03}" for n in range(20)])
        assert encoder.reached.wait(LIMIT)
        small = submit(running, "small")
        encoder.go.set()
        assert_right(small, "small")
        assert_right(large, *[f"large {n:03}" for n in range(20)])
    place = encoder.batches.index(["small"])
    assert place <= 2, encoder.batches
    assert len(encoder.batches) > 5


def test_requests_share_a_batch_where_that_is_quicker() -> None:
    with engine(merge=True) as (running, encoder):
        first = submit(running, "first")
        assert encoder.reached.wait(LIMIT)
        others = [submit(running, f"q{n}") for n in range(6)]  # of 9 tokens: four fit into 40
        encoder.go.set()
        assert_right(first, "first")
        for n, job in enumerate(others):
            assert_right(job, f"q{n}")
    assert [len(batch) for batch in encoder.batches] == [1, 4, 2]


def test_requests_do_not_share_a_batch_otherwise() -> None:
    with engine(merge=False) as (running, encoder):
        jobs = [submit(running, f"q{n}") for n in range(5)]
        encoder.go.set()
        for n, job in enumerate(jobs):
            assert_right(job, f"q{n}")
    assert [len(batch) for batch in encoder.batches] == [1] * 5


@pytest.mark.parametrize("merge", [True, False])
def test_one_bad_text_spoils_its_request_alone(merge: bool) -> None:
    with engine(merge=merge) as (running, encoder):
        first = submit(running, "first")
        assert encoder.reached.wait(LIMIT)
        bad = submit(running, "ok", "<<fail>>", "ok too", "<<fail>> again")
        good = submit(running, "good")
        encoder.go.set()
        with pytest.raises(ModelError):
            bad.future.result(LIMIT)
        assert_right(first, "first")
        assert_right(good, "good")


def test_a_client_that_is_gone_costs_no_more_batches() -> None:
    with engine(merge=False) as (running, encoder):
        submit(running, "first")
        assert encoder.reached.wait(LIMIT)
        gone = submit(running, *[f"gone {n}" for n in range(20)])
        last = submit(running, "last")
        assert gone.future.cancel()
        encoder.go.set()
        assert_right(last, "last")
    assert encoder.batches == [["first"], ["last"]]


def test_no_more_wait_than_may() -> None:
    with engine(merge=False, waiting=2) as (running, encoder):
        submit(running, "at the model")
        assert encoder.reached.wait(LIMIT)
        submit(running, "waits")
        submit(running, "waits")
        with pytest.raises(Busy):
            submit(running, "is one too many")
        encoder.go.set()


def test_what_waits_tells_when_to_come_back() -> None:
    with engine(merge=False) as (running, encoder):
        assert running.seconds_left == 0
        encoder.go.set()
        submit(running, "shows how long a batch takes").future.result(LIMIT)
        encoder.go.clear()
        encoder.reached.clear()
        submit(running, "at the model")
        assert encoder.reached.wait(LIMIT)
        submit(running, *[f"large {n:03}" for n in range(20)])
        large = running.seconds_left
        assert large > 0
        submit(running, *[f"large {n:03}" for n in range(20)])
        assert running.seconds_left == pytest.approx(2 * large)
        encoder.go.set()
