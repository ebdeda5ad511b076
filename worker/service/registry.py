"""The sources a worker serves, kept in line with their tables, and the trouble each may be in."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Set
from dataclasses import replace
from typing import ParamSpec, TypeVar

import psycopg

from worker.database.rows import one
from worker.database.statements import statement
from worker.errors import ConfigurationError, DimensionMismatch, ModelError
from worker.queue.lease import Identity
from worker.queue.source import Connection, Source, load_sources
from worker.queue.sweep import request
from worker.service.logs import sayable
from worker.service.models import Loaded, Models
from worker.service.patience import Patience

__all__ = ["Registry"]

log = logging.getLogger("embedworker.sources")

REFRESH = 60.0  # seconds between looks at whether tables have changed
RETRY = 2.0  # seconds until the next look where one failed
LONGEST = 60.0  # seconds a source in trouble is left alone at most
WELL = ("same", "changed")  # what a look at a table may find without trouble


class _Loading(Exception):
    """The source's model is being loaded by another thread."""


P = ParamSpec("P")
T = TypeVar("T")


class Registry:
    """Sources by number. What goes wrong with one of them stops no other.

    With ``wake``, models are loaded beside the work for sources whose model is there, and it is
    set when one is; a large one is downloaded for minutes. Without, the first use waits.
    """

    def __init__(
        self,
        connection: Connection,
        worker: Identity,
        models: Models,
        *,
        wake: threading.Event | None = None,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._models = models
        self._wake = wake
        self._awaited: set[str] = set()
        self._sources: dict[int, Source] = {}
        self._model: str | None = None
        self._versions: dict[int, int] = {}
        self._verdicts: dict[int, str] = {}
        self._refreshed_at: float | None = None
        self._troubles: dict[int, tuple[float, Patience, str]] = {}
        self._cleared: set[int] = set()
        self._failed: dict[int, set[Callable[..., object]]] = defaultdict(set)
        self._pauses: dict[tuple[int, Callable[..., object]], float] = {}
        self.on_trouble: Callable[[Source], None] = lambda _: None
        self.final: Callable[..., object] | None = None
        """The last step of a source's work: what goes wrong there is over when it goes well, not
        when the steps before do, which would be tried again and again without a pause."""
        self.beside: frozenset[Callable[..., object]] = frozenset()
        """Steps that a source's rows need not wait for: what goes wrong there pauses them alone."""

    @property
    def all(self) -> tuple[Source, ...]:
        """Every source, usable or not."""
        return tuple(self._sources.values())

    @property
    def model(self) -> str | None:
        """The model that was used last."""
        return self._model

    @property
    def awaits(self) -> bool:
        """Whether sources wait for a model that is being loaded."""
        return bool(self._awaited)

    def active(self) -> list[Source]:
        """Return the sources that can be worked on now."""
        now = time.monotonic()
        return [
            source
            for source in self._sources.values()
            if self._well(source)
            and source.model not in self._awaited
            and self._troubles.get(source.id, (0.0, None, ""))[0] <= now
        ]

    def _well(self, source: Source) -> bool:
        return source.usable and not source.paused and self._verdicts.get(source.id) in WELL

    def troubles(self) -> list[str]:
        """Return what stops sources at the moment, a sentence each."""
        return [f"{label}: {why}" for label, why in self._reasons(self._troubles).values()]

    def stopped(self) -> dict[int, tuple[str, str]]:
        """Return the sources that are stopped at the moment by number: which, and why."""
        return self._reasons(n for n in self._troubles if not self._failed[n] <= self.beside)

    def _reasons(self, troubled: Iterable[int]) -> dict[int, tuple[str, str]]:
        reasons = {n: self._troubles[n][2] for n in troubled}
        # What a look at the table says is nearer to the cause than the statement that failed.
        reasons |= {n: why for n, why in self._verdicts.items() if why not in WELL}
        return {n: (str(self._sources[n]), why) for n, why in reasons.items() if n in self._sources}

    def follow(self, versions: dict[int, int]) -> None:
        """Bring the list up to date when a version is new, and from time to time."""
        self._renew(versions)
        used = {source.model for source in self._sources.values() if self._well(source)}
        self._awaited = {name for name in self._awaited & used if self._loading(name)}

    def _renew(self, versions: dict[int, int]) -> None:
        now = time.monotonic()
        recent = self._refreshed_at is not None and now - self._refreshed_at < REFRESH
        if recent and versions == self._versions and versions.keys() <= self._verdicts.keys():
            return
        looked = [self._refresh(number) for number in versions]
        before = self._versions
        self._sources = {source.id: source for source in load_sources(self._connection)}
        self._versions = {number: source.version for number, source in self._sources.items()}
        self._refreshed_at = now if all(looked) else now - REFRESH + RETRY
        for number in [*self._troubles]:
            if before.get(number) != self._versions.get(number):
                self._forget(number)

    def guarded(
        self, source: Source, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Run an action for one source. Its trouble is remembered, said once, and kept from others.

        It is over when what failed has gone well, whatever else goes well in between: rows go on
        being embedded while a sweep fails again and again.

        Raises psycopg.Error only when the connection itself is gone.
        """
        if self._pauses.get((source.id, action), 0.0) > time.monotonic():
            return None
        try:
            result = action(*args, **kwargs)
        except _Loading:
            self._awaited.add(source.model)
            return None
        except (ModelError, ConfigurationError, psycopg.Error) as error:
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or self._connection.closed:
                raise
            self._failed[source.id].add(action)
            self._trouble(source, error, action)
            return None
        if source.id in self._troubles:
            self._passed(source, {action})
        return result

    def quiet(self, source: Source) -> None:
        """Nothing is left to do for a source: what failed and need not be done again is over."""
        if source.id in self._troubles:
            # A model that cannot be had is no less in the way of the next row.
            self._passed(source, self._failed[source.id] - self.beside - {self.final, self.load})
        elif source.id not in self._cleared and self._verdicts.get(source.id) in WELL:
            # What an earlier worker left there, or this one before it forgot (a pause, say).
            self._set_error(source.id, None)
            self._cleared.add(source.id)

    def load(self, source: Source) -> Loaded:
        """Return the source's model, and make its fingerprint the active one.

        Only in what is guarded: while it is loaded beside, the source is left for later.

        Raises ModelError, DimensionMismatch among them, or ConfigurationError.
        """
        loaded = self._find(source.model)
        if loaded is None:
            raise _Loading
        if loaded.encoder.dimensions != source.dimensions:
            raise DimensionMismatch(
                f"the model {source.model!r} makes vectors of {loaded.encoder.dimensions} "
                f"dimensions, the vectors of {source} have {source.dimensions}; enable it with a "
                "model that fits, or anew with drop_vectors"
            )
        known = self._sources.get(source.id, source)
        if known.fingerprint != loaded.fingerprint:
            row = self._connection.execute(
                statement("source_fingerprint"),
                {"source": source.id, "fingerprint": loaded.fingerprint},
            ).fetchone()
            self._sources[source.id] = replace(known, fingerprint=loaded.fingerprint)
            if row is not None and row[0]:
                log.info("source %s: the model changed; its vectors are made anew", source)
                request(self._connection, source, "model changed")
        self._model = source.model
        if source.id in self._troubles:
            self._passed(source, {self.load})
        return loaded

    def _find(self, name: str) -> Loaded | None:
        if self._wake is None:
            return self._models.get(self._connection, name)
        return self._models.ready(self._connection, name, self._wake.set)

    def _loading(self, name: str) -> bool:
        try:
            return self._find(name) is None
        except (ModelError, ConfigurationError, psycopg.Error):
            if self._connection.closed:
                raise
            return False  # load says it, for each source

    def _refresh(self, number: int) -> bool:
        """Look at one source; False when even that failed."""
        looked = True
        try:
            (verdict,) = one(
                self._connection.execute(statement("source_refresh"), {"source": number})
            )
        except psycopg.Error as error:
            if self._connection.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                raise
            verdict = str(error).strip()
            looked = False
        before = self._verdicts.get(number)
        self._verdicts[number] = verdict
        known = self._sources.get(number, number)
        if verdict == "gone":
            log.info("source %s is gone with its table", known)
        elif verdict == "changed" and before is not None:
            log.info("source %s: the triggers follow the table's new form", known)
        elif verdict not in WELL and verdict != before:
            log.error("source %s: %s", known, verdict)
            self._set_error(number, verdict)
        elif verdict in WELL and before not in (None, *WELL):
            self._set_error(number, None)
        return looked

    def _passed(self, source: Source, actions: Set[Callable[..., object] | None]) -> None:
        self._failed[source.id] -= actions
        if not self._failed[source.id]:
            _, patience, _ = self._troubles[source.id]
            self._forget(source.id)
            patience.success()
            self._set_error(source.id, None)

    def _forget(self, number: int) -> None:
        del self._troubles[number]
        self._cleared.discard(number)
        self._failed.pop(number, None)
        for key in [key for key in self._pauses if key[0] == number]:
            del self._pauses[key]

    def _trouble(self, source: Source, error: Exception, action: Callable[..., object]) -> None:
        until, patience, _ = self._troubles.get(source.id, (0.0, None, ""))
        patience = patience or Patience(log, f"source {source}", longest=LONGEST)
        patience.say(error)
        again = time.monotonic() + patience.next_pause()
        if action in self.beside:
            self._pauses[source.id, action] = again
        else:
            until = again
        self._troubles[source.id] = (until, patience, sayable(error))
        self._refreshed_at = None  # the table may have changed: look before the next try
        self._set_error(source.id, str(error).strip())
        if action not in self.beside:
            self.on_trouble(source)

    def _set_error(self, number: int, error: str | None) -> None:
        self._connection.execute(statement("source_error"), {"source": number, "error": error})
