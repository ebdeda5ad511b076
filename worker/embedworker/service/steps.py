"""The steps of a source's work that may fail, each by itself."""

from enum import Enum

__all__ = ["Step"]


class Step(Enum):
    """A step of a source's work: its name, and two properties.

    ``stops_rows``: a failure stops all work at the source; otherwise it pauses this step alone.
    ``lasting``: only a success of this very step ends the trouble. Other steps may go well again
    and again before it, and the source would be tried without a pause.
    """

    LOAD = ("load", True, True)
    EMBED = ("embed", True, True)
    REFILL = ("refill", True, False)
    RETRIES = ("retries", True, False)
    FRESH = ("fresh", True, False)
    SPLIT = ("split", True, False)
    COMPLETE = ("complete", True, True)
    FAIL = ("fail", True, False)
    RELEASE = ("release", True, False)
    FORGOTTEN = ("forgotten", True, False)
    MEND = ("mend", True, False)
    REQUEST_SWEEP = ("request a sweep", True, False)
    BEGIN_SWEEP = ("begin a sweep", False, True)
    SWEEP = ("sweep", False, True)
    INDEX = ("index", True, False)
    COMPACT = ("compact", True, False)
    STATISTICS = ("statistics", True, False)

    def __init__(self, label: str, stops_rows: bool, lasting: bool) -> None:
        self.label = label
        self.stops_rows = stops_rows
        self.lasting = lasting

    def __repr__(self) -> str:
        return f"<Step {self.label}>"
