"""The sources a worker serves, kept in line with their tables."""

import logging
import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import ParamSpec, TypeVar

import psycopg

from embedworker.database.statements import statement
from embedworker.queue.source import Connection, Source, load_sources
from embedworker.queue.sweep import request
from embedworker.service.models import Loaded, Models
from embedworker.service.quarantine import Quarantine
from embedworker.service.share import Share
from embedworker.service.source_errors import SourceErrors, is_fault
from embedworker.service.source_models import Loading, SourceModels
from embedworker.service.steps import Step
from embedworker.service.table_checks import TableChecks

__all__ = ["Registry"]

log = logging.getLogger("embedworker.sources")

P = ParamSpec("P")
T = TypeVar("T")


class Registry:
    """Sources by number. What goes wrong with one of them stops no other.

    ``wake`` is that of :class:`SourceModels`.
    """

    def __init__(
        self, connection: Connection, models: Models, *, wake: threading.Event | None = None
    ) -> None:
        self._connection = connection
        self._models = models
        self.share: Share | None = None
        """What a worker of a fleet does; None: everything."""
        self._loads = SourceModels(connection, models, wake)
        self._sources: dict[int, Source] = {}
        self._model: str | None = None
        self._errors = SourceErrors(connection)
        self.tables = TableChecks(connection, self._errors)
        self.quarantine = Quarantine()

    @property
    def all(self) -> tuple[Source, ...]:
        """Every source, usable or not."""
        return tuple(self._sources.values())

    @property
    def model(self) -> str | None:
        """The model that was used last."""
        return self._model

    def use_threads(self) -> None:
        """Let models use the threads of the setting in the calling thread."""
        self._models.use_threads()

    @property
    def awaits(self) -> bool:
        """Whether sources wait for a model that is being loaded."""
        return bool(self._loads.awaited)

    def active(self) -> list[Source]:
        """Return the sources that can be worked on now."""
        return [
            source
            for source in self._sources.values()
            if self._well(source)
            and source.model not in self._loads.awaited
            and not self.quarantine.stops(source.id)
        ]

    def _well(self, source: Source) -> bool:
        ours = self.share is None or source.id in self.share.sources
        return ours and source.usable and not source.paused and self.tables.well(source.id)

    def troubles(self) -> list[str]:
        """Return what stops sources at the moment, a sentence each."""
        return [
            f"{label}: {why}" for label, why in self._reasons(self.quarantine.reasons()).values()
        ]

    def stopped(self) -> dict[int, tuple[str, str]]:
        """Return the sources that are stopped at the moment by number: which, and why."""
        return self._reasons(self.quarantine.reasons(stopping=True))

    def _reasons(self, troubles: Mapping[int, str]) -> dict[int, tuple[str, str]]:
        # A check of the table is nearer to the cause than the statement that failed.
        reasons = {**troubles, **self.tables.reasons()}
        ours = self._sources.keys() & (reasons if self.share is None else self.share.sources)
        return {n: (str(self._sources[n]), why) for n, why in reasons.items() if n in ours}

    def follow(self, versions: dict[int, int]) -> None:
        """Bring the list up to date when a version is new, and from time to time."""
        self._renew(versions)
        self._loads.look({s.model for s in self._sources.values() if self._well(s)})

    def _renew(self, versions: dict[int, int]) -> None:
        # A look leaves out a source whose inbox is gone, too.
        lost = self._sources.keys() - versions.keys()
        looked = self.tables.look(
            {n: self._sources.get(n, n) for n in versions},
            {n for n in versions if self._is_new(n, versions[n])},
        )
        if not looked | lost:
            return
        first = not self._sources
        found = load_sources(self._connection, None if first else looked | lost)
        loaded = {source.id: source for source in found}
        for number in looked | lost | loaded.keys():
            self._replace(number, loaded.get(number))
        self._sources = dict(sorted(self._sources.items()))

    def _replace(self, number: int, source: Source | None) -> None:
        before = self._sources.pop(number, None)
        if source is not None:
            self._sources[number] = source
        same = before is not None and source is not None and before.version == source.version
        if number in self.quarantine and not same:
            self._forget(number)

    def _is_new(self, number: int, version: int) -> bool:
        known = self._sources.get(number)
        return known is None or known.version != version or not self.tables.cover({number})

    def attempt(
        self,
        source: Source,
        step: Step,
        action: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """Do one step for one source; None where it fails, is paused, or waits for a model.

        A failure is remembered, logged once, and stops no other source. It is over when the same
        step has gone well: rows go on being embedded while a sweep fails again and again.
        An exception of any other kind is a fault of this program. It stops this source alone, too,
        and its traceback is logged once.

        Raises psycopg.Error only when a connection is lost.
        """
        if self.quarantine.pauses(source.id, step):
            return None
        try:
            result = action(*args, **kwargs)
        except Loading:
            return None
        except Exception as error:
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or self._connection.closed:
                raise
            if isinstance(error, psycopg.Error) and self._left(source):
                return None
            self._trouble(source, step, error)
            return None
        self._passed(source, {step})
        return result

    def embedded(self, source: Source, error: Exception | None) -> None:
        """Note that the model embedded texts of a source, or that its endpoint is not available.

        The source is then stopped for a while, and its rows go back to the queue untried.
        """
        if error is not None:
            self._trouble(source, Step.EMBED, error)
        else:
            self._errors.forget(source.id)  # a worker that has died may have left one since
            self._passed(source, {Step.EMBED})

    def quiet(self, source: Source) -> None:
        """Nothing is left to do for a source: what failed and need not be done again is over."""
        if source.id in self.quarantine:
            # Not a failed load: the next row needs the same model.
            if self.quarantine.settled(source.id):
                self._errors.clear(source.id)
        elif self.tables.well(source.id):
            self._errors.clear_once(source.id)

    def load(self, source: Source) -> Loaded:
        """Return the source's model, and make its fingerprint the active one.

        Only in an attempt: while the model is loaded beside, the source is left for later.

        Raises ModelError, DimensionMismatch among them, or ConfigurationError.
        """
        loaded = self._loads.load(source)
        known = self._sources.get(source.id, source)
        if known.fingerprint != loaded.fingerprint:
            row = self._connection.execute(
                statement("source_fingerprint"),
                {"source": source.id, "fingerprint": loaded.fingerprint},
            ).fetchone()
            self._sources[source.id] = replace(known, fingerprint=loaded.fingerprint)
            if row is not None and row[0]:
                log.info("source %s: the model changed; workers compute its vectors again", source)
                request(self._connection, source, "model changed")
        self._model = source.model
        self._passed(source, {Step.LOAD})
        return loaded

    def _left(self, source: Source) -> bool:
        """Whether a source was disabled while something was done for it, which then failed."""
        known = self._connection.execute(statement("source_known"), {"source": source.id})
        if known.fetchone() is not None:
            return False
        if self._sources.pop(source.id, None) is not None:
            log.info("source %s is no longer enabled", source)
            self.quarantine.fell(source.id)
        return True

    def _passed(self, source: Source, steps: Set[Step]) -> None:
        if self.quarantine.passed(source.id, steps):
            self._errors.clear(source.id)

    def _forget(self, number: int) -> None:
        self.quarantine.forget(number)
        self._errors.forget(number)

    def _trouble(self, source: Source, step: Step, error: Exception) -> None:
        said, fault = self._models.has_said(error), is_fault(error)
        self.quarantine.add(source.id, str(source), step, error, fault=fault, said=said)
        self.tables.soon(source.id)  # it may have changed: look before the next try
        self._errors.set(source.id, error)
