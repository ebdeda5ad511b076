"""What one claim costs with 1,000,000 rows in the queue, beside one with 1,000.

    python benchmarks/claim.py --json claim.json

The worker's own statement leases a window of rows and is rolled back, so that every claim finds the
same queue; half of what waits is of a backfill, half fresh.
"""

import statistics
import time

import psycopg
from harness import Connection, Measure, cluster, database, machine, options, report

from embedworker.database.connect import connect
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.claim import BACKFILL, FRESH, claim
from embedworker.queue.source import Source, load_sources

WINDOW = 200  # rows of each kind: both queues hold more


def median_claim(connection: Connection, source: Source, repeats: int) -> float:
    """Milliseconds of a claim, after one that warms the caches up."""
    times = []
    for _ in range(repeats + 1):
        with connection.transaction() as undone:
            begun = time.perf_counter()
            jobs, _ = claim(
                connection,
                source,
                worker=1,
                quotas={FRESH: WINDOW, BACKFILL: WINDOW},
                lease=60.0,
                max_attempts=5,
            )
            times.append(1000 * (time.perf_counter() - begun))
            raise_if(len(jobs) != 2 * WINDOW, f"{len(jobs)} rows were claimed")
            raise psycopg.Rollback(undone)
    return statistics.median(times[1:])


def raise_if(wrong: bool, what: str) -> None:
    """End the benchmark where it does not measure what it says."""
    if wrong:
        raise SystemExit(what)


def fill(connection: Connection, source: Source, rows: int) -> None:
    """Let so many rows wait."""
    connection.execute(f"truncate embed.queue_{source.id}")
    connection.execute(
        f"insert into embed.queue_{source.id} (k1, seq, due, priority)"
        " select n, n, now() - interval '1 second' * random(), (n %% 2) * %s"
        " from generate_series(1, %s) n",
        [BACKFILL, rows],
    )
    connection.execute(f"vacuum analyze embed.queue_{source.id}")


def main() -> None:
    """Claim from a small and a large queue and print the ratio."""
    given = options(__doc__, small=1000, large=1_000_000, repeats=31).parse_args()
    started = machine()
    with cluster() as server:
        url = database(server, "claim", TESTING_MODEL)
        with connect(url) as connection:
            connection.prepare_threshold = None  # as in the worker
            connection.execute("create table article (id integer primary key, content text)")
            connection.execute("select embed.enable('article', array['content'])")
            (source,) = (s for s in load_sources(connection) if s.name == "article")
            times = {}
            for rows in (given.small, given.large):
                fill(connection, source, rows)
                times[rows] = median_claim(connection, source, given.repeats)
    small, large = times[given.small], times[given.large]
    measures = [
        Measure(f"claim of {2 * WINDOW} rows, {given.small:,} queued, p50", small, "ms"),
        Measure(f"claim of {2 * WINDOW} rows, {given.large:,} queued, p50", large, "ms"),
        Measure("ratio", large / small, "x", "<= 1.5"),
    ]
    report("claim", given, started, measures)


if __name__ == "__main__":
    main()
