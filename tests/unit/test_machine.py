"""How many processors and how much memory a container really has."""

import os
from pathlib import Path

import pytest

from embedworker.machine import cpu_quota, memory
from embedworker.model.cpu import set_threads


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def group(root: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "own").write_text(own)
    return root / "sys", root / "own"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 1),  # a second thread would be stopped half the time
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),  # affinity is less
        ({}, 8),
    ],
)
def test_version_2(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert cpu_quota(*group(tmp_path, "0::/\n", files)) == expected


def test_version_2_parents_bind_too(tmp_path: Path) -> None:
    files = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
    assert cpu_quota(*group(tmp_path, "0::/a/b\n", files)) == 3


def test_version_2_path_of_the_host(tmp_path: Path) -> None:
    files = {"cpu.max": "400000 100000"}
    assert cpu_quota(*group(tmp_path, "0::/docker/not-here\n", files)) == 4


@pytest.mark.parametrize(
    ("mount", "quota", "expected"),
    [("cpu,cpuacct", "300000", 3), ("cpu", "300000", 3), ("cpu", "-1", 8)],
)
def test_version_1(tmp_path: Path, mount: str, quota: str, expected: int) -> None:
    files = {f"{mount}/cpu.cfs_quota_us": quota, f"{mount}/cpu.cfs_period_us": "100000"}
    own = "5:memory:/x\n4:cpu,cpuacct:/x\n"
    assert cpu_quota(*group(tmp_path, own, files)) == expected


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") == 8


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "536870912\n"}, 512 << 20),
        ("0::/a/b\n", {"a/memory.max": "268435456", "a/b/memory.max": "max"}, 256 << 20),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("5:memory:/x\n", {"memory/memory.limit_in_bytes": "134217728"}, 128 << 20),
        ("5:memory:/x\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_memory(tmp_path: Path, own: str, files: dict[str, str], expected: int | None) -> None:
    installed = memory(tmp_path, tmp_path / "missing")
    assert installed > 512 << 20
    assert memory(*group(tmp_path, own, files)) == (expected or installed)


def test_threads_are_set_for_this_thread() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)
