"""A switch under load, seeded: what questions got, and what both sides hold after each phase."""

import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psycopg
from fix_database import Connection
from fix_worker import Workers, use_hash_model
from psycopg import sql
from stress import Writers, deadlocks, make_table
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import SMALL_MODEL
from embedworker.model.testing import hash_vector

RATE = 5.0  # questions a second
KILL = 10.0  # seconds between kills of a worker
LONGEST = 120.0  # seconds until a phase counts as endless
QUESTIONS = [f"질문 {number} in two languages" for number in range(40)]
NEAREST = """
select vector_dims(e.embedding), e.embedding::real[], 1 - (e.embedding <=> q.vector)
from (select embed.query(%(question)s, of => 'article') as vector offset 0) as q
cross join article a
join article_embedding e using (id)
order by e.embedding <=> q.vector
limit 5
"""
# Notes when a cut begins to exchange names, which it does as soon as it has all of its locks.
PROBE = """
create function public.note_first_change() returns event_trigger language plpgsql as $$
begin
    if coalesce(current_setting('probe.first', true), '') = '' then
        perform set_config('probe.first', clock_timestamp()::text, true);
    end if;
end
$$;
create event trigger note_first_change on ddl_command_start
    when tag in ('ALTER TABLE', 'ALTER INDEX') execute function public.note_first_change();
"""
SINCE = """
select extract(epoch from clock_timestamp()
    - nullif(current_setting('probe.first', true), '')::timestamptz)::double precision
"""
SEARCH = "select count(*) from embed.search(null::article, %(question)s, k => 5) as hit"


@dataclass
class Asker(threading.Thread):
    """Asks by raw SQL and by embed.search; every score must be a cosine within one space."""

    url: str
    times: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixtures: int = 0
    empty: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name="asker")
        self._stopped = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        chosen = random.Random(3)
        with connect(self.url) as connection:
            connection.execute("set embed.query_timeout = '30s'")
            connection.execute("set embed.worker_grace = '30s'")
            while not self._stopped.wait(1 / RATE):
                question = chosen.choice(QUESTIONS)
                started = time.monotonic()
                try:
                    if chosen.random() < 0.5:
                        self._nearest(connection, question)
                    else:
                        self._search(connection, question)
                except psycopg.Error as error:
                    self.errors.append(f"{type(error).__name__}: {error}")
                self.times.append(time.monotonic() - started)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _nearest(self, connection: Connection, question: str) -> None:
        rows = connection.execute(NEAREST, {"question": question}).fetchall()
        if not rows:
            self.empty.append("by distance")
        for dimensions, vector, score in rows:
            asked = hash_vector("query: " + question, dimensions)
            self.mixtures += abs(float(asked @ np.array(vector)) - score) > 1e-4

    def _search(self, connection: Connection, question: str) -> None:
        row = connection.execute(SEARCH, {"question": question}).fetchone()
        if row is None or row[0] == 0:
            self.empty.append("by embed.search")


class Cut(NamedTuple):
    """Seconds of a call, and those in which it held its locks."""

    whole: float
    held: float


@dataclass(frozen=True)
class Outcome:
    """What was done, and what was wrong."""

    changes: int
    kills: int
    cuts: list[Cut]
    questions: int
    before: list[float]
    during: list[float]
    errors: list[str]
    mixtures: int
    empty: list[str]
    wrong: list[str]
    deadlocks: int

    @property
    def good(self) -> bool:
        return not (self.errors or self.mixtures or self.empty or self.wrong or self.deadlocks)

    def __str__(self) -> str:
        whole = sorted(1000 * one.whole for one in self.cuts)
        held = sorted(1000 * one.held for one in self.cuts)
        return "\n".join(
            [
                "good" if self.good else "BAD",
                f"changes: {self.changes}, workers killed: {self.kills}",
                f"questions: {self.questions}, p95 before {_p95(self.before):.0f} ms,"
                f" during {_p95(self.during):.0f} ms",
                f"cuts and ways back: {len(self.cuts)}, the whole call: median"
                f" {statistics.median(whole):.0f} ms, longest {whole[-1]:.0f} ms",
                f"locks held: median {statistics.median(held):.0f} ms, 99th percentile"
                f" {held[round(0.99 * (len(held) - 1))]:.0f} ms, longest {held[-1]:.0f} ms",
                f"errors: {self.errors}",
                f"scores that are no cosine of one space: {self.mixtures}, empty: {self.empty}",
                f"wrong after a phase: {self.wrong}, deadlocks: {self.deadlocks}",
            ]
        )


def run(
    server: Cluster, folder: Path, *, writers: int, rounds: int, seconds: float, seed: int
) -> Outcome:
    """Start, fill, cut over, change, go back, change, cut over and end, on a fresh server."""
    url = server.url()
    migrate(url)
    with connect(url) as connection, _killed(url, folder) as kills:
        use_hash_model(connection)
        connection.execute(
            "select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [SMALL_MODEL]
        )
        make_table(connection)
        connection.execute(PROBE)
        connection.execute(
            "insert into article select n, 'text ' || n from generate_series(1, 60) n"
        )
        wrong: list[str] = []
        changes = 0

        def write(phase: str, sides: int = 2) -> None:
            nonlocal changes
            at_work = Writers(url, writers, seed + len(wrong) + changes)
            at_work.start()
            time.sleep(seconds)  # the length of the phase, not a wait for anything
            at_work.stop()
            errors.extend(at_work.errors)
            changes += at_work.done.total()
            wrong.extend(f"{phase}: {what}" for what in _settled(connection, sides))

        errors: list[str] = []
        _settled(connection, 1)
        asker = Asker(url)
        asker.start()
        try:
            write("before", 1)
            before = list(asker.times)
            connection.execute("select embed.begin_switch('article', %s)", [SMALL_MODEL])
            write("filling")
            cuts = [_call(connection, "cut_over")]
            write("after the cut")
            cuts.append(_call(connection, "roll_back"))
            write("after the way back")
            at_work = Writers(url, writers, seed)
            at_work.start()
            for _ in range(rounds):
                cuts += [_call(connection, "cut_over"), _call(connection, "roll_back")]
            at_work.stop()
            errors += at_work.errors
            changes += at_work.done.total()
            wrong += [f"after the rounds: {what}" for what in _settled(connection, 2)]
            _call(connection, "cut_over")
            connection.execute("select embed.end_switch('article')")
            write("after the end", 1)
        finally:
            asker.stop()
        return Outcome(
            changes,
            len(kills),
            cuts,
            len(asker.times),
            before,
            asker.times[len(before) :],
            errors + asker.errors,
            asker.mixtures,
            asker.empty,
            wrong,
            deadlocks(connection),
        )


def _call(connection: Connection, name: str) -> Cut:
    """Call until it is not refused.

    One side may have embedded a row and the other not yet. A question that waits for a worker that
    was killed holds a lock on the vectors for longer than lock_timeout.
    """
    deadline = time.monotonic() + LONGEST
    while True:
        started = time.monotonic()
        try:
            with connection.transaction():
                connection.execute(
                    sql.SQL("select embed.{}('article')").format(sql.Identifier(name))
                )
                row = connection.execute(SINCE).fetchone()
                noted = time.monotonic()
            ended = time.monotonic()
            assert row is not None
            return Cut(ended - started, row[0] + ended - noted)
        except psycopg.Error as error:
            if error.sqlstate not in ("EW010", "55P03") or time.monotonic() > deadline:
                raise


@contextmanager
def _killed(url: str, folder: Path) -> Iterator[list[float]]:
    """Two workers, of which one is killed from time to time and another started."""
    pool = Workers(url, folder)
    over = threading.Event()
    kills: list[float] = []

    def strike() -> None:
        alive = [pool.start(both_lanes=True, up=False) for _ in range(2)]
        while not over.wait(KILL):
            place = len(kills) % 2
            alive[place].kill()
            kills.append(time.monotonic())
            # Up before the other is killed: on a busy machine one takes longer to start than KILL.
            alive[place] = pool.start(both_lanes=True)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()
        pool.end()


def _settled(connection: Connection, sides: int) -> list[str]:
    """Wait until nothing is left to do; return which vectors are wrong or missing."""

    seen: list[tuple[Any, ...]] = []

    def done() -> bool:
        seen[:] = connection.execute(
            "select name, state, pending, stale, removing, dead, error"
            " from embed.status_exact('article')"
        ).fetchall()
        return len(seen) == sides and all(
            row[1] == "ready" and row[2] == 0 == row[4] for row in seen
        )

    try:
        wait_until(done, LONGEST, "the end of the work")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; status: {seen}") from error
    found = []
    for name in ("article", "article_next")[:sides]:
        rows = connection.execute(
            sql.SQL(
                "select a.id, a.content, e.embedding::real[] from article a"
                " full join {} e using (id) where embed.nonblank(a.content) is not null"
                " or e.id is not null"
            ).format(sql.Identifier(f"{name}_embedding"))
        ).fetchall()
        for key, text, vector in rows:
            if text is None or vector is None:
                found.append(f"{name} {key} has no {'row' if text is None else 'vector'}")
            elif not np.allclose(vector, hash_vector("passage: " + text, len(vector)), atol=1e-6):
                found.append(f"{name} {key} is not of {text!r}")
    return found


def _p95(times: list[float]) -> float:
    return 1000 * sorted(times)[int(0.95 * len(times))] if times else 0.0
