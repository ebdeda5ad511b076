"""A backfill by a fleet, seeded: workers, a whole machine and the command are killed meanwhile."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import command
from fix_database import Connection
from fix_worker import ENVIRONMENT, use_hash_model
from oracle import Verdict, judge, queue_of, wait_settled
from psycopg import sql

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.settings.worker import DEFAULT_WINDOW

LONGEST = 900.0  # seconds for a whole backfill
START = 120.0  # seconds until Ray has started a worker on a machine that does much else
PAUSE = (0.5, 3.0)  # seconds between kills
CPUS = 2.0  # of each machine, as Ray is told: room for two workers
MOST_HELD = 5 * DEFAULT_WINDOW  # rows of one lease: a window, and what waits to be written
KINDS = ("worker", "machine", "command")
# Who claimed which row, which rows a worker had when it died or handed back, and how often each
# vector was written. A peer frees rows of a dead worker, or claims them when their lease is over.
WATCH = """
create table public.claimed (key text not null, worker integer not null);
create function public.note_claims() returns trigger language plpgsql as $$
begin
    insert into public.claimed
    select n.k1::text, n.claimed_by from new_rows n join old_rows o using (k1)
    where n.claimed_by is not null and n.claimed_by is distinct from o.claimed_by;
    insert into public.freed
    select n.k1::text, o.claimed_by, n.attempts < o.attempts
    from new_rows n join old_rows o using (k1)
    where o.claimed_by is not null and n.claimed_by is distinct from o.claimed_by;
    return null;
end
$$;
create table public.freed (key text not null, worker integer not null, by_itself boolean not null);
create table public.written (key text not null);
create function public.note_writes() returns trigger language plpgsql as $$
begin
    insert into public.written select n.id::text from new_rows n where n.chunk = 0;
    return null;
end
$$;
"""


@dataclass(frozen=True)
class Outcome:
    """What was done, and what the table was like in the end."""

    seed: int
    seconds: float
    kills: Counter[str]
    lives: int
    claimed_again: int
    leases: list[int]
    """rows of each dead worker that went to others"""
    handed_back: int
    """rows that living workers gave back untried"""
    written_twice: int
    most_connections: int
    ended: dict[str, Any]
    again: dict[str, Any]
    tracebacks: list[str]
    verdict: Verdict

    @property
    def good(self) -> bool:
        return (
            self.verdict.good
            and self.ended["drained"]
            and self.again["drained"]
            and self.again["rows"] == 0
            and self.written_twice == 0
            and self.claimed_again <= sum(self.leases) + self.handed_back
            and max(self.leases, default=0) <= MOST_HELD
            and self.most_connections <= 3
            and not self.tracebacks
        )

    def __str__(self) -> str:
        return "\n".join(
            [
                f"seed {self.seed}, {self.seconds:.0f} s: {'good' if self.good else 'BAD'}",
                f"kills: {dict(self.kills)}; lives of workers: {self.lives}",
                f"rows of the leases of dead workers: {self.leases}",
                f"rows claimed again: {self.claimed_again}, handed back: {self.handed_back}, "
                f"written twice: {self.written_twice}",
                f"most connections of a worker: {self.most_connections}",
                f"the last command: {self.ended}",
                f"run once more: {self.again}",
                f"tracebacks: {self.tracebacks}",
                f"in the end: {self.verdict}",
            ]
        )


def run(
    server: Cluster,
    folder: Path,
    *,
    rows: int,
    workers: int,
    machines: int,
    kills: int,
    seed: int,
) -> Outcome:
    """Do it all on a fresh server, and judge."""
    url = server.url()
    migrate(url)
    with _ray(machines) as cluster, connect(url) as connection:
        use_hash_model(connection)
        make_table(connection, rows)
        started = time.monotonic()
        fleet = Command(url, cluster.address, workers, folder)
        blows = Counter[str]()
        chosen = random.Random(seed)
        most = 0
        try:
            while fleet.process.poll() is None and time.monotonic() - started < LONGEST:
                most = max(most, connections_of_a_worker(connection))
                if blows.total() < kills and done(connection) > rows * blows.total() // (kills + 1):
                    what = _next(blows, chosen)
                    if what == "worker" and not _kill_worker(connection, chosen):
                        continue
                    if what == "machine":
                        _kill_machine(cluster, chosen)
                    if what == "command":
                        fleet.kill()
                        fleet = Command(url, cluster.address, workers, folder)
                    blows[what] += 1
                time.sleep(0.05)  # the rhythm of the looks, not a wait for anything
            ended = fleet.ended()
            seconds = time.monotonic() - started
            wait_settled(connection, "article", 60)
            again = Command(url, cluster.address, workers, folder).ended()
            return Outcome(
                seed,
                seconds,
                blows,
                _count(connection, "select count(distinct worker) from public.claimed"),
                _count(connection, "select count(*) - count(distinct key) from public.claimed"),
                _leases(connection),
                _count(connection, "select count(*) from public.freed where by_itself"),
                _count(connection, "select count(*) - count(distinct key) from public.written"),
                most,
                ended,
                again,
                _tracebacks(folder),
                judge(connection, "article"),
            )
        finally:
            fleet.kill()


class Command:
    """``embedworker fleet`` as a process."""

    def __init__(
        self, url: str, address: str, workers: int, folder: Path, *arguments: str, **more: str
    ) -> None:
        self.log = folder / f"fleet{len(list(folder.glob('fleet*.log')))}.log"
        given = ["fleet", "article", "--ray", address, "--workers", str(workers), *arguments]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command(*given, "--until-drained", "--json"),
                env={**os.environ, **ENVIRONMENT, "EMBEDWORKER_DATABASE_URL": url, **more},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
            )

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ended(self, timeout: float = LONGEST) -> dict[str, Any]:
        """Wait for its end in order; return what it printed."""
        said, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, self.log.read_text()
        found: dict[str, Any] = json.loads(said)
        return found


def make_table(connection: Connection, rows: int) -> None:
    """Enable a table of so many rows, and note who claims and writes them."""
    connection.execute("create table article (id integer primary key, content text)")
    with connection.cursor().copy("copy article from stdin") as copy:
        for number in range(rows):
            copy.write_row((number, f"기사 {number}: " + "a few words of it " * (1 + number % 7)))
    connection.execute("vacuum analyze article")
    connection.execute("select embed.enable('article', array['content'])")
    connection.execute(WATCH)
    connection.execute(
        sql.SQL(
            "create trigger note_claims after update on {} referencing old table as old_rows"
            " new table as new_rows for each statement execute function public.note_claims()"
        ).format(queue_of(connection, "article"))
    )
    for what in ("insert", "update"):
        connection.execute(
            sql.SQL(
                "create trigger {} after {} on article_embedding referencing new table as new_rows"
                " for each statement execute function public.note_writes()"
            ).format(sql.Identifier(f"note_{what}"), sql.SQL(what))
        )


def done(connection: Connection) -> int:
    """How many rows have a vector."""
    return _count(connection, "select count(*) from public.written")


def connections_of_a_worker(connection: Connection) -> int:
    """The most that one worker has at this moment, by its number in their names."""
    return _count(
        connection,
        "select coalesce(max(n), 0) from (select count(*) as n from pg_stat_activity"
        " where application_name ~ '^embedworker [a-z]+ [0-9]+$'"
        " group by substring(application_name from '[0-9]+$')) x",
    )


@contextmanager
def _ray(machines: int) -> Iterator[Any]:
    """A head without room for workers, and so many raylets, each a machine to Ray."""
    from ray.cluster_utils import Cluster as Raylets

    # Raylets and their workers inherit it. The tests that come after in this process must not.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        cluster = Raylets(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        try:
            for _ in range(machines):
                cluster.add_node(num_cpus=CPUS)
            yield cluster
        finally:
            cluster.shutdown()


def _next(blows: Counter[str], chosen: random.Random) -> str:
    missing = [kind for kind in KINDS if not blows[kind]]
    if missing and blows.total() >= 2:
        return chosen.choice(missing)
    return chosen.choices(KINDS, [6, 1, 1])[0]


def _kill_worker(connection: Connection, chosen: random.Random) -> bool:
    pids = [pid for (pid,) in connection.execute("select pid from embed.worker").fetchall()]
    if not pids:
        return False
    try:
        os.kill(chosen.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False  # it is being started again
    return True


def _kill_machine(cluster: Any, chosen: random.Random) -> None:
    """Kill a raylet, as when the power fails; another machine comes."""
    machine = chosen.choice([*cluster.worker_nodes])
    cluster.remove_node(machine, allow_graceful=False)
    cluster.add_node(num_cpus=CPUS)


def _leases(connection: Connection) -> list[int]:
    found = connection.execute(
        "select count(*) from public.freed where not by_itself group by worker order by 1"
    )
    return [int(count) for (count,) in found.fetchall()]


def _tracebacks(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("fleet*.log") if "Traceback" in file.read_text()]


def _count(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
