"""Every row that is claimed in this worker's name."""

from collections import defaultdict
from collections.abc import Iterable

from embedworker.queue.claim import Job

__all__ = ["ClaimedRows"]

Key = tuple[str, ...]


class ClaimedRows:
    """The one list of claimed rows: added at the claim, removed when completed, failed or released.

    A row is in it once. A newer claim of a row takes the place of the older one, whose text has
    changed or whose lease has ended; what is made of the older one is dropped. Rows that are given
    up stay listed, so that the heartbeat extends their leases, until they are handed back.
    """

    def __init__(self) -> None:
        self._jobs: defaultdict[int, dict[Key, Job]] = defaultdict(dict)
        self._given_up: defaultdict[int, dict[Key, Job]] = defaultdict(dict)

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in [*self._jobs.values(), *self._given_up.values()])

    def __contains__(self, job: Job) -> bool:
        """Whether this very claim is still worked on."""
        return self._jobs[job.source.id].get(job.key) is job

    def add(self, jobs: Iterable[Job]) -> None:
        """Note rows that were just claimed."""
        for job in jobs:
            self._jobs[job.source.id][job.key] = job
            self._given_up[job.source.id].pop(job.key, None)

    def remove(self, jobs: Iterable[Job]) -> None:
        """Note that rows are no longer held; not those that were claimed again meanwhile."""
        for job in jobs:
            for held in (self._jobs[job.source.id], self._given_up[job.source.id]):
                if held.get(job.key) is job:
                    del held[job.key]

    def give_up(self, source: int) -> None:
        """Have the rows of a source handed back; nothing that is made of them is written."""
        self._given_up[source].update(self._jobs.pop(source, {}))

    def given_up(self, source: int) -> list[Job]:
        """Return the rows of a source that are to be handed back."""
        return list(self._given_up[source].values())

    def forget(self, source: int) -> None:
        """Forget the rows of a source whose queue is gone."""
        self._jobs.pop(source, None)
        self._given_up.pop(source, None)

    def any_of(self, source: int) -> bool:
        """Whether a row of the source is held, for work or to be handed back."""
        return bool(self._jobs[source] or self._given_up[source])

    def sources(self) -> list[int]:
        """Return the numbers of the sources of which rows are held."""
        return [number for number in self._jobs.keys() | self._given_up if self.any_of(number)]
