"""The texts of claimed rows, as passages that are ready for the model."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event

from embedworker.model.chunking import Part, is_long, split, split_by_pieces
from embedworker.queue.claim import Job, read
from embedworker.queue.complete import Result
from embedworker.queue.copy import copied
from embedworker.queue.failure import halved, may_be_unreadable
from embedworker.queue.source import Connection, Source
from embedworker.queue.statistics import Statistics
from embedworker.service.claimed import ClaimedRows
from embedworker.service.embedder import Embedder
from embedworker.service.failpoints import failpoint
from embedworker.service.heartbeat import Progress
from embedworker.service.models import Loaded
from embedworker.service.pool import Pool
from embedworker.service.registry import Registry
from embedworker.service.steps import Step
from embedworker.service.writer import Writer

__all__ = ["Reader"]

SPLIT_TURN = 0.5  # seconds at a very long text, then other rows have their turn
SLICE = 128  # rows whose texts are read at once
CHARACTERS = 4_000_000  # of text held at once: about 15 MB, and 100 MB as tokens
LATER = 5.0  # seconds until a very long text is tried again that does not fit in beside another


@dataclass(slots=True)
class _Splitting:
    """A very long text of which some pieces are split already."""

    job: Job
    loaded: Loaded
    pieces: Iterator[list[Part]]
    parts: list[Part] = field(default_factory=list)


class Reader:
    """Reads the texts of claimed rows and splits them into passages, which go into the pool."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        claimed: ClaimedRows,
        pool: Pool,
        embedder: Embedder,
        writer: Writer,
        statistics: Statistics,
        progress: Progress,
        wake: Event,
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._claimed = claimed
        self._pool = pool
        self._embedder = embedder
        self._writer = writer
        self._statistics = statistics
        self._health = progress.telemetry.health
        self._phase = progress.telemetry.metrics.phase
        self._wake = wake
        self._long: deque[_Splitting] = deque()

    @property
    def long_texts(self) -> list[Job]:
        """Rows whose very long texts are not split to the end yet."""
        return [text.job for text in self._long if text.job in self._claimed]

    def plan(self, loaded: Loaded, source: Source, jobs: list[Job], *, fresh: bool = False) -> int:
        """Put the texts of claimed rows into the pool; settle what needs no model.

        Returns how many rows are gone from their table.
        """
        if not jobs:
            return 0
        with self._phase.labels("read").time():
            jobs = self._read(loaded, source, jobs)
        failpoint("after-read")
        skipped = [job for job in jobs if job.text is None or job.current]
        self._writer.put(loaded, [Result(job, untouched=job.text is not None) for job in skipped])
        texts = [(job, job.text) for job in jobs if job.text is not None and not job.current]
        texts = self._copy(loaded, source, texts)
        with self._phase.labels("tokenize").time():
            texts = self._set_long_aside(loaded, source, texts)
            passages = self._split(loaded, source, texts)
        self._add(loaded, source, passages, fresh=fresh)
        return sum(job.text is None for job in jobs)

    def split_on(self) -> bool:
        """Go on with the first very long text until other rows have their turn."""
        while self._long and self._long[0].job not in self._claimed:
            self._long.popleft()  # changed since, or given up
        if not self._long:
            return False
        self._registry.attempt(self._long[0].job.source, Step.SPLIT, self._split_long)
        return True

    def clear(self) -> None:
        """Forget the very long texts."""
        self._long.clear()

    def _read(self, loaded: Loaded, source: Source, jobs: list[Job]) -> list[Job]:
        """Read as many texts as may be held at once, and hand the other rows back.

        A row that the table's filter or a function in it refuses fails alone.
        """
        characters = 0
        refused: list[tuple[Job, Exception]] = []
        for at in range(0, len(jobs), SLICE):
            if characters > CHARACTERS:
                self._writer.release(jobs[at:])
                jobs = jobs[:at]
                break
            some = jobs[at : at + SLICE]
            refused += halved(
                some,
                lambda part: read(self._connection, part, fingerprint=loaded.fingerprint),
                may_be_unreadable,
            )
            characters += sum(len(job.text or "") for job in some)
        if len(refused) == len(jobs) > 1:
            raise refused[0][1]  # that is no fault of the rows'
        if refused:
            self._fail(source, refused, "to be read from the table", str)
        without = {id(job) for job, _ in refused}
        return [job for job in jobs if id(job) not in without]

    def _copy(
        self, loaded: Loaded, source: Source, texts: list[tuple[Job, str]]
    ) -> list[tuple[Job, str]]:
        """Take the vectors that the other side of a switch has; return the texts that are left."""
        results = copied(
            self._connection, [job for job, _ in texts], fingerprint=loaded.fingerprint
        )
        self._statistics.seen(
            source,
            (
                (made.job.text or "")[part.start : part.end]
                for made in results
                for part in made.passages
            ),
        )
        self._writer.put(loaded, results)
        done = {id(made.job) for made in results}
        return [(job, text) for job, text in texts if id(job) not in done]

    def _set_long_aside(
        self, loaded: Loaded, source: Source, texts: Sequence[tuple[Job, str]]
    ) -> list[tuple[Job, str]]:
        """Return the texts to split now; a very long one is split between other rows.

        To split 54 MB takes two minutes.
        """
        others = []
        for job, text in texts:
            try:
                long = is_long(loaded.encoder, text, chunk=source.chunk)
            except Exception:  # any failure of any tokeniser: _split isolates and names the text
                long = False
            if not long:
                others.append((job, text))
            elif sum(len(held.text or "") for held in self.long_texts) > CHARACTERS:
                self._writer.release([job], delay=LATER)
            else:
                pieces = split_by_pieces(loaded.encoder, text)
                self._long.append(_Splitting(job, loaded, pieces))
        return others

    def _split_long(self) -> None:
        text = self._long[0]
        source = text.job.source
        started = time.monotonic()
        with self._phase.labels("tokenize").time():
            try:
                for parts in text.pieces:
                    text.parts += parts
                    if self._wake.is_set() or time.monotonic() - started > SPLIT_TURN:
                        return
            except Exception as error:  # any failure of any tokeniser
                self._long.popleft()
                self._fail(source, [(text.job, error)], "by the tokenizer", _described)
                return
        self._long.popleft()
        self._add(text.loaded, source, [(text.job, text.parts)])

    def _split(
        self, loaded: Loaded, source: Source, texts: Sequence[tuple[Job, str]]
    ) -> list[tuple[Job, list[Part]]]:
        """Return the passages of each row; a text that the tokeniser refuses fails alone."""
        passages: list[tuple[Job, list[Part]]] = []

        def split_some(some: Sequence[tuple[Job, str]]) -> None:
            parts = split(loaded.encoder, [text for _, text in some], chunk=source.chunk)
            passages.extend((job, made) for (job, _), made in zip(some, parts, strict=True))

        if texts:
            refused = halved(texts, split_some, lambda _: True)
            failures = [(job, error) for (job, _), error in refused]
            self._fail(source, failures, "by the tokenizer", _described)
        return passages

    def _add(
        self,
        loaded: Loaded,
        source: Source,
        passages: list[tuple[Job, list[Part]]],
        *,
        fresh: bool = False,
    ) -> None:
        self._statistics.seen(
            source,
            ((job.text or "")[start:end] for job, parts in passages for start, end, _ in parts),
        )
        mixed = source.id in self._writer.doubted
        budget = self._embedder.budget(loaded)
        self._pool.add(loaded, passages, budget, mixed=mixed, fresh=fresh)

    def _fail(
        self,
        source: Source,
        failures: Sequence[tuple[Job, Exception]],
        where: str,
        described: Callable[[Exception], str],
    ) -> None:
        if failures:
            self._writer.fail(source, [(job, described(error).strip()) for job, error in failures])
            self._health.failed(len(failures), where)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
