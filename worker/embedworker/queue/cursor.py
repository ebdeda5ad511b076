"""Where the next look at a queue begins."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

__all__ = ["FRESH", "Cursor"]

# Behind the time up to which all is taken: rows were due before they could be seen, by as much as
# a move into the queue takes (5,000 rows: 50 ms), or a page of a sweep. What takes longer waits for
# a full look.
SAFETY = 0.5  # seconds
# Safety margin for fresh rows, in times of the slowest recent move. Every claim scans all rows that
# were done in this time. The gain was not measured alone. Next to a foreign snapshot, a change cost
# claims about as many pages as with half a second, until jobs were looked up one by one (see
# looked_up in source.py), and 69 instead of 96 with both.
SAFE_MOVES = 4
SAFE_AT_LEAST = 0.1  # seconds
FRESH = 0  # the priority of an application's change
FRONT = "(0,0)"
COSTLY = 0.005  # seconds of a look at an inbox that is worth not to be repeated


@dataclass
class Cursor:
    """What of one inbox and queue need not be looked at again for now.

    Every row that was done leaves dead versions in the indexes, and while a foreign transaction is
    open no vacuum takes them away: a claim that began at the front passed 90,000 of them after five
    minutes of 300 changes a second. What may have been left behind the cursor (an entry
    on a page that was vacuumed, a row that was locked) is found by the looks that forget
    it, see FULL_LOOK in worker/embedworker/service/scan.py.
    """

    place: str = FRONT
    """in the inbox, whose entries have no order but that of its pages"""
    due: dict[int, datetime] = field(default_factory=dict)
    """by priority"""
    slowest: float = 0.0
    """seconds of the slowest recent move"""

    def moved(self, last: str | None, *, all_of_it: bool, seconds: float) -> None:
        """Note the place of the last entry that was moved, and how long that took.

        A cheap look begins at the front again: vacuum gives room there to new entries.
        """
        self.slowest = max(seconds, 0.9 * self.slowest)
        if not all_of_it or seconds > COSTLY or self.place != FRONT:
            self.place = last or self.place

    def claimed(
        self,
        quotas: Mapping[int, int],
        taken: Iterable[tuple[int, datetime]],
        looked_at: datetime | None,
    ) -> None:
        """Note what a claim with these quotas took: priority and due time of every row.

        ``looked_at`` is a time of the database before that claim: where a quota was not used up,
        all that was due by then has been taken.
        """
        dues: dict[int, list[datetime]] = {priority: [] for priority in quotas}
        for priority, due in taken:
            dues[priority].append(due)
        for priority, quota in quotas.items():
            if looked_at is not None and len(dues[priority]) < quota:
                dues[priority].append(looked_at)
            self._advance(priority, dues[priority])

    def nothing(self, priorities: Iterable[int], looked_at: datetime | None) -> None:
        """Note that no row of these priorities was due at that time of the database."""
        if looked_at is not None:
            for priority in priorities:
                self._advance(priority, [looked_at])

    def _advance(self, priority: int, dues: list[datetime]) -> None:
        if dues:
            safety = SAFETY
            if priority == FRESH:
                safety = min(max(SAFE_AT_LEAST, SAFE_MOVES * self.slowest), SAFETY)
            reached = max(dues) - timedelta(seconds=safety)
            self.due[priority] = max(self.due.get(priority, reached), reached)
