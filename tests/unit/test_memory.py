"""Memory that is free goes back to the system, which the C library alone would keep."""

import platform
from pathlib import Path

import pytest

from embedworker.service import memory
from embedworker.service.memory import Trimmer

SIZE = 4000  # bytes; what is smaller Python manages itself, what is much larger goes back at once


def resident() -> float:
    """MB of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has malloc_trim")
def test_holes_are_given_back() -> None:
    trimmer = Trimmer(pause=0)
    blocks = [bytes([n % 256]) * SIZE for n in range(50_000)]
    kept = blocks[::1000]
    blocks.clear()
    full = resident()
    assert not trimmer.consider(), "nothing was done"
    trimmer.worked()
    assert trimmer.consider()
    assert resident() < full - 100
    assert not trimmer.consider(), "nothing was done since"
    assert len(kept) == 50


def test_not_more_often_than_the_pause() -> None:
    trimmer = Trimmer(pause=1000)
    trimmer.worked()
    assert not trimmer.consider()


def test_without_such_a_call_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    trimmer = Trimmer(pause=0)
    trimmer.worked()
    assert not trimmer.consider()
