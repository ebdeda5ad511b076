"""Looks at what seldom changes come further and further apart, until it changes."""

from types import SimpleNamespace

import pytest

from embedworker.queue import interval as module
from embedworker.queue.interval import FIRST, LONGEST, IdleInterval


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def seen(looks: IdleInterval, clock: SimpleNamespace, seconds: float) -> list[float]:
    """Ask each second; return how long each look came after the one before."""
    gaps, last = [], clock.now
    for _ in range(round(seconds)):
        clock.now += 1
        if looks.due(1):
            gaps.append(clock.now - last)
            last = clock.now
    return gaps


def test_pauses_grow_to_a_limit_and_start_over(clock: SimpleNamespace) -> None:
    looks = IdleInterval()
    assert looks.due(1)
    assert seen(looks, clock, 3000) == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, *[LONGEST] * 3]
    clock.now += 2 * FIRST
    looks.changed(1)
    assert looks.due(1), "the last look is longer ago than the first pause"
    assert not looks.due(1)
    assert seen(looks, clock, 6 * FIRST) == [2 * FIRST, 4 * FIRST]


def test_a_source_that_changes_is_looked_at_all_the_time(clock: SimpleNamespace) -> None:
    looks = IdleInterval(10.0)
    assert looks.due(1)
    assert looks.due(2)
    for _ in range(20):
        looks.changed(1)
        assert seen(looks, clock, 10) == [10.0]
    assert looks.due(2)


def test_a_long_first_pause_is_not_shortened(clock: SimpleNamespace) -> None:
    looks = IdleInterval(2 * LONGEST)
    assert looks.due(1)
    assert seen(looks, clock, 5 * LONGEST) == [2 * LONGEST] * 2
