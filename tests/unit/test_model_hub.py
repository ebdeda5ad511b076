"""Downloading from a hub: a small one that runs on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import hub
from safetensors.torch import load_file
from tiny_models import COMMIT

from embedworker.errors import ModelNotFound, ModelRefused
from embedworker.model import BUNDLED_MODEL, Encoder, open_encoder
from embedworker.model import hub as hub_module

NAME = "owner/name"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub's own"))


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )


def open_name(cache: Path, name: str = NAME) -> Encoder:
    return open_encoder(name, query_prefix="", passage_prefix="", device="cpu", cache_folder=cache)


def test_a_model_is_downloaded_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_model / "onnx").mkdir()
    (tiny_model / "onnx" / "model.onnx").write_bytes(b"for another engine")
    with hub({NAME: tiny_model}) as (address, asked):
        use(monkeypatch, address)
        first = open_name(tmp_path / "cache")
        assert first.fingerprint.revision == COMMIT
        assert (tmp_path / "cache" / "hub" / "models--owner--name").is_dir()
        assert any("model.safetensors" in path for path in asked)
        assert not any("onnx" in path for path in asked)
        asked.clear()
        assert open_name(tmp_path / "cache").fingerprint == first.fingerprint
        assert asked == []


def test_without_a_cache_folder_it_goes_to_the_hubs_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub({NAME: tiny_model}) as (address, _):
        use(monkeypatch, address)
        open_encoder(NAME, query_prefix="", passage_prefix="", device="cpu")
    assert (tmp_path / "hub's own" / "models--owner--name").is_dir()


def test_a_broken_download_is_completed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub({NAME: tiny_model}) as (address, _):
        use(monkeypatch, address)
        open_name(tmp_path)
        (weights,) = (tmp_path / "hub").rglob("snapshots/*/model.safetensors")
        weights.unlink()
        assert open_name(tmp_path).dimensions == 32


def test_a_model_with_pickled_weights_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny_model / "model.safetensors"
    torch.save(load_file(weights), tiny_model / "pytorch_model.bin")
    weights.unlink()
    with hub({NAME: tiny_model}) as (address, _):
        use(monkeypatch, address)
        assert open_name(tmp_path).dimensions == 32


def test_a_model_without_pooling_costs_no_download(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_model / "modules.json").unlink()
    with hub({NAME: tiny_model}) as (address, asked):
        use(monkeypatch, address)
        with pytest.raises(ModelRefused, match="how its tokens become one vector is not known"):
            open_name(tmp_path)
    assert not any("safetensors" in path for path in asked)


def test_a_model_the_hub_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({}) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(ModelNotFound, match=f"has no model 'owner/name'.*{BUNDLED_MODEL}"):
            open_name(tmp_path)


def test_a_hub_in_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({}, status=503) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(ModelNotFound, match=r"cannot be reached \(it answers 503\)"):
            open_name(tmp_path)


def test_a_hub_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ModelNotFound, match=r"cannot be reached \("):
            open_name(tmp_path)
        assert time.monotonic() - start < 5


def test_a_model_that_is_nowhere_costs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from embedworker.errors import ModelNotFound\n"
        "from embedworker.model import open_encoder\n"
        "try:\n"
        "    open_encoder(cache_folder=Path(sys.argv[1]))\n"
        "except ModelNotFound:\n"
        "    sys.exit('torch' in sys.modules)\n"
        "sys.exit('found')"
    )
    away = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, **away}, check=False
    )
    assert done.returncode == 0
