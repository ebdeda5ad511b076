"""How often terms occur in the passages of a source: what search needs to weigh a question's words.

The counts are taken from the passages' own vectors of terms, of at most ``SAMPLE`` passages, and
written beside the ones in use, which a single small statement then replaces. All of it goes in
pieces of some milliseconds, between which a worker looks for changes to embed.
"""

import random
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import psycopg

from embedworker.database.connection import keeps_session
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.model.lexical import DIMENSIONS, FIRST, LENGTH, MARK, NEWEST, SCHEME, length
from embedworker.queue.rewriting import clear, older_workers, rewrite
from embedworker.queue.source import Connection, Source

__all__ = ["State", "Statistics", "count", "load"]

SAMPLE: Final = 20_000  # passages
PAGES: Final = 64  # read at once, about 250 passages
ROWS: Final = 20_000  # of statistics written or deleted at once, about 100 ms
GROWTH: Final = 0.1  # of the passages counted must be new before they are counted again
PAUSE: Final = 10.0  # seconds between two counts of a source
LOOK: Final = 10.0  # seconds between looks at what another worker has counted
NONE: Final = 0  # the scheme of a source without vectors of terms
ENOUGH: Final = 1000  # passages whose average length is not improved by a few more


class State(NamedTuple):
    """The statistics in use. ``average_length`` is in terms a passage.

    ``scheme`` is that of the oldest vectors of terms that were counted.
    """

    version: int
    passages: float
    average_length: float
    scheme: int = NEWEST


def load(connection: Connection, source: Source) -> State | None:
    """Return the statistics in use; None before the first count."""
    row = connection.execute(statement("statistics_state"), {"source": source.id}).fetchone()
    return None if row is None else State(*row)


def count(connection: Connection, source: Source) -> Generator[None, None, None]:
    """Count the terms, a piece at each step; do nothing while another worker counts this source.

    Closed before its end, it leaves everything as it was. Behind a pooler there is no lock that
    would last: two may count at once there, and the later version is used.

    Vectors of terms of an older scheme are computed again before that, and those that are missing
    after it. Those of a source in whose searches words do not count are removed.
    """
    locks = keeps_session(connection)
    known = {"source": source.id}
    if locks and not fetch_one(connection.execute(statement("statistics_try_lock"), known))[0]:
        return
    try:
        yield
        version, pages = fetch_one(
            connection.execute(statement("statistics_begin"), {"vectors": source.vectors})
        )
        if pages is None:  # the table was dropped since the last look
            return
        state = load(connection, source)
        sample = _Sample()
        if not source.with_terms:
            yield from clear(connection, source, int(pages))
            sample.scheme = NONE
            yield from _write(connection, source, int(version), sample)
            return
        rewrites = state is not None and state.scheme < NEWEST and not older_workers(connection)
        if rewrites:
            yield from rewrite(connection, source, int(pages))
        yield from sample.read(connection, source, int(pages))
        if sample.without and not rewrites and not older_workers(connection):
            yield from rewrite(connection, source, int(pages))
        if rewrites:  # the rest of an older scheme waits in the queue, or has lost its row
            sample.scheme = NEWEST
        yield from _write(connection, source, int(version), sample)
    finally:
        if locks:
            with suppress(psycopg.OperationalError):  # a lost connection has let go of it
                connection.execute(statement("statistics_unlock"), known)


class _Sample:
    """Passages of some pages, all pages of a table that is not too large."""

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int32] = np.zeros(DIMENSIONS, np.int32)  # untouched, no memory
        self.passages = 0
        self.length = 0.0
        self.scale = 1.0
        self.scheme = NEWEST
        self.without = 0  # passages that have no vector of terms

    def read(self, connection: Connection, source: Source, pages: int) -> Iterator[None]:
        starts = list(range(0, pages, PAGES))
        random.shuffle(starts)
        largest = done = 0
        for start in starts:
            if self.passages + largest > SAMPLE:
                break
            rows = connection.execute(
                source.render("statistics_read"),
                {"first": start, "last": start + PAGES},
                binary=True,
            ).fetchall()
            for (terms,) in rows:
                if terms is None:
                    self.without += 1
                else:
                    self._add(terms)
            largest = max(largest, len(rows))
            done += min(PAGES, pages - start)
            yield
        if done:
            self.scale = pages / done

    def _add(self, terms: bytes) -> None:
        # sparsevec_send: dimensions, number of values, 0, then places from 0, then values.
        number = int(np.frombuffer(terms, ">i4", 1, 4)[0])
        places = np.frombuffer(terms, ">i4", number, 12)
        values = np.frombuffer(terms, ">f4", number, 12 + 4 * number)
        head = dict(zip(places[:FIRST].tolist(), values[:FIRST].tolist(), strict=True))
        self.length += head.get(LENGTH, 0.0)
        if head.get(SCHEME) != MARK:
            self.scheme = NEWEST - 1
        first = int(np.searchsorted(places, FIRST))
        self.counts[places[first:]] += 1  # a place occurs once in a vector
        self.passages += 1


def _write(connection: Connection, source: Source, version: int, sample: _Sample) -> Iterator[None]:
    """Write a version and put it into use; delete the others, or it where it will never count."""
    counts = False
    try:
        yield from _write_terms(connection, source, version, sample)
        switched = connection.execute(
            source.render("statistics_switch"),
            {
                "source": source.id,
                "version": version,
                "passages": sample.passages * sample.scale,
                "average_length": sample.length / max(sample.passages, 1),
                "scheme": sample.scheme,
            },
        )
        counts = switched.rowcount > 0
    finally:
        if not counts:
            with suppress(psycopg.Error):  # the source may be gone, or the connection
                connection.execute(
                    statement("statistics_drop"), {"source": source.id, "version": version}
                )
    if counts:
        known = {"source": source.id, "version": version, "limit": ROWS}
        while connection.execute(statement("statistics_delete"), known).rowcount:
            yield


def _write_terms(
    connection: Connection, source: Source, version: int, sample: _Sample
) -> Iterator[None]:
    terms = np.flatnonzero(sample.counts)
    frequencies = sample.counts[terms] * sample.scale
    for at in range(0, len(terms), ROWS):
        connection.execute(
            statement("statistics_write"),
            {
                "source": source.id,
                "version": version,
                "terms": (terms[at : at + ROWS] + 1).tolist(),
                "frequencies": frequencies[at : at + ROWS].tolist(),
            },
        )
        yield


def _is_other(source: Source, state: State) -> bool:
    """Say whether the source's vectors of terms are to be computed again, or to be removed."""
    return state.scheme < NEWEST if source.with_terms else state.scheme != NONE


@dataclass
class _Tally:
    """What this worker has seen of a source since the last count."""

    state: State | None = None
    since: int | None = None  # the version that was in use then
    looked_at: float = float("-inf")
    counted_at: float = float("-inf")
    asked: bool = False
    written: int = 0
    passages: int = 0
    length: int = 0
    running: Generator[None, None, None] | None = field(default=None, repr=False)
    version: int = 0  # of the source as the count knows it


class Statistics:
    """When to count, and how long passages are until then. One per lane, on its connection."""

    def __init__(self, connection: Connection, *, pause: float = PAUSE) -> None:
        self._connection = connection
        self._pause = pause
        self._tallies: dict[int, _Tally] = {}

    def average_length(self, source: Source) -> float:
        """Return the terms of a passage on average, of those counted and those seen since."""
        tally = self._tally(source)
        # The length of a passage is another in another scheme.
        known = tally.state is not None and tally.state.scheme == NEWEST
        state = tally.state if known and tally.state is not None else State(0, 0.0, 0.0)
        passages = state.passages + tally.passages
        return (state.passages * state.average_length + tally.length) / max(passages, 1.0)

    def seen(self, source: Source, passages: Iterable[str]) -> None:
        """Note the passages of a window before their vectors are made."""
        if not source.with_terms:
            return
        tally = self._tally(source)
        state = tally.state
        counted = 0.0 if state is None or state.scheme < NEWEST else state.passages
        if counted + tally.passages >= ENOUGH:
            return  # in a backfill, too, which is counted when it is over
        lengths = [length(text) for text in passages]
        tally.passages += len(lengths)
        tally.length += sum(lengths)

    def written(self, source: Source, passages: int) -> None:
        """Note that so many passages were written or removed."""
        self._tally(source).written += passages

    def ask(self, source: Source) -> None:
        """Have the source counted at the next idle moment, however little was written."""
        self._tally(source).asked = True

    def step(self, source: Source) -> bool:
        """Go on with a count, or begin one that is due. False: there was nothing to do."""
        # Without a look at what others have counted: it costs an idle worker a statement every ten
        # seconds for each source, and what is due is looked at then.
        tally = self._tallies.setdefault(source.id, _Tally())
        if tally.version != source.version:  # its vectors may have another name by now
            self._break_off(tally)
            tally.version = source.version
        if tally.running is None and not self._due(source, tally):
            return False
        begun = tally.running is None
        tally.running = tally.running or count(self._connection, source)
        try:
            next(tally.running)
        except StopIteration:
            self._end(tally)
            self._look(source, tally)  # it may have found vectors of an older scheme
            return not begun  # at once: another worker counts
        except BaseException:
            self._end(tally)
            tally.asked = True
            raise
        if begun:
            tally.asked, tally.written = False, 0
            tally.passages, tally.length = 0, 0
        return True

    def drop(self) -> None:
        """Break off whatever is being counted."""
        for tally in self._tallies.values():
            self._break_off(tally)

    def _due(self, source: Source, tally: _Tally) -> bool:
        state = tally.state
        other = state is not None and _is_other(source, state)
        changed = source.with_terms and (tally.asked or tally.written)
        if state is not None and not (other or changed):
            return False
        if time.monotonic() - tally.counted_at < self._pause:
            return False
        state = self._look(source, tally)
        if state is None:
            return True
        if tally.since not in (None, state.version):
            tally.asked, tally.written = False, 0  # another worker has counted what we wrote
        tally.since = state.version
        if _is_other(source, state) and not older_workers(self._connection):
            return True
        if not source.with_terms:
            return False
        return tally.asked or tally.written >= max(1.0, GROWTH * state.passages)

    def _tally(self, source: Source) -> _Tally:
        tally = self._tallies.setdefault(source.id, _Tally())
        if time.monotonic() - tally.looked_at > LOOK:
            state = self._look(source, tally)
            if tally.since is None and state is not None:
                tally.since = state.version
        return tally

    def _look(self, source: Source, tally: _Tally) -> State | None:
        tally.state = load(self._connection, source)
        tally.looked_at = time.monotonic()
        return tally.state

    def _break_off(self, tally: _Tally) -> None:
        if tally.running is not None:
            tally.running.close()
            self._end(tally)
            tally.asked = True

    @staticmethod
    def _end(tally: _Tally) -> None:
        tally.running = tally.since = None
        tally.counted_at = time.monotonic()
        tally.looked_at = float("-inf")
