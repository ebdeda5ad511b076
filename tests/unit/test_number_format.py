"""The number format on a processor: timed when a model is loaded, corrected by live batches."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer

from embedworker.model import open_encoder
from embedworker.model.torch_encoder import TorchEncoder

formats = importlib.import_module("embedworker.model.number_format")


def open_tiny(folder: Path, dtype: str = "auto") -> TorchEncoder:
    encoder = open_encoder(
        str(folder),
        device="cpu",
        dtype=dtype,  # type: ignore[arg-type]  # a plain string
        query_prefix="",
        passage_prefix="text: ",
    )
    assert isinstance(encoder, TorchEncoder)
    return encoder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds in float32 and in bfloat16 that will be measured."""
    seconds = [2.0, 1.0]
    monkeypatch.setattr(formats, "has_bfloat16", lambda: True)
    monkeypatch.setattr(formats, "_seconds", lambda _: seconds)
    return seconds


@pytest.mark.parametrize(
    ("seconds", "expected"), [((2, 1), "bfloat16"), ((20, 21), "bfloat16"), ((1, 2), "float32")]
)
def test_auto_takes_bfloat16_unless_it_is_slower(
    tiny_model: Path,
    measured: list[float],
    caplog: pytest.LogCaptureFixture,
    seconds: tuple[int, int],
    expected: str,
) -> None:
    measured[:] = seconds
    with caplog.at_level("INFO", "embedworker"):
        encoder = open_tiny(tiny_model)
    (line,) = caplog.records  # at INFO, once, and below the logger that the log is set up for
    assert line.name.startswith("embedworker.")
    assert f"{seconds[0]}000.0 ms in float32, {seconds[1]}000.0 ms in bfloat16" in line.message
    assert line.message.endswith(f"{expected} is used")
    assert encoder.notes["dtype"] == expected
    shown = f"float32 {seconds[0]}000.0 ms, bfloat16 {seconds[1]}000.0 ms"
    assert encoder.notes["times"] == shown
    if expected == "float32":  # and not float32 made of weights that were rounded
        exact = open_tiny(tiny_model, "float32").encode_passages(["x"])
        np.testing.assert_array_equal(encoder.encode_passages(["x"]), exact)


def test_auto_is_float32_without_native_bfloat16(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "has_bfloat16", lambda: False)
    encoder = open_tiny(tiny_model)
    assert encoder.notes["dtype"] == "float32"
    assert "times" not in encoder.notes


@pytest.mark.parametrize(
    ("at_start", "live", "expected"),
    [
        ((1.0, 2.0), {"float32": 2.0, "bfloat16": 1.0}, "bfloat16"),
        ((1.0, 2.0), {"float32": 1.0, "bfloat16": 2.0}, "float32"),
        ((1.0, 1.0), {"float32": 1.0, "bfloat16": 2.0}, "float32"),
    ],
)
def test_live_batches_correct_the_choice(
    tiny_model: Path,
    measured: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_start: tuple[float, float],
    live: dict[str, float],
    expected: str,
) -> None:
    measured[:] = at_start
    encoder = open_tiny(tiny_model)
    before = encoder.notes
    first = before["dtype"]
    exact = open_tiny(tiny_model, "float32").encode_passages(["x"])

    took = formats.Trial.took

    def pretended(self: object, model: SentenceTransformer, tokens: int, _: float) -> object:
        return took(self, model, tokens, tokens * live[formats.name_of(model)])

    monkeypatch.setattr(formats.Trial, "took", pretended)
    with caplog.at_level("INFO", "embedworker"):
        for _ in range(2 * formats.LIVE_BATCHES):
            # The vectors of both are of one space.
            assert np.abs(encoder.encode_passages(["x"]) - exact).max() < 0.02
    (line,) = caplog.records
    assert line.message.endswith(f"{expected} is used from now on")
    assert encoder.notes["dtype"] == expected
    assert (encoder.notes is before) == (first == expected), "what changed is registered again"


def test_a_clear_choice_has_no_trial(tiny_model: Path, measured: list[float]) -> None:
    assert measured == [2.0, 1.0]
    encoder = open_tiny(tiny_model)
    vectors = [encoder.encode_passages(["x"]) for _ in range(2)]
    np.testing.assert_array_equal(*vectors)


def test_the_timing_measures_something(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    assert min(formats._seconds([model, model])) > 0


def test_formats_are_timed_by_turns_under_a_lock_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(formats, "user_cache_path", lambda _: tmp_path / "cache")

    def timed(name: str) -> SimpleNamespace:
        def encode(*_: object, **__: object) -> None:
            other = FileLock(tmp_path / "cache" / "timing.lock")
            with pytest.raises(Timeout):
                other.acquire(timeout=0)
            order.append(name)

        return SimpleNamespace(encode=encode)

    formats._seconds([timed("exact"), timed("half")])  # type: ignore[list-item]
    assert order == ["exact", "half"] * (1 + formats.TIMING_REPEATS)
