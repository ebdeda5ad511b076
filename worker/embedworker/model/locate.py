"""Where a model is, and what its folder says: known before torch is imported, which takes seconds.

A worker without its model would otherwise import it for nothing: ten seconds of a processor and
half a gigabyte before the error.
"""

from dataclasses import dataclass
from pathlib import Path

from embedworker.errors import ModelNotFound, ModelRefused
from embedworker.model.bundled import Progress, bundled_folder, bundled_revision
from embedworker.model.catalog import BUNDLED_MODEL, ModelCard
from embedworker.model.folder import missing_files, read_pooling, weights_checksum
from embedworker.model.hub import hub_folder, otherwise

__all__ = ["Located", "locate"]


@dataclass(frozen=True, slots=True)
class Located:
    """The whole folder of a model; its name and revision are those of the fingerprint."""

    folder: Path
    name: str
    revision: str
    pooling: str


def locate(card: ModelCard, cache_folder: Path | None, progress: Progress | None) -> Located:
    """Find a model's folder, downloading or unpacking it if need be, and check what it says.

    Raises ModelNotFound, or ModelRefused for one that lacks files or pools otherwise.
    """
    folder, name, revision = _find(card.name, cache_folder, progress)
    pooling = read_pooling(folder, card.name)
    if card.pooling not in (None, pooling):
        raise ModelRefused(
            f"the model {card.name!r} pools by {pooling!r} in {folder}, expected {card.pooling!r};"
            " it is another model under this name: use the published one"
        )
    if missing := missing_files(folder, card.name):
        raise ModelRefused(
            f"the model {card.name!r} is not complete: {', '.join(missing)} missing in {folder};"
            " copy or download it again"
        )
    return Located(folder, name, revision, pooling)


def _find(name: str, cache_folder: Path | None, progress: Progress | None) -> tuple[Path, str, str]:
    if name == BUNDLED_MODEL:
        return bundled_folder(cache_folder, progress), name, bundled_revision()
    folder = Path(name).expanduser()
    if folder.is_dir():
        # Its last part alone: two workers may have the same folder mounted in different places.
        return folder, folder.resolve().name, weights_checksum(folder)
    if name.startswith(("/", ".", "~")):
        raise ModelNotFound(
            f"the model's folder {name!r} does not exist; check the path,{otherwise()}"
        )
    folder = hub_folder(name, cache_folder)
    return folder, name, folder.name
