"""Whether a model can be used here, found out without loading it or connecting anywhere."""

from pathlib import Path
from typing import Literal

from embedworker.errors import ModelError
from embedworker.model.bundled import FOLDER_NAME, _is_whole, models_folder, source_file
from embedworker.model.catalog import BUNDLED_MODEL, TESTING_MODELS, ModelKind
from embedworker.model.folder import missing_files, missing_reranker_files
from embedworker.model.hub import _unreachable, cached_folder

__all__ = ["Availability", "availability", "hub_problem"]

Availability = Literal["cached", "bundled", "hub", "missing"]
"""``bundled`` is unpacked at its first use, ``hub`` is downloaded then."""


def availability(
    name: str, cache_folder: Path | None = None, kind: ModelKind = "embedding"
) -> Availability:
    """Say where a model would come from; no connection is made."""
    if name in TESTING_MODELS:
        return "cached"
    if name == BUNDLED_MODEL:
        if _is_whole(models_folder(cache_folder) / FOLDER_NAME):
            return "cached"
        try:
            source_file()
        except ModelError:
            return "missing"
        return "bundled"
    folder = Path(name).expanduser()
    if folder.is_dir():
        lacks = (
            missing_files(folder, name) if kind == "embedding" else missing_reranker_files(folder)
        )
        return "missing" if lacks else "cached"
    if name.startswith(("/", ".", "~")):
        return "missing"
    found, lacks = cached_folder(name, cache_folder, kind)
    return "hub" if found is None or lacks else "cached"


def hub_problem() -> str | None:
    """Say why the hub does not answer, None when it does; takes five seconds at most."""
    return _unreachable()
