"""The program of destruction, seeded, and the count of what it did."""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fix_worker import Workers, use_hash_model
from oracle import Verdict, judge, wait_settled
from stress import Writers, deadlocks, make_table

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate

SETTINGS = {
    "lease": "3",
    "testing_delay": "0.02",
    "batch_tokens": "300",
    "backoff_max": "1",
    # Rows that were at hand at a dozen kills are no retries here.
    "max_attempts": "100",
}
PAUSE = (0.05, 0.6)  # seconds between blows
EARLY = 0.1  # share of the blows that hit any worker, those too that are not up yet
FAILPOINTS = ["after-claim", "after-read", "after-embed", "before-complete", "after-commit"]
OURS = "application_name like 'embedworker%'"


@dataclass(frozen=True)
class Outcome:
    """What was done, and what the table was like in the end."""

    seed: int
    seconds: float
    blows: Counter[str]
    changes: Counter[str]
    lost_connections: int
    errors: list[str]
    deadlocks: int
    tracebacks: int
    settled_in: float
    verdict: Verdict

    @property
    def good(self) -> bool:
        return self.verdict.good and not (self.errors or self.deadlocks or self.tracebacks)

    @property
    def sigkills(self) -> int:
        """Processes that were killed, by a blow or at a failpoint."""
        return self.blows["kill"] + self.blows["failpoint"] + self.blows["ended -9"]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"seed {self.seed}, {self.seconds:g} s: {'good' if self.good else 'BAD'}",
                f"SIGKILLs: {self.sigkills}, of workers that were up: {self.blows['up']}; "
                f"restarts of the server: {self.blows['server restarts']}",
                f"blows: {dict(self.blows)}",
                f"changes: {self.changes.total()} {dict(self.changes)}",
                f"connections of writers lost with the server: {self.lost_connections}",
                f"errors of writers: {self.errors}",
                f"deadlocks: {self.deadlocks}, tracebacks: {self.tracebacks}",
                f"settled {self.settled_in:.1f} s after the last change: {self.verdict}",
            ]
        )


def run(
    server: Cluster,
    folder: Path,
    *,
    seconds: float,
    workers: int,
    writers: int,
    seed: int,
    restarts: float,
) -> Outcome:
    """Do it all on a fresh server, and judge."""
    url = server.url()
    migrate(url)
    with connect(url) as connection:
        use_hash_model(connection)
        make_table(connection)
    pool = Workers(url, folder)
    at_work = Writers(url, writers, seed, forgive_lost=True)
    try:
        pool_of = [_start(pool) for _ in range(workers)]
        at_work.start()
        blows = _strike(server, pool, pool_of, random.Random(seed), seconds, restarts)
        at_work.stop()
        stopped = time.monotonic()
        with connect(url) as connection:
            _settle(connection)
            return Outcome(
                seed,
                seconds,
                blows,
                at_work.done,
                at_work.lost,
                at_work.errors,
                deadlocks(connection),
                sum(worker.output().count("Traceback") for worker in pool.all),
                time.monotonic() - stopped,
                judge(connection, "article"),
            )
    finally:
        at_work.stop()
        pool.end()


def _start(pool: Workers, **more: str) -> Any:
    return pool.start(up=False, **SETTINGS, **more)


def _settle(connection: psycopg.Connection[Any]) -> None:
    wait_settled(connection, "article", 60)


def _strike(
    server: Cluster,
    pool: Workers,
    alive: list[Any],
    chosen: random.Random,
    seconds: float,
    restarts: float,
) -> Counter[str]:
    """Strike until the time is over; leave every worker running at the end."""
    blows: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    restart_at = time.monotonic() + restarts
    asleep: dict[int, float] = {}
    early = False
    while (now := time.monotonic()) < deadline:
        for place, until in list(asleep.items()):
            if now >= until:
                alive[place].signal(signal.SIGCONT)
                del asleep[place]
        for place, worker in enumerate(alive):
            if worker.process.poll() is not None:  # by a failpoint
                blows[f"ended {worker.process.returncode}"] += 1
                alive[place] = _start(pool)
                asleep.pop(place, None)
        if now >= restart_at:
            server.restart(chosen.choice(["fast", "immediate"]))
            blows["server restarts"] += 1
            restart_at = time.monotonic() + restarts
            continue
        up = [place for place, worker in enumerate(alive) if "is up" in worker.output()]
        if not (up or early):
            time.sleep(0.02)  # the rhythm of the blows, here and below, not a wait for anything
            continue
        place = chosen.randrange(len(alive)) if early else chosen.choice(up)
        early = chosen.random() < EARLY  # drawn once a blow: drawn at each look, most hit early
        what = chosen.choices(["kill", "failpoint", "stop", "terminate", "cut"], [4, 2, 2, 1, 2])[0]
        if what in ("kill", "failpoint"):
            blows["up"] += place in up
        if what == "kill":
            alive[place].kill()
            asleep.pop(place, None)
            alive[place] = _start(pool)
        elif what == "failpoint":
            alive[place].kill()
            asleep.pop(place, None)
            alive[place] = _start(pool, failpoint=f"{chosen.choice(FAILPOINTS)}:kill")
        elif what == "stop" and place not in asleep:
            alive[place].signal(signal.SIGSTOP)
            asleep[place] = now + chosen.uniform(0.2, 5)  # the lease is 3 s
        elif what == "terminate" and place not in asleep:
            alive[place].process.terminate()
            alive[place].wait()
            blows[f"exit code {alive[place].process.returncode}"] += 1
            alive[place] = _start(pool)
        elif what == "cut":
            with psycopg.connect(pool.url, autocommit=True) as connection:
                connection.execute(
                    f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}"
                    " and random() < 0.4".encode()
                )
        blows[what] += 1
        time.sleep(chosen.uniform(*PAUSE))
    for place in asleep:
        alive[place].signal(signal.SIGCONT)
    for place, worker in enumerate(alive):
        if worker.process.poll() is not None:
            alive[place] = _start(pool)
    return blows
