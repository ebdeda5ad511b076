"""How much of the processor this process may use, and whether it knows bfloat16."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["cpu_quota", "has_bfloat16", "set_threads"]

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")

# Instruction sets that multiply bfloat16 natively; anywhere else it is emulated and slow.
BFLOAT16_CAPABILITIES: Final = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def cpu_quota(cgroups: Path = CGROUPS, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Whole processors this process may keep busy: affinity and container quota, at least 1.

    A container limited to 2 CPUs on a machine of 64 still shows 64; as many threads would spend
    most of each scheduling period stopped. A fraction is rounded down for the same reason.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.floor(min([available or 1, *_quotas(cgroups, own_cgroups)])))


def set_threads(count: int) -> None:
    """Let torch use ``count`` threads in the calling thread; other threads keep their own number.

    torch runs on OpenMP, whose setting belongs to a thread: call this inside each lane's thread.
    """
    import torch

    torch.set_num_threads(count)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)


def _quotas(cgroups: Path, own_cgroups: Path) -> Iterator[float]:
    """Every limit in processors that applies: a parent group's limit binds its children too."""
    try:
        lines = own_cgroups.read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _upwards(cgroups, path):
                yield from _quota(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):  # version 1
            for mount in (cgroups / controllers, cgroups / "cpu"):
                for folder in _upwards(mount, path):
                    quota = _words(folder / "cpu.cfs_quota_us")
                    yield from _quota(quota + _words(folder / "cpu.cfs_period_us"))


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
