"""What is done for sources that have nothing else to do, and what is done now and then."""

from embedworker.queue.compact import Compactor
from embedworker.queue.source import Connection, Source
from embedworker.queue.statistics import Statistics
from embedworker.service.counting import Counting
from embedworker.service.indexing import Indexer
from embedworker.service.memory import Trimmer
from embedworker.service.pace import Pace
from embedworker.service.registry import Registry
from embedworker.service.steps import Step
from embedworker.service.sweeps import Sweeps
from embedworker.service.walk import Walk

__all__ = ["Maintenance"]


class Maintenance:
    """The chores of a lane, each with its own times.

    A worker of a fleet makes no connections for chores.
    """

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        sweeps: Sweeps,
        statistics: Statistics,
        counting: Counting,
        indexer: Indexer,
        pace: Pace,
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._sweeps = sweeps
        self._statistics = statistics
        self._counting = counting
        self._pace = pace
        self.trimmer = Trimmer()
        self._walk = Walk(sweeps.wake)
        self._counts = False  # whether statistics of a source of this walk go on
        compact = (Step.COMPACT, Compactor())
        self.chores = ((Step.INDEX, indexer), compact) if registry.share is None else (compact,)

    def between_batches(self) -> None:
        """Do what is due whether or not there is work."""
        self.trimmer.consider()
        self._pace.consider(self._connection)
        self._counting.give_way(self._connection)

    def look(self) -> None:
        """Do what is due when the list of sources is up to date."""
        sources = self._registry.all
        self._pace.forget({source.id for source in sources})
        if self._registry.share is not None:
            return
        stopped = self._registry.stopped()
        whole = [s for s in sources if s.usable and s.id not in stopped]
        self._counting.consider(self._connection, whole)

    def step(self) -> bool:
        """Do what is due for some sources that have nothing else to do; whether there is more."""
        quiet = [source for source in self._registry.active() if not self._sweeps.runs(source)]
        for source in self._walk.stretch(quiet):
            for step, chore in self.chores:
                self._registry.attempt(source, step, chore.run_if_due, self._connection, source)
            if self._registry.attempt(source, Step.STATISTICS, self._statistics.step, source):
                self._counts = True
        if not self._walk.ended:
            return True
        if self._counts:
            self._counts = False
            return True
        self._settle(quiet)
        return False

    def _settle(self, quiet: list[Source]) -> None:
        still = {source.id for source in self._registry.active()}
        for source in quiet:
            if source.id in still:  # it has not just failed
                self._registry.quiet(source)
                self._pace.over(self._connection, source)
