"""Cross-encoders: what is loaded, what is refused, and that scores are those of the library."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny_models import cache_model, save_reranker, write_json

from embedworker.errors import ModelNotFound, ModelRefused
from embedworker.model.availability import availability
from embedworker.model.catalog import DEFAULT_RERANKER, catalog
from embedworker.model.reranker import Reranker, open_reranker

QUESTION = "서울에서 부산까지 얼마나 걸리나요"
PASSAGES = ["기차로 3 시간", "", "7", "버스로 5 시간 " * 40, "모릅니다", "9 " + "아" * 200]
RERANKERS = [card.name for card in catalog().values() if card.kind == "reranker"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nobody listens, and an empty cache of the hub's own."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub's own"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    return save_reranker(tmp_path / "tiny")


def open_tiny(name: Path | str, **options: Any) -> Reranker:
    return open_reranker(str(name), **{"max_tokens": 512, "device": "cpu", **options})


def scores(reranker: Reranker, passages: list[str] = PASSAGES) -> np.ndarray[Any, Any]:
    result = np.full(len(passages), np.nan, np.float32)
    for places, values in reranker.scored(QUESTION, passages):
        assert values.dtype == np.float32
        result[places] = values
    return result


def test_these_are_known() -> None:
    assert set(RERANKERS) == {"dragonkue/bge-reranker-v2-m3-ko", "BAAI/bge-reranker-v2-m3"}
    assert DEFAULT_RERANKER == "dragonkue/bge-reranker-v2-m3-ko"
    assert {catalog()[name].max_tokens for name in RERANKERS} == {512}


@pytest.mark.parametrize("name", RERANKERS)
def test_one_of_the_hub_is_taken_from_its_cache(name: str, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert availability(name, cache, "reranker") == "hub"
    snapshot = cache_model(cache / "hub", name, folder)
    assert availability(name, cache, "reranker") == "cached"
    assert scores(open_tiny(name, cache_folder=cache)).argmax() == 5
    (snapshot / "model.safetensors").unlink()
    assert availability(name, cache, "reranker") == "hub"
    with pytest.raises(ModelNotFound, match="only partly in the local cache"):
        open_tiny(name, cache_folder=cache)


@pytest.mark.parametrize(("dtype", "same"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_scores_are_those_of_the_library_in_the_order_given(
    folder: Path, dtype: str, same: float
) -> None:
    plain = CrossEncoder(str(folder), device="cpu")
    expected = plain.predict([(QUESTION, passage) for passage in PASSAGES])
    assert scores(open_tiny(folder, dtype=dtype)) == pytest.approx(expected, abs=same)
    assert scores(open_tiny(folder), []).shape == (0,)


def test_a_decomposed_passage_is_the_same(folder: Path) -> None:
    one, other = scores(open_tiny(folder), ["각 3", unicodedata.normalize("NFD", "각 3")])
    assert one == other


def test_what_is_longer_than_the_window_is_not_read(folder: Path) -> None:
    late = "아" * 30 + " 9"
    (far,) = scores(open_tiny(folder), [late])
    (near,) = scores(open_tiny(folder, max_tokens=64), [late])
    (none,) = scores(open_tiny(folder), ["아" * 30])
    assert far > near == none


def test_nobody_knows_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot be reached"):
        open_tiny("nobody/knows", cache_folder=tmp_path)
    with pytest.raises(ModelNotFound, match="does not exist"):
        open_tiny(tmp_path / "nowhere")


def test_code_of_its_own_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    write_json(folder / "config.json", {**config, "model_type": "own", "auto_map": names})
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelRefused, match="cannot be loaded"):
        open_tiny(folder)
    assert not (folder / "ran").exists()


def test_one_without_a_finite_score_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: weight * float("nan") for name, weight in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelRefused, match="expected a finite number"):
        open_tiny(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_half_a_model_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelRefused, match=f"not complete: {file} missing"):
        open_tiny(folder)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()
    with pytest.raises(ModelRefused, match="gives 3 classes, expected one score"):
        open_tiny(save_reranker(tmp_path / "three", labels=3))
