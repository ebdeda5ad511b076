"""What a model's folder says before its weights are read."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from embedworker.errors import ModelRefused

__all__ = ["missing_files", "missing_reranker_files", "read_pooling", "weights_checksum"]

# The names sentence-transformers gave the pooling modes before version 6.
_LEGACY_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
_TOKENIZERS: Final = ("tokenizer.json", "sentencepiece.bpe.model", "vocab.txt")


def read_pooling(folder: Path, name: str) -> str:
    """Return the pooling mode that a folder configures; several are joined with ``+``.

    Raises ModelRefused when it configures none: sentence-transformers would make one up (mean),
    and a model trained with another would give plausible, wrong vectors.
    """
    for module in _modules(folder, name):
        if str(module.get("type", "")).rsplit(".", 1)[-1] == "Pooling":
            path = folder / str(module.get("path", "")) / "config.json"
            modes = _pooling_modes(_read_json(path, name))
            if modes:
                return "+".join(modes)
            raise ModelRefused(f"the model {name!r} names no pooling mode in {path}")
    raise ModelRefused(
        f"the model {name!r} has no Pooling module in {folder / 'modules.json'}, so how its tokens"
        " become one vector is not known; use a folder saved by sentence-transformers"
    )


def missing_files(folder: Path, name: str) -> list[str]:
    """Return what a folder still lacks to be loaded, usually after a broken download."""
    if not (folder / "modules.json").is_file():
        return ["modules.json"]
    missing = []
    for module in _modules(folder, name):
        path = str(module.get("path", ""))
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Normalize":  # has no files
            continue
        inside = folder / path
        if not (inside / "config.json").is_file():
            missing.append(f"{path}/config.json")
        if kind in ("Transformer", "Dense"):
            shards = _shards(inside)
            missing += [f"{path}/{name}" for name in shards if not (inside / name).is_file()]
            if not shards and not _has_any(inside, _WEIGHTS):
                missing.append(f"{path}/{_WEIGHTS[0]}")
        if kind == "Transformer" and not _has_any(inside, _TOKENIZERS):
            missing.append(f"{path}/{_TOKENIZERS[0]}")
    return [file.lstrip("/") for file in missing]


def missing_reranker_files(folder: Path) -> list[str]:
    """Return what a cross-encoder's folder still lacks; it is one network, without modules."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    shards = _shards(folder)
    missing += [name for name in shards if not (folder / name).is_file()]
    if not shards and not _has_any(folder, _WEIGHTS):
        missing.append(_WEIGHTS[0])
    if not _has_any(folder, _TOKENIZERS):
        missing.append(_TOKENIZERS[0])
    return missing


def weights_checksum(folder: Path) -> str:
    """``sha256:…`` over the weights below a folder, by relative name and content."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin") and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _modules(folder: Path, name: str) -> list[dict[str, Any]]:
    modules = _read_json(folder / "modules.json", name)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelRefused(
            f"expected a list of modules in {folder / 'modules.json'} of the model {name!r}"
        )
    return modules


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelRefused(
            f"the model {name!r} has no {path}, so how its tokens become one vector is not known;"
            " use a folder saved by sentence-transformers"
        ) from error
    except ValueError as error:
        raise ModelRefused(f"{path} of the model {name!r} is not JSON: {error}") from error


def _pooling_modes(config: Any) -> list[str]:
    if not isinstance(config, dict):
        return []
    match config.get("pooling_mode"):
        case str(mode):
            return [mode]
        case list(modes):
            return [str(mode) for mode in modes]
    return [mode for key, mode in _LEGACY_MODES.items() if config.get(key)]


def _has_any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


def _shards(folder: Path) -> list[str]:
    """Return the weight files that an index names, if the weights are split."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    return []
