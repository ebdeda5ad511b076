"""Waiting on a condition: the only way a test here lets time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.01  # seconds between looks at first
LATER = 0.02  # of what was waited is the pause; looks keep the processor from what is awaited
LONGEST = 0.1  # seconds between looks


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Call ``condition`` until it returns something true, and return that.

    The default only ends a test that hangs: a shared machine can stand still for ten seconds.

    Raises:
        TimeoutError: nothing true within ``timeout`` seconds; says what was seen last.
    """
    start = time.monotonic()
    while not (seen := condition()):
        waited = time.monotonic() - start
        if waited > timeout:
            wanted = what or getattr(condition, "__name__", "the condition")
            raise TimeoutError(f"{wanted} did not come true within {timeout:g} s; last: {seen!r}")
        time.sleep(min(max(INTERVAL, waited * LATER), LONGEST))
    return seen
