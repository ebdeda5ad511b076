"""Rows a second of a backfill of one table, while many other tables are enabled and have no work.

    python benchmarks/tables.py --json tables.json
    python benchmarks/tables.py --tables 1000

By turns with one other table. Meanwhile one row a second is written to one of the others, and the
time until its vector is there is taken. The encoder is that of the tests, which costs nearly
nothing, so that what is left is the work of the worker.
"""

import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

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
    p50_p95,
    report,
    turns,
    wait_until,
    worker,
)

from embedworker.model.batches import GPU_TOKEN_BUDGET
from embedworker.model.catalog import TESTING_MODEL

TEXT = "'A text about matter number ' || n || ' ' || repeat('and so on ', 25)"


@dataclass(frozen=True)
class Run:
    """Rows a second of the backfill, and seconds from new rows of other tables to their vectors."""

    rate: float
    waits: list[float]


def enable_others(connection: Connection, tables: int) -> None:
    """Enable tables of one row each."""
    for number in range(tables):
        connection.execute(
            f"create table other_{number} (id integer primary key, content text);"
            f"insert into other_{number} values (0, 'text');"
            f"select embed.enable('other_{number}', array['content'])".encode()
        )


def await_rest(connection: Connection, running: Process) -> None:
    """Wait until a worker is there and no table waits for it."""
    rest = "select bool_and(state = 'ready' and not estimated) from embed.status"
    wait_until(lambda: fetch_value(connection, rest), check=running.check, pause=1.0)


def run(connection: Connection, running: Process, name: str, rows: int, tables: int) -> Run:
    """Embed a table once."""
    connection.execute(
        f"create table {name} (id integer primary key, content text);"
        f"insert into {name} select n, {TEXT} from generate_series(1, {rows}) n".encode()
    )
    connection.execute(f"vacuum analyze {name}".encode())
    dice = random.Random(1)
    waits, written = [], None
    connection.execute(f"select embed.enable('{name}', array['content'])".encode())
    begun = time.perf_counter()
    next_row = begun + 1
    while True:
        now = time.perf_counter()
        if written is None and now >= next_row:
            other, key = dice.randrange(tables), len(waits) + 1
            new = (
                f"insert into other_{other} select max(id) + 1, 'text {key}' from other_{other}"
                " returning id"
            )
            written = (other, fetch_value(connection, new), now)
            next_row = now + 1
        elif written is not None:
            other, key, since = written
            seen = f"select exists (select from other_{other}_embedding where id = %s)"
            if fetch_value(connection, seen, [key]):
                waits.append(now - since)
                written = None
        if fetch_value(connection, f"select count(*) from {name}_embedding") == rows:
            break
        running.check()
        time.sleep(0.02)
    took = time.perf_counter() - begun
    connection.execute(f"select embed.disable('{name}', drop_vectors => true)".encode())
    connection.execute(f"drop table {name}".encode())
    return Run(rows / took, waits)


def main() -> None:
    """Embed a table by turns among many and among few, and print the medians."""
    given = options(__doc__, rows=10_000, rounds=2, tables=300).parse_args()
    started = machine()
    budget = str(GPU_TOKEN_BUDGET)
    compared = {"one other table": 1, f"{given.tables} other tables": given.tables}
    found: dict[str, list[Run]] = defaultdict(list)
    with cluster(max_locks_per_transaction="1024") as server:
        urls = {}
        for name, tables in compared.items():
            urls[name] = database(server, f"tables_{tables}", TESTING_MODEL)
            with psycopg.connect(urls[name], autocommit=True) as connection:
                enable_others(connection, tables)
                connection.execute("vacuum analyze")
        for turn, name in turns([*compared], given.rounds):
            tables = compared[name]
            with (
                psycopg.connect(urls[name], autocommit=True) as connection,
                worker(urls[name], "--only-passages", batch_tokens=budget) as running,
            ):
                await_rest(connection, running)
                found[name].append(run(connection, running, f"article_{turn}", given.rows, tables))
            print(name, found[name][-1], flush=True)
    measures = []
    for name, runs in found.items():
        rate = statistics.median(each.rate for each in runs)
        measures.append(Measure(f"beside {name}, rows a second", rate, "rows/s"))
        waits = [wait for each in runs for wait in each.waits]
        for label, value in zip(("p50", "p95"), p50_p95(waits or [0.0]), strict=True):
            measures.append(Measure(f"a row of another beside {name}, {label}", value, "s"))
    ratio = measures[3].value / measures[0].value
    measures.append(Measure("many tables : one", ratio, "x", ">= 0.8"))
    report("tables", given, started, measures)


if __name__ == "__main__":
    main()
