"""TRUNCATE of a table with many queued rows: how long they stay, and what others wait meanwhile.

    python benchmarks/truncate.py --json truncate.json

A worker queues the rows of a large table. When half of them are queued, the table is truncated. One
row after the other is then written to a second table, until nothing of the first one is left, and
the time until each vector is there is taken. The testing encoder makes the vectors.
"""

import time

from harness import (
    Connection,
    Measure,
    Process,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    p50_p95,
    report,
    wait_until,
    worker,
)

from embedworker.database.connect import connect
from embedworker.model.catalog import TESTING_MODEL

MADE = "create table {} (id integer primary key, body text); select embed.enable('{}', '{{body}}')"
LEFT = """
    select exists (select from embed.{inbox}) or exists (select from embed.{queue})
        or exists (select from large_embedding)
"""
LONGEST = 1800.0  # seconds


def waits(connection: Connection, running: Process, left: str) -> list[float]:
    """Write rows to the second table while rows of the first are left; seconds of each."""
    taken: list[float] = []
    while fetch_value(connection, left):
        begun = time.perf_counter()
        connection.execute("insert into small values (%s, 'a text')", [len(taken) + 1])
        seen = f"select exists (select from small_embedding where id = {len(taken) + 1})"
        wait_until(
            lambda seen=seen: fetch_value(connection, seen),
            check=running.check,
            pause=0.01,
            timeout=LONGEST,
        )
        taken.append(time.perf_counter() - begun)
    return taken


def main() -> None:
    """Change the rows, truncate, start a worker and print the table."""
    given = options(__doc__, rows=1_000_000).parse_args()
    started = machine()
    with cluster(shared_buffers="1GB") as server:
        url = database(server, "truncate", TESTING_MODEL)
        with connect(url) as connection:
            for table in ("large", "small"):
                connection.execute(MADE.format(table, table).encode())
            fill = "insert into large select n, 'text ' || n from generate_series(1, %s) n"
            connection.execute(fill, [given.rows])
            number = fetch_value(connection, "select id from embed.source where name = 'large'")
            left = LEFT.format(inbox=f"inbox_{number}", queue=f"queue_{number}")
            with worker(url, "--only-passages", nice="0") as running:
                queued = f"select count(*) from embed.queue_{number}"
                wait_until(
                    lambda: fetch_value(connection, queued) > 0.5 * given.rows,
                    check=running.check,
                    pause=0.05,
                    timeout=LONGEST,
                )
                count = fetch_value(connection, queued)
                begun = time.perf_counter()
                connection.execute("truncate large")
                cut = time.perf_counter() - begun
                taken = waits(connection, running, left)
                emptied = time.perf_counter() - begun
    p50, p95 = p50_p95(taken)
    measures = [
        Measure("rows that were queued", count),
        Measure("TRUNCATE itself", cut, "s"),
        Measure("until nothing of the table was left", emptied, "s"),
        Measure("a row of another table meanwhile, p50", p50, "s"),
        Measure("a row of another table meanwhile, p95", p95, "s"),
    ]
    report("truncate", given, started, measures)


if __name__ == "__main__":
    main()
