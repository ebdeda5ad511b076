"""Rows a second of one worker and of two that Ray places, each with a device of its own.

    python benchmarks/ray_workers.py --rows 4000 --device-rate 40

A device is simulated: the encoder of the tests sleeps for the time that it would compute. The time
begins when all workers are up, and ends when every vector is committed. Needs ray.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from harness import (
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    report,
    turns,
    wait_until,
)
from texts import texts

from embedworker.model.catalog import TESTING_MODEL

WINDOW = 16  # texts that a worker claims at once: what the last one has is soon done


@contextmanager
def fleet(url: str, workers: int, rate: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command on a Ray of its own until all is embedded."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                *[sys.executable, "-P", "-m", "embedworker.cli", "fleet", "article"],
                *["--ray", "local", "--cpus", "0.5", "--workers", str(workers), "--until-drained"],
            ],
            env={
                **os.environ,
                "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
                "EMBEDWORKER_TESTING_RATE": str(rate),
                "EMBEDWORKER_WINDOW": str(WINDOW),
                "EMBEDWORKER_NICE": "0",
                "RAY_worker_niceness": "0",  # the default is 15
                "EMBEDWORKER_DATABASE_URL": url,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def run(url: str, given: Namespace, workers: int) -> float:
    """Embed a table once; return the rows a second."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table article (id integer primary key, content text)")
        with connection.cursor().copy("copy article from stdin") as copy:
            for row in enumerate(texts(given.rows, seed=0)):
                copy.write_row(row)
        connection.execute("vacuum analyze article")
        connection.execute("select embed.enable('article', array['content'])")
        vectors = "select count(distinct id) from article_embedding"
        at_work = "select count(*) from embed.worker where embedded > 0"
        with fleet(url, workers, given.device_rate) as process:

            def check() -> None:
                if process.poll():  # 0 once all rows are done
                    raise SystemExit(f"the fleet ended with {process.returncode}")

            wait_until(lambda: fetch_value(connection, at_work) == workers, check=check, pause=0.05)
            before, begun = fetch_value(connection, vectors), time.perf_counter()
            wait_until(
                lambda: fetch_value(connection, vectors) == given.rows, check=check, pause=0.05
            )
            rate = float(given.rows - before) / (time.perf_counter() - begun)
        connection.execute("select embed.disable('article', drop_vectors => true)")
        connection.execute("drop table article")
        return rate


def main() -> None:
    """Embed a table by turns with one worker and with two; print the medians."""
    parser = options(__doc__, rows=4000, rounds=2, device_rate=40.0)
    given = parser.parse_args()
    started = machine()
    rates: dict[int, list[float]] = defaultdict(list)
    with cluster() as server:
        url = database(server, "ray_workers", TESTING_MODEL)
        for turn, workers in turns([1, 2], given.rounds):
            rates[workers].append(run(url, given, workers))
            print(f"round {turn + 1}: workers {workers}: {rates[workers][-1]:.1f}", flush=True)
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    measures = [
        Measure("one worker", one, "rows/s"),
        Measure("two workers", two, "rows/s"),
        Measure("two workers : one worker", two / one, "x", ">= 1.9"),
        Measure("share of time that a device computes, two workers", two / 2 / given.device_rate),
    ]
    report("ray_workers", given, started, measures)


if __name__ == "__main__":
    main()
