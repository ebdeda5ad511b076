"""The process of an embedded server, by the file that PostgreSQL keeps in its data folder."""

import contextlib
import os
from pathlib import Path

__all__ = ["is_ready", "running", "stands_in"]


def running(data: Path) -> int | None:
    """Return the id of the process that serves ``data``, None when none does."""
    lines = _lines(data)
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    return pid if stands_in(data, pid) else None


def is_ready(data: Path) -> bool:
    """Return whether the server takes connections, as it says itself."""
    lines = _lines(data)
    return len(lines) > 7 and lines[7].strip() == "ready"


def stands_in(data: Path, pid: int) -> bool:
    """Return whether this process lives and has ``data`` as its working directory."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the server runs as us, or we are root
    process = Path("/proc") / str(pid)
    if not process.parent.joinpath("self").exists():
        return True  # no /proc (macOS): a living process must do
    try:
        return process.joinpath("cwd").samefile(data)  # a server stands in its data
    except OSError:
        return False  # it ended meanwhile, or is a zombie nobody has waited for


def _lines(data: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return (data / "postmaster.pid").read_text().splitlines()
    return []
