"""What a worker's statements cost while a foreign snapshot keeps every dead row from vacuum.

The costs are those of the workers' own statements, as pg_stat_statements counts them; nothing is
asked a second time for the sake of measuring.
"""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from fix_worker import Workers, use_hash_model
from oracle import Verdict, inbox_of, judge, queue_of, wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate

ROWS = 20_000  # a row that is changed again and again has more and more dead versions to pass
# How a statement of ours is told from the others: its first words.
KINDS = {
    "poll": "select source, version, paused, work%",
    "move": "with turn as materialized%",
    "claim": "with picked as materialized%",
    "retries": "select c.priority%",
    "complete": "with job as (%cleared as (%done as (%",
}
TABLES = ("inbox", "queue", "vectors")
# The server counts statements. It may forget, so that the disk is not what is measured.
OPTIONS = {
    "shared_preload_libraries": "pg_stat_statements",
    "fsync": "off",
    "synchronous_commit": "off",
    "autovacuum_naptime": "1s",
}


@dataclass(frozen=True)
class Cost:
    """Of one kind of statement between two looks: calls, pages and milliseconds of each."""

    calls: int = 0
    pages: float = 0.0
    ms: float = 0.0


@dataclass(frozen=True)
class Look:
    """What was seen between the last look and this one."""

    phase: str
    at: float
    changes: int
    """rows the application has changed since the start"""
    costs: dict[str, Cost]
    dead: dict[str, int]
    size: int
    """bytes of inbox and queue with their indexes"""
    waited: float
    """seconds that the oldest change has waited"""

    def __str__(self) -> str:
        costs = "  ".join(
            f"{kind} {cost.calls}× {cost.pages:.0f} pages {cost.ms:.2f} ms"
            for kind, cost in self.costs.items()
        )
        dead = "/".join(str(self.dead[name]) for name in TABLES)
        return (
            f"{self.phase:6} {self.at:5.0f} s  {self.changes:7} changes  {costs}  dead {dead}"
            f"  {self.size / 2**20:.1f} MB  oldest {self.waited:.2f} s"
        )


@dataclass
class Outcome:
    """All looks, and the verdict on the rows in the end."""

    looks: list[Look]
    verdict: Verdict
    final_dead: int
    final_size: int
    workers: int
    errors: list[str] = field(default_factory=list)

    def a_change(self, phase: str, kind: str, what: str) -> float:
        """The cost of a kind of statement for each change, over the second half of a phase.

        Not that of a call: the busier the machine, the more rows are in each.
        """
        looks = [look for look in self.looks if look.phase == phase]
        late = looks[len(looks) // 2 :]
        earlier = self.looks[: self.looks.index(late[0])]
        changes = late[-1].changes - (earlier[-1].changes if earlier else 0)
        costs = [look.costs[kind] for look in late]
        return sum(getattr(cost, what) * cost.calls for cost in costs) / max(changes, 1)

    def share(self, phase: str, *kinds: str) -> float:
        """The part of a worker's time that these statements took in a phase."""
        looks = [look for look in self.looks if look.phase == phase]
        begun = max((look.at for look in self.looks if look.at < looks[0].at), default=0.0)
        costs = [look.costs[kind] for look in looks for kind in kinds]
        spent = sum(cost.ms * cost.calls for cost in costs) / 1000
        return spent / (looks[-1].at - begun) / self.workers

    @property
    def dead_a_change(self) -> float:
        """Dead rows of inbox and queue for each change made beside the snapshot."""
        begun = [look for look in self.looks if look.phase == "before"][-1]
        ended = [look for look in self.looks if look.phase == "held"][-1]
        dead = [look.dead["inbox"] + look.dead["queue"] for look in (begun, ended)]
        return max(dead[1] - dead[0], 0) / max(ended.changes - begun.changes, 1)

    @property
    def faults(self) -> list[str]:
        """What did not stay bounded, a sentence each."""
        found = list(self.errors)
        for kind in ("claim", "move", "complete"):
            before, held, after = (
                self.a_change(phase, kind, "pages") for phase in ("before", "held", "after")
            )
            if held > 3 * before:
                found.append(f"{kind}: {before:.1f} pages before, {held:.1f} beside the snapshot")
            if after > 2 * before:
                found.append(f"{kind}: {before:.1f} pages before, {after:.1f} afterwards")
        # Looking behind the cursor takes longer then, and is done less often.
        if (share := self.share("held", "poll", "retries")) > 0.1:
            found.append(f"looking for work took {share:.0%} of a worker's time")
        # An entry of the inbox, and in the queue its insertion, claim and deletion.
        if self.dead_a_change > 4:
            found.append(f"{self.dead_a_change:.1f} dead rows for each change")
        before, later = (
            max(look.waited for look in self.looks if (look.phase == "before") is first)
            for first in (True, False)
        )
        if later > 3 * before + 5:
            found.append(f"a change waited {before:.1f} s before, and {later:.1f} s later")
        if self.final_dead:
            found.append(f"{self.final_dead} dead rows are left after the vacuum")
        if not self.verdict.good:
            found.append(str(self.verdict))
        return found

    @property
    def good(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        summary = [
            f"{kind}: "
            + ", ".join(
                f"{phase} {self.a_change(phase, kind, 'pages'):.2f} pages"
                f" {self.a_change(phase, kind, 'ms') * 1000:.0f} µs a change"
                for phase in ("before", "held", "after")
            )
            for kind in KINDS
        ]
        return "\n".join(
            [
                *summary,
                "looking for work: "
                + ", ".join(
                    f"{phase} {self.share(phase, 'poll', 'retries'):.1%}"
                    for phase in ("before", "held", "after")
                )
                + " of a worker's time",
                f"dead rows a change: {self.dead_a_change:.2f}; after the vacuum"
                f" {self.final_dead} dead, {self.final_size / 2**20:.1f} MB",
                str(self.verdict),
                *(self.faults or ["good"]),
            ]
        )


def run(
    server: Cluster,
    folder: Path,
    *,
    minutes: float,
    rate: float,
    workers: int,
    look: float,
    rows: int = ROWS,
) -> Outcome:
    """A while without the snapshot, ``minutes`` beside it, and a while afterwards."""
    held = 60 * minutes
    url = server.url()
    migrate(url)
    with connect(url) as connection:
        use_hash_model(connection)
        connection.execute("create extension pg_stat_statements")
        connection.execute("create table article (id integer primary key, content text)")
        connection.execute(
            "insert into article select n, '글 ' || n from generate_series(1, %s) n", [rows]
        )
        connection.execute("select embed.enable('article', array['content'])")
    pool = Workers(url, folder)
    writer = _Writer(url, rate, rows)
    try:
        for _ in range(workers):
            pool.start()
        # No limit on waiting: autovacuum may be at a table that is to be vacuumed.
        with connect(url, lock_timeout=0) as connection:
            wait_settled(connection, "article", 300)
            watch = _Watch(connection, writer)
            writer.start()
            watch.phase("before", max(held / 10, 3 * look), look)
            with psycopg.connect(url) as foreign:
                foreign.execute("set transaction isolation level repeatable read")
                foreign.execute("select count(*) from article").fetchone()
                watch.phase("held", held, look)
            watch.vacuum()  # autovacuum comes within its own time
            watch.phase("after", max(held / 10, 3 * look), look)
            writer.stop()
            wait_settled(connection, "article", 60)
            for worker in pool.all:
                worker.terminate()
            dead, size = watch.vacuumed()
            errors = writer.errors + [
                "a traceback in a worker's log"
                for worker in pool.all
                if "Traceback" in worker.output()
            ]
            return Outcome(watch.looks, judge(connection, "article"), dead, size, workers, errors)
    finally:
        writer.stop()
        pool.end()


class _Writer(threading.Thread):
    """Changes the text of one row after the other, so many a second."""

    def __init__(self, url: str, rate: float, rows: int) -> None:
        super().__init__(name="writer")
        self._url = url
        self._rate = rate
        self._rows = rows
        self._stopped = threading.Event()
        self.changes = 0
        self.errors: list[str] = []

    def run(self) -> None:
        chosen = random.Random(3)
        due = time.monotonic()
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                while not self._stopped.wait(max(0.0, due - time.monotonic())):
                    connection.execute(
                        "update article set content = %s where id = %s",
                        [f"글 {self.changes}", chosen.randint(1, self._rows)],
                    )
                    self.changes += 1
                    due = max(due + 1 / self._rate, time.monotonic() - 1)
        except psycopg.Error as error:
            self.errors.append(f"the writer: {error}")

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join()


class _Watch:
    """Looks from time to time at what the server has counted."""

    def __init__(self, connection: psycopg.Connection[Any], writer: _Writer) -> None:
        self._connection = connection
        self._writer = writer
        self._inbox, self._queue = (
            of(connection, "article").as_string() for of in (inbox_of, queue_of)
        )
        self._started = time.monotonic()
        self.looks: list[Look] = []

    def phase(self, name: str, seconds: float, look: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._connection.execute("select pg_stat_statements_reset()")
            until = min(time.monotonic() + look, end)
            waited = 0.0
            while time.monotonic() < until:
                waited = max(waited, self._oldest())
                time.sleep(0.1)  # the rhythm of the looks, not a wait for anything
            self._look(name, waited)

    def vacuum(self) -> None:
        for table in (self._inbox, self._queue, "article_embedding"):
            self._connection.execute(sql.SQL("vacuum {}").format(sql.SQL(table)))  # type: ignore[arg-type]  # our own name

    def vacuumed(self) -> tuple[int, int]:
        """Dead rows and bytes of inbox and queue after a vacuum."""
        self.vacuum()
        wait_until(lambda: not any(self._dead(TABLES[:2]).values()), 20, "a clean queue")
        return sum(self._dead(TABLES[:2]).values()), self._size()

    def _look(self, phase: str, waited: float) -> None:
        costs = {}
        for kind, words in KINDS.items():
            row = self._connection.execute(
                "select sum(calls), sum(shared_blks_hit + shared_blks_read) / sum(calls),"
                " sum(total_exec_time) / sum(calls)"
                " from pg_stat_statements where query like %s and toplevel",
                [words],
            ).fetchone()
            costs[kind] = Cost(*map(float, row)) if row and row[0] else Cost()
        look = Look(
            phase,
            time.monotonic() - self._started,
            self._writer.changes,
            costs,
            self._dead(TABLES),
            self._size(),
            waited,
        )
        print(look, flush=True)
        self.looks.append(look)

    def _oldest(self) -> float:
        row = self._connection.execute(
            sql.SQL(
                "select coalesce(extract(epoch from clock_timestamp() - least("
                "(select min(at) from {}), (select min(since) from {}))), 0)"
            ).format(sql.SQL(self._inbox), sql.SQL(self._queue))  # type: ignore[arg-type]  # our own names
        ).fetchone()
        return float(row[0]) if row else 0.0

    def _dead(self, tables: Sequence[str]) -> dict[str, int]:
        names = {"inbox": self._inbox, "queue": self._queue, "vectors": "article_embedding"}
        return {
            table: int(
                self._connection.execute(
                    "select n_dead_tup from pg_stat_all_tables where relid = %s::regclass",
                    [names[table]],
                ).fetchone()[0]  # type: ignore[index]  # it is there
            )
            for table in tables
        }

    def _size(self) -> int:
        row = self._connection.execute(
            "select pg_total_relation_size(%s) + pg_total_relation_size(%s)",
            [self._inbox, self._queue],
        ).fetchone()
        return int(row[0]) if row else 0
