"""How far behind what was taken the next look at a queue begins."""

from datetime import UTC, datetime

import pytest

from embedworker.queue.claim import BACKFILL, FRESH, RETRIES
from embedworker.queue.cursor import Cursor

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def behind(cursor: Cursor, priority: int) -> float:
    """Seconds, after everything that was due by NOW was taken."""
    cursor.nothing([priority], NOW)
    return (NOW - cursor.due[priority]).total_seconds()


@pytest.mark.parametrize(
    ("move", "safety"), [(0.0, 0.1), (0.01, 0.1), (0.05, 0.2), (0.1, 0.4), (2.0, 0.5)]
)
def test_fresh_rows_as_far_as_moves_take(move: float, safety: float) -> None:
    cursor = Cursor()
    cursor.moved(None, all_of_it=True, seconds=move)
    assert behind(cursor, FRESH) == pytest.approx(safety)


@pytest.mark.parametrize("priority", [*RETRIES, BACKFILL])
def test_all_others_by_half_a_second(priority: int) -> None:
    assert behind(Cursor(), priority) == pytest.approx(0.5)


def test_it_never_goes_back() -> None:
    cursor = Cursor()
    cursor.nothing([FRESH], NOW)
    cursor.moved(None, all_of_it=True, seconds=2.0)
    assert behind(cursor, FRESH) == pytest.approx(0.1)
