"""Numbers as people read them: on a terminal and on the page."""

from datetime import timedelta
from decimal import Decimal

__all__ = ["count", "percent", "size", "span"]


def count(number: float | None) -> str:
    """Return a number with thousands separators: 12,345; "-" where it is not known."""
    return "-" if number is None else f"{number:,.0f}"


def percent(share: str | float | Decimal | None) -> str:
    """Return a share, 0 to 1, as a percentage that is cut and never rounded up.

    "-" where it is not known, for example to a role that may not read the texts.
    """
    if share is None:
        return "-"
    tenths = int(Decimal(str(share)) * 1000)
    return "100 %" if tenths == 1000 else f"{tenths // 10}.{tenths % 10} %"


def size(amount: float | None) -> str:
    """Return bytes in the largest unit: 900 B, 12 kB, 3.4 GB."""
    if amount is None:
        return "-"
    value = float(amount)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"


def span(time: timedelta | None) -> str:
    """Return a time in its largest unit: 12 s, 3 min, 5 h, 2 d; "-" where it is not known."""
    if time is None:
        return "-"
    seconds = max(time.total_seconds(), 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
