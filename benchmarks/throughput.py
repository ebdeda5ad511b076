"""Rows a second of a worker whose model costs nearly nothing: what the rest of the worker can do.

    python benchmarks/throughput.py --json throughput.json
    python benchmarks/throughput.py --against ../other/worker    # by turns with another version
    python benchmarks/throughput.py --device-rate 5000           # a device of 5,000 texts a second
    python benchmarks/throughput.py --workers 2                  # by turns with one worker

Rows of about 290 characters are in a table when it is enabled. The time ends when every vector is
committed. The encoder is that of the tests, and a batch has the token budget of a GPU. With
``--device-rate`` it sleeps for the time that such a device would compute, and the share of time
that the device computes is reported.
"""

import os
import random
import statistics
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from harness import (
    Connection,
    Measure,
    Process,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    processor_seconds,
    report,
    turns,
    wait_until,
    warm_up,
    worker,
)
from texts import texts

from embedworker.model.batches import GPU_TOKEN_BUDGET
from embedworker.model.catalog import TESTING_MODEL

CHARACTERS = 290


def fill(connection: Connection, rows: int, equal: int) -> None:
    """Make the table; each text stands in it ``equal`` times."""
    connection.execute("create table article (id integer primary key, content text)")
    words = " ".join(texts(200, seed=1)).split()
    dice = random.Random(1)
    with connection.cursor().copy("copy article from stdin") as copy:
        for number in range(rows):
            if number % equal == 0:
                chosen = " ".join(dice.choices(words, k=80))[:CHARACTERS]
            copy.write_row((number, chosen))
    connection.execute("vacuum analyze article")


@contextmanager
def version(folder: str) -> Iterator[None]:
    """Have workers that are started in the block come from ``folder``."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass(frozen=True)
class Run:
    """Rows a second, and processor seconds for 1,000 rows: of the workers, and of the server."""

    rate: float
    workers: float
    server: float


def run(url: str, given: Namespace, workers: int) -> Run:
    """Embed a table once."""
    settings = {"batch_tokens": str(GPU_TOKEN_BUDGET)}
    if given.device_rate:
        settings["testing_rate"] = str(given.device_rate)
    with psycopg.connect(url, autocommit=True) as connection, ExitStack() as stack:
        started = [
            stack.enter_context(worker(url, "--only-passages", **settings)) for _ in range(workers)
        ]
        warm_up(connection, started[0])
        wait_until(
            lambda: fetch_value(connection, "select count(*) from embed.worker") == workers,
            pause=0.1,
        )
        fill(connection, given.rows, given.equal)
        before = _processor_seconds(connection, started)
        begun = time.perf_counter()
        connection.execute("select embed.enable('article', array['content'])")
        wait_until(
            lambda: fetch_value(connection, "select count(*) from article_embedding") == given.rows,
            check=started[0].check,
            pause=0.1,
        )
        took = time.perf_counter() - begun
        after = _processor_seconds(connection, started)
        of_workers, of_server = (
            1000 * (late - early) / given.rows for early, late in zip(before, after, strict=True)
        )
        return Run(given.rows / took, of_workers, of_server)


def _processor_seconds(connection: Connection, workers: list[Process]) -> tuple[float, float]:
    """Processor time so far: of the workers, and of the sessions that the server has for them."""
    sessions = connection.execute(
        "select pid from pg_stat_activity"
        " where application_name like 'embedworker%' and datname = current_database()"
    ).fetchall()
    return (
        sum(sum(each.cpu_seconds().values()) for each in workers),
        sum(processor_seconds(pid) for (pid,) in sessions),
    )


def main() -> None:
    """Embed a table by turns with each version or number of workers and print the medians."""
    parser = options(__doc__, rows=50_000, rounds=2, equal=1, workers=1, device_rate=0.0)
    parser.add_argument("--against", type=Path, help="the folder `worker` of another version")
    given = parser.parse_args()
    started = machine()
    here = str(Path(__file__).resolve().parent.parent / "worker")
    compared = {"this version": (here, given.workers)}
    if given.against is not None:
        compared["the other version"] = (str(given.against.resolve()), given.workers)
    elif given.workers > 1:
        compared["one worker"] = (here, 1)
    found: dict[str, list[Run]] = defaultdict(list)
    with cluster() as server:
        for turn, name in turns([*compared], given.rounds):
            folder, workers = compared[name]
            url = database(server, f"throughput_{turn}_{name.split()[1]}", TESTING_MODEL)
            with version(folder):
                found[name].append(run(url, given, workers))
            print(name, found[name][-1], flush=True)
    measures = []
    for name, runs in found.items():
        rate = statistics.median(each.rate for each in runs)
        measures += [
            Measure(f"{name}, rows a second", rate, "rows/s"),
            Measure(
                f"{name}, processor seconds for 1,000 rows",
                statistics.median(each.workers for each in runs),
                "s",
            ),
            Measure(
                f"{name}, those of the server",
                statistics.median(each.server for each in runs),
                "s",
            ),
        ]
        if given.device_rate:
            share = rate / given.device_rate / compared[name][1]
            measures.append(Measure(f"{name}, share of time that a device computes", share))
    if len(compared) > 1:
        ratio = measures[0].value / measures[len(measures) // 2].value
        measures.append(Measure(f"this version : {[*compared][1]}", ratio, "x"))
    report("throughput", given, started, measures)


if __name__ == "__main__":
    main()
