"""How much of this machine this process may use: processors and memory."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["cpu_quota", "memory"]

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")


def cpu_quota(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Whole processors this process may keep busy: affinity and container quota, at least 1.

    A container limited to 2 CPUs on a machine of 64 still shows 64; as many threads would spend
    most of each scheduling period stopped. A fraction is rounded down for the same reason.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.floor(min([available or 1, *_quotas(cgroups, own_cgroups)])))


def memory(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Bytes of memory this process may fill: the machine's, or the container's limit."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([installed, *_limits(cgroups, own_cgroups)])


def _quotas(cgroups: Path, own_cgroups: Path) -> Iterator[float]:
    """Every limit in processors that applies."""
    for version, folder in _groups(cgroups, own_cgroups, "cpu"):
        if version == 2:
            yield from _quota(_words(folder / "cpu.max"))
        else:
            quota = _words(folder / "cpu.cfs_quota_us")
            yield from _quota(quota + _words(folder / "cpu.cfs_period_us"))


def _limits(cgroups: Path, own_cgroups: Path) -> Iterator[int]:
    """Every limit of memory that applies."""
    for version, folder in _groups(cgroups, own_cgroups, "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        yield from (int(word) for word in _words(folder / name) if word != "max")


def _groups(cgroups: Path, own_cgroups: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Each group's version and folder: a parent group's limit binds its children too."""
    try:
        lines = own_cgroups.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from ((2, folder) for folder in _upwards(cgroups, path))
        elif controller in controllers.split(","):
            for mount in (cgroups / controllers, cgroups / controller):
                yield from ((1, folder) for folder in _upwards(mount, path))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    # Inside a container the path is often the host's and does not exist; the root always applies.
    folder = root / path.strip("/")
    while folder != root:
        yield folder
        folder = folder.parent
    yield root


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except OSError:
        return []


def _quota(words: list[str]) -> Iterator[float]:
    # "max" (version 2) and -1 (version 1) mean no limit.
    if len(words) == 2 and words[0] not in ("max", "-1"):
        yield int(words[0]) / int(words[1])
