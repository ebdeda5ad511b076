"""The chart of the last hour, as numbers that a template writes down as SVG."""

from collections.abc import Iterable
from typing import NamedTuple

from embedworker.web.watch import MINUTES, Minute

__all__ = ["Bar", "Chart", "chart"]

WIDTH, HEIGHT = 720, 120  # of the view box
GAP = 2


class Bar(NamedTuple):
    """One minute: place and heights in units of the view box."""

    x: int
    width: int
    embedded_y: int
    embedded_height: int
    failed_height: int
    ago: int
    embedded: int
    failed: int


class Chart(NamedTuple):
    """All bars, the highest value, and the sums."""

    bars: list[Bar]
    most: int
    embedded: int
    failed: int
    answered: int


def chart(minutes: Iterable[Minute], now: int) -> Chart:
    """Draw the hour that ends in the minute ``now``, counted from 1970."""
    shown = [minute for minute in minutes if 0 <= now - minute.number < MINUTES]
    most = max((minute.embedded + minute.failed for minute in shown), default=0)
    step = WIDTH // MINUTES
    bars = []
    for minute in shown:
        embedded = _height(minute.embedded, most)
        failed = _height(minute.failed, most)
        embedded = min(embedded, HEIGHT - failed)
        bars.append(
            Bar(
                x=(MINUTES - 1 - (now - minute.number)) * step,
                width=step - GAP,
                embedded_y=HEIGHT - embedded,
                embedded_height=embedded,
                failed_height=failed,
                ago=now - minute.number,
                embedded=minute.embedded,
                failed=minute.failed,
            )
        )
    return Chart(
        bars=[bar for bar in bars if bar.embedded_height or bar.failed_height],
        most=most,
        embedded=sum(minute.embedded for minute in shown),
        failed=sum(minute.failed for minute in shown),
        answered=sum(minute.answered for minute in shown),
    )


def _height(number: int, most: int) -> int:
    """At least 2, so that one failure beside a thousand rows is seen."""
    return max(round(HEIGHT * number / most), 2) if number else 0
