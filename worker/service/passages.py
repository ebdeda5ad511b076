"""The passage lane: queue to vectors, in windows of similar length, newest changes first."""

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

import psycopg

from worker.model.batches import CPU_TOKEN_BUDGET
from worker.model.passages import Part, split
from worker.queue.claim import BACKFILL, FRESH, RETRIES, Job, claim, move, poll, read, suspects
from worker.queue.compact import Compactor
from worker.queue.complete import Passage, Result, complete
from worker.queue.cursor import FRONT, Cursor
from worker.queue.failure import LOCKED, fail, release, release_held
from worker.queue.lease import Identity, free
from worker.queue.looks import Looks
from worker.queue.source import Connection, Source
from worker.queue.statistics import Statistics
from worker.queue.sweep import Sweep, due_sweeps, request
from worker.service.embedding import Unit, encode
from worker.service.failpoints import failpoint
from worker.service.indexing import Indexer
from worker.service.keeper import Progress
from worker.service.memory import Trimmer
from worker.service.models import Loaded
from worker.service.pool import Pool
from worker.service.registry import Registry
from worker.settings import Settings

__all__ = ["PassageLane"]

log = logging.getLogger("embedworker.passages")

URGENT = 64  # fresh rows taken between two batches of a window; a full 64 is a backlog, not news
URGENT_LOOK = 0.2  # seconds between such looks where no NOTIFY came: it may have been left out
SUSPECTS = {11: 256, 12: 16}  # rows tried together after that many attempts that did not end well
FULL_LOOK = 0.02  # of the time: how much looking behind the cursors may take
LONGEST_LOOK = 3.0  # seconds between such looks at most, whatever they take
SCHEDULE = 60.0  # seconds between looks at which sweeps are due
SLICE = 128  # rows whose texts are read at once
CHARACTERS = 4_000_000  # of text held at once: about 15 MB, and 100 MB as tokens
# A row's own fault, such as a check or a trigger of the table that has the vector as a column; not
# that of the connection, the table, or whoever holds a lock.
OF_A_ROW = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.InternalError,
    psycopg.errors.RaiseException,
)


class PassageLane:
    """Everything one worker does to keep vectors current. Its own connection, one thread."""

    def __init__(
        self,
        connection: Connection,
        worker: Identity,
        registry: Registry,
        progress: Progress,
        settings: Settings,
        indexer: Indexer,
        wake: threading.Event,
    ) -> None:
        self._connection = connection
        self._worker = worker
        self._registry = registry
        self._registry.on_trouble = self._let_go
        self._registry.final = self._complete
        self._registry.beside = frozenset({self._begin_sweep, self._sweep})
        self._progress = progress
        self._metrics = progress.telemetry.metrics
        self._health = progress.telemetry.health
        self._settings = settings
        self._indexer = indexer
        self._wake = wake
        self._pool = Pool()
        self._statistics = Statistics(connection)
        self._compactor = Compactor()
        self._trimmer = Trimmer()
        self._loose: list[Job] = []  # held, and neither in the pool nor settled
        self._owed: list[Job] = []  # to be handed back once nobody holds their queue
        self._counts = Looks(settings.lease / 3)
        self._sweeps: set[int] = set()  # sources whose sweep is not through yet
        self._requested: set[int] = set()
        self._suspects = 1
        self._suspects_turn = False
        self._shrink = 1.0
        self._backlog = False
        self._urgent_at = 0.0
        self._cursors: defaultdict[int, Cursor] = defaultdict(Cursor)
        self._looked_at: datetime | None = None  # by the database's clock
        self._looking = 0.0  # seconds that this look and its claims have taken
        self._full_look_at = 0.0
        self._front_at = 0.0  # when to look at whole inboxes between two batches
        self._looked_fully = False
        self._scheduled_at: float | None = None
        # Jitter, so that many workers and sources do not all sweep at one moment of the night.
        self._interval = settings.sweep_interval * random.uniform(0.9, 1.0)  # noqa: S311

    def step(self) -> bool:
        """Do one piece of work: a batch, or a refill. False: there was nothing to do."""
        self._trimmer.consider()
        if self._pool:
            self._take_urgent()
            # That look may have met a source that is gone, and let go of all that was held.
            if self._pool:
                self._embed_one()
            return True
        self._wake.clear()
        self._progress.holding = False
        self._backlog = False
        ready = self._look()
        worked = self._fill(ready)
        self._urgent_at = time.monotonic()
        if self._looked_fully:
            again = time.monotonic() + min(self._looking / FULL_LOOK, LONGEST_LOOK)
            self._full_look_at = max(self._full_look_at, again)
        if not worked:
            worked = sum(self._for(source, self._sweep) for source in self._registry.active()) > 0
        if not worked:
            quiet = [s for s in self._registry.active() if s.id not in self._sweeps]
            for source in quiet:
                self._registry.guarded(source, self._indexer.consider, self._connection, source)
                self._registry.guarded(source, self._compactor.consider, self._connection, source)
            worked = sum(self._for(source, self._statistics.step) for source in quiet) > 0
            if not worked:
                still = {source.id for source in self._registry.active()}
                for source in quiet:
                    if source.id in still:  # it has not just failed
                        self._registry.quiet(source)
        return worked

    def prepare(self) -> None:
        """Have the models of all sources loaded, before there are rows for them.

        Side by side, where the registry does not wait for them.

        A second worker found nothing to do and so loaded none: the rows of the first, which was
        killed, waited half a minute for that.
        """
        for source in self._registry.active():
            self._registry.guarded(source, self._registry.load, source)

    @property
    def drained(self) -> bool:
        """Whether nothing is left that could be done now, for ``--once``."""
        sweeping = any(source.id in self._sweeps for source in self._registry.active())
        return self._looked_fully and not (self._pool or self._requested or sweeping)

    def hand_back(self) -> None:
        """Give back every claimed row untried, for another worker or the next start."""
        self._statistics.drop()
        jobs = self._pool.clear() + self._loose + self._owed
        self._loose, self._owed = [], []
        error = self._release_held(jobs)
        if error is not None:
            raise error
        self._progress.holding = False
        if jobs:
            log.info("handed %s rows back", len(jobs))

    def _for(self, source: Source, action, *arguments) -> int:  # type: ignore[no-untyped-def]
        return self._registry.guarded(source, action, source, *arguments) or 0

    # Looking

    def _look(self) -> list[Source]:
        """Return the sources that have rows to claim, after bringing the list up to date."""
        started = time.monotonic()
        full = started >= self._full_look_at
        if full:
            self._cursors.clear()
        self._looked_fully = full
        rows = poll(self._connection, self._cursors)
        self._looking = time.monotonic() - started
        self._looked_at = rows[0].at if rows else None
        self._registry.follow({row.source: row.version for row in rows})
        self._progress.sources = self._registry.all
        self._requested = {row.source for row in rows if row.sweep and not row.paused}
        self._sweeps &= {source.id for source in self._registry.all}
        self._schedule_sweeps(started)
        self._give_back()
        for source in self._registry.active():
            if source.id in self._requested:
                self._for(source, self._begin_sweep)
        working = {row.source for row in rows if row.work}
        return [source for source in self._registry.active() if source.id in working]

    def _give_back(self) -> None:
        """Hand back what could not be at once, and whatever else is held with nothing at hand.

        The keeper extends the leases of all that this worker holds, as long as it works: a row that
        it has forgotten waits for ever.
        """
        known = {source.id for source in self._registry.all}
        self._owed = [job for job in self._owed if job.source.id in known]
        for source in self._registry.active():
            self._for(source, self._give_back_owed)
        if self._owed:
            return
        for source in self._registry.active():
            if self._counts.due(source.id):
                self._for(source, self._give_back_forgotten)

    def _give_back_owed(self, source: Source) -> None:
        jobs = [job for job in self._owed if job.source.id == source.id]
        if jobs:
            release_held(self._connection, jobs, worker=self._worker.id)
            self._owed = [job for job in self._owed if job.source.id != source.id]

    def _give_back_forgotten(self, source: Source) -> None:
        forgotten, _ = free(self._connection, [source], self._worker.id)
        if forgotten:
            log.error("source %s: %s rows were held and forgotten", source, forgotten)

    # Taking

    def _fill(self, ready: Sequence[Source]) -> bool:
        """Fill the empty pool: by turns with suspects and with all else, so that neither waits.

        Rows that were at hand when a worker died are tried apart, few at a time: the text that
        killed it must not take its neighbours with it.
        """
        self._suspects_turn = not self._suspects_turn
        if self._suspects_turn and self._take_suspects(ready):
            return True
        worked = sum(self._for(source, self._refill, len(ready)) for source in ready)
        return worked > 0 or (not self._suspects_turn and self._take_suspects(ready))

    def _refill(self, source: Source, sharing: int) -> int:
        loaded = self._registry.load(source)
        share = max(1, self._settings.window // sharing)
        with self._phase("claim"), self._measured():
            moved = move(self._connection, source, cursor=self._cursors[source.id])
            taken = self._claim(source, {FRESH: share, BACKFILL: share})
        self._plan(loaded, source, taken)
        return moved.rows + len(taken)

    def _take_suspects(self, ready: Sequence[Source]) -> bool:
        shuffled = random.sample(ready, len(ready))
        return any(self._for(source, self._refill_suspects) for source in shuffled)

    def _refill_suspects(self, source: Source) -> int:
        cursor = self._cursors[source.id]
        full = cursor.due.keys().isdisjoint(RETRIES)
        started = time.monotonic()
        priority = suspects(self._connection, source, cursor=cursor, looked_at=self._looked_at)
        if full:  # it belongs to the last full look, though it may not have been its turn then
            now = time.monotonic()
            self._full_look_at = max(
                self._full_look_at, now + min((now - started) / FULL_LOOK, LONGEST_LOOK)
            )
        if priority is None:
            return 0
        loaded = self._registry.load(source)
        quota = min(self._suspects, SUSPECTS.get(priority, 1))
        with self._phase("claim"), self._measured():
            taken = self._claim(source, {priority: quota})
        self._suspects = min(self._suspects * 2, max(SUSPECTS.values()))
        self._plan(loaded, source, taken)
        return len(taken)

    def _take_urgent(self) -> None:
        now = time.monotonic()
        if self._backlog or not (self._wake.is_set() or now - self._urgent_at > URGENT_LOOK):
            return
        self._wake.clear()
        self._urgent_at = now
        front = now >= self._front_at
        if front:
            for cursor in self._cursors.values():
                cursor.place = FRONT
        self._looking = 0.0
        for source in self._registry.active():
            self._for(source, self._take_fresh)
        if front:
            self._front_at = time.monotonic() + min(self._looking / FULL_LOOK, LONGEST_LOOK)

    def _take_fresh(self, source: Source) -> int:
        loaded = self._registry.load(source)
        with self._phase("claim"), self._measured():
            moved = move(self._connection, source, cursor=self._cursors[source.id])
            taken = self._claim(source, {FRESH: URGENT}) if moved.rows else []
        if moved.rows == 0:
            return 0
        self._backlog = self._backlog or len(taken) == URGENT
        self._plan(loaded, source, taken)
        return len(taken)

    def _claim(self, source: Source, quotas: dict[int, int]) -> list[Job]:
        jobs, dead = claim(
            self._connection,
            source,
            worker=self._worker.id,
            quotas=quotas,
            lease=self._settings.lease,
            max_attempts=self._settings.max_attempts,
            cursor=self._cursors[source.id],
            looked_at=self._looked_at,
        )
        if dead:
            log.error("source %s: %s texts are dead: workers died with them", source, len(dead))
            self._count_failures(source, len(dead), "dead")
        self._loose = jobs
        if jobs:
            self._progress.holding = True
            for looks in (self._counts, self._indexer.looks, self._compactor.looks):
                looks.changed(source.id)
            failpoint("after-claim")
        return jobs

    def _plan(self, loaded: Loaded, source: Source, jobs: list[Job]) -> None:
        """Read the texts of claimed jobs and put them into the pool; settle what needs no model."""
        if not jobs:
            return
        with self._phase("read"):
            jobs = self._read(loaded, jobs)
        failpoint("after-read")
        settled = [job for job in jobs if job.text is None or job.current]
        self._complete(
            source, loaded, [Result(job, untouched=job.text is not None) for job in settled]
        )
        texts = [(job, job.text) for job in jobs if job.text is not None and not job.current]
        with self._phase("tokenize"):
            passages = self._split(loaded, source, texts)
        self._statistics.seen(
            source,
            ((job.text or "")[start:end] for job, parts in passages for start, end, _ in parts),
        )
        self._pool.add(loaded, passages, self._budget(loaded))
        self._loose = []

    def _split(
        self, loaded: Loaded, source: Source, texts: Sequence[tuple[Job, str]]
    ) -> list[tuple[Job, list[Part]]]:
        """Return the passages of each job; a text that the tokeniser refuses fails alone."""
        try:
            parts = split(loaded.encoder, [text for _, text in texts], chunk=source.chunk)
        except Exception as error:  # any failure of any tokeniser: the text is isolated and named
            if len(texts) > 1:
                middle = len(texts) // 2
                return self._split(loaded, source, texts[:middle]) + self._split(
                    loaded, source, texts[middle:]
                )
            self._fail(source, [(texts[0][0], f"{type(error).__name__}: {error}".strip())])
            self._health.failed(1, "by the tokenizer")
            return []
        return [(job, passages) for (job, _), passages in zip(texts, parts, strict=True)]

    def _read(self, loaded: Loaded, jobs: list[Job]) -> list[Job]:
        """Read as many texts as may be held at once, and hand the other rows back."""
        characters = 0
        for at in range(0, len(jobs), SLICE):
            if characters > CHARACTERS:
                release(self._connection, jobs[at:], worker=self._worker.id)
                return jobs[:at]
            some = jobs[at : at + SLICE]
            read(self._connection, some, fingerprint=loaded.fingerprint)
            characters += sum(len(job.text or "") for job in some)
        return jobs

    # Embedding

    def _embed_one(self) -> None:
        loaded, units = self._pool.next(self._budget)
        if not units:
            return
        started = time.monotonic()
        results: list[Result] = []
        failures: list[tuple[Job, str]] = []

        def done(unit: Unit, passage: Passage) -> None:
            result = self._pool.done(unit, passage)
            if result is not None:
                results.append(result)

        def failed(unit: Unit, error: str) -> None:
            self._pool.drop(unit.job)
            self._health.failed(1, "at the model")
            failures.append((unit.job, error))

        self._progress.batch_since = started
        self._health.at_model(True)
        try:
            with self._phase("encode"):
                largest = encode(loaded.encoder, units, done, failed)
        finally:
            self._progress.batch_since = None
            self._health.at_model(False)
        self._adapt(shrunk=largest < len(units) and not failures)
        failpoint("after-embed")
        self._trimmer.worked()
        self._report_batch(units, failures, time.monotonic() - started)
        self._settle(loaded, results, failures)

    def _report_batch(
        self, units: Sequence[Unit], failures: Sequence[tuple[Job, str]], seconds: float
    ) -> None:
        tokens = sum(len(unit.tokens) for unit in units)
        fields = {
            "source": str(units[0].job.source),
            "texts": len(units),
            "failed": len(failures),
            "tokens": tokens,
            "milliseconds": round(1000 * seconds),
        }
        log.info(
            "batch of %(source)s: %(texts)s texts, %(tokens)s tokens, %(milliseconds)s ms",
            fields,
            extra={"fields": fields},
        )
        lane = self._progress.telemetry.lane
        self._metrics.batches.labels(lane).inc()
        self._metrics.passages.labels(lane).inc(len(units))
        self._metrics.tokens.labels(lane).inc(tokens)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Count what is done here as a part of the look that led to it."""
        started = time.monotonic()
        yield
        self._looking += time.monotonic() - started

    def _phase(self, name: str) -> AbstractContextManager[object]:
        return self._metrics.phase.labels(name).time()

    def _count_failures(self, source: Source, count: int, outcome: str) -> None:
        self._metrics.failures.labels(str(source), source.name, outcome).inc(count)

    def _adapt(self, *, shrunk: bool) -> None:
        """Make batches smaller where only halves went through (memory), and slowly larger again."""
        self._shrink = max(self._shrink / 2, 1 / 64) if shrunk else min(self._shrink * 1.1, 1.0)

    def _budget(self, loaded: Loaded) -> int:
        budget = self._settings.batch_tokens or loaded.encoder.token_budget or CPU_TOKEN_BUDGET
        return max(1, int(budget * self._shrink))

    def _settle(
        self, loaded: Loaded, results: list[Result], failures: list[tuple[Job, str]]
    ) -> None:
        by_source: dict[int, tuple[list[Result], list[tuple[Job, str]]]] = defaultdict(
            lambda: ([], [])
        )
        for result in results:
            by_source[result.job.source.id][0].append(result)
        for failure in failures:
            by_source[failure[0].source.id][1].append(failure)
        self._loose = [result.job for result in results] + [job for job, _ in failures]
        for made, lost in by_source.values():
            source = made[0].job.source if made else lost[0][0].source
            if made:
                self._for(source, self._complete, loaded, made)
            if lost:
                self._for(source, self._fail, lost)
        self._loose = []

    def _complete(self, source: Source, loaded: Loaded, results: list[Result]) -> int:
        if not results:
            return 0
        failpoint("before-complete")
        with self._phase("complete"):
            count, refused = self._write(loaded, results)
        if len(refused) == len(results) > 1:
            raise refused[0][1]  # that is no fault of the rows'
        if refused:
            self._health.failed(len(refused), "to be written to the table")
        self._fail(source, [(result.job, str(error).strip()) for result, error in refused])
        failpoint("after-commit")
        self._progress.embedded += count
        self._health.did(count, by_model=bool(results[0].passages))
        # Those that need no model are completed apart from those that came from it.
        counter = self._metrics.embedded if results[0].passages else self._metrics.settled
        counter.labels(str(source), source.name).inc(count)
        self._statistics.written(
            source, sum(max(1, len(r.passages)) for r in results if not r.untouched)
        )
        if count < len(results):
            # Rows that were locked at that moment (by the application, whose row holds the vector;
            # by our own keeper, which extended their leases) are still ours: hand them back. Left
            # alone they would wait for their lease, and it is extended as long as there is work.
            release(
                self._connection,
                [result.job for result in results],
                worker=self._worker.id,
                delay=LOCKED if source.into_column else 0.0,
            )
        return count

    def _write(
        self, loaded: Loaded, results: list[Result]
    ) -> tuple[int, list[tuple[Result, psycopg.Error]]]:
        """Complete what can be; also return the results that the tables refuse, each with why."""
        try:
            count = complete(
                self._connection,
                results,
                worker=self._worker.id,
                fingerprint=loaded.fingerprint,
                average_length=self._statistics.average_length(results[0].job.source),
            )
        except OF_A_ROW as error:
            if len(results) == 1:
                return 0, [(results[0], error)]
            middle = len(results) // 2
            first, first_refused = self._write(loaded, results[:middle])
            second, second_refused = self._write(loaded, results[middle:])
            return first + second, first_refused + second_refused
        return count, []

    def _fail(self, source: Source, failures: list[tuple[Job, str]]) -> int:
        if not failures:
            return 0
        dead = fail(
            self._connection,
            failures,
            worker=self._worker.id,
            max_attempts=self._settings.max_attempts,
            longest_backoff=self._settings.backoff_max,
        )
        log.warning(
            "source %s: %s texts could not be embedded, %s of them for good; see embed.failure",
            source,
            len(failures),
            dead,
        )
        self._count_failures(source, dead, "dead")
        self._count_failures(source, len(failures) - dead, "retry")
        return len(failures)

    def _let_go(self, source: Source) -> None:
        """A source is in trouble: what is held of it is handed back."""
        jobs = self._pool.clear(source.id) + [j for j in self._loose if j.source.id == source.id]
        self._loose = [job for job in self._loose if job.source.id != source.id]
        self._release_held(jobs)

    def _release_held(self, jobs: Sequence[Job]) -> psycopg.Error | None:
        """Hand back what is held, source by source; where that fails now, it is owed.

        Whatever the reason is, it is that source's: the others go on. Returns the last one.
        """
        by_source: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            by_source[job.source.id].append(job)
        failure = None
        for some in by_source.values():
            try:
                release_held(self._connection, some, worker=self._worker.id)
            except psycopg.errors.UndefinedTable:
                pass  # dropped with its queue: nothing is held any more
            except psycopg.Error as error:
                if self._connection.closed:
                    raise
                self._owed += some
                failure = error
        return failure

    # Sweeping

    def _schedule_sweeps(self, now: float) -> None:
        if self._scheduled_at is not None and now - self._scheduled_at < SCHEDULE:
            return
        self._scheduled_at = now
        due, unfinished = due_sweeps(self._connection, self._interval)
        for source in self._registry.active():
            if source.id in due:
                request(self._connection, source, "schedule")
                self._requested.add(source.id)
            elif source.id in unfinished and source.id not in self._sweeps:
                self._for(source, self._begin_sweep)
        if self._registry.awaits:
            self._scheduled_at = None  # those whose model is being loaded were left out

    def _begin_sweep(self, source: Source) -> int:
        self._registry.load(source)
        if source.id in self._requested:
            with Sweep.turn(self._connection, source) as ours:
                if not ours:
                    return 0
                Sweep.begin(self._connection, source)
        self._sweeps.add(source.id)
        self._requested.discard(source.id)
        return 1

    def _sweep(self, source: Source) -> int:
        if source.id not in self._sweeps:
            return 0
        fingerprint = self._registry.load(source).fingerprint
        queued = pages = 0
        while queued < self._settings.window and not (pages and self._wake.is_set()):
            with Sweep.turn(self._connection, source) as ours:
                if not ours:
                    return pages
                # Made anew each time: the table, its model, or the sweep may be others by now.
                sweep = Sweep(self._connection, source, fingerprint)
                if not sweep.done:
                    queued += sweep.page().queued
            pages += 1
            if sweep.done:
                self._sweeps.discard(source.id)
                self._statistics.ask(source)
                break
        return pages
