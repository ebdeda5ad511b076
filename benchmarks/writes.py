"""What an enabled table costs the application that writes to it.

    python benchmarks/writes.py --json writes.json

pgbench inserts single rows, each in a transaction of its own, by turns into

plain      a table that is not enabled
notify     a table whose trigger keeps a queue in the usual way: one row more, and a plain NOTIFY
enabled    a table that is enabled; a worker runs, at its usual priority, with an encoder that costs
           nothing, and is through with the rows before the next turn begins
switching  the same while its model is being changed: each row goes to both sides

with 1, 16 and 64 connections; then COPY loads many rows at once into plain and enabled. A listener
hears the NOTIFY in all of them.
"""

import os
import re
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import (
    Connection,
    Measure,
    Process,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    report,
    turns,
    wait_until,
    warm_up,
    worker,
)
from psycopg.errors import LockNotAvailable

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.model.catalog import TESTING_MODEL

TABLES = ("plain", "notify", "enabled", "switching")
INSERT = "insert into {table} (content) values ('a text of some length, number ' || :number)"
SET_UP = """
create table plain (id bigint generated always as identity primary key, content text);
create table notify (id bigint generated always as identity primary key, content text);
create table enabled (id bigint generated always as identity primary key, content text);
create table switching (id bigint generated always as identity primary key, content text);
create table notify_queue (seq bigint generated always as identity primary key, id bigint);
create function notify_trigger() returns trigger language plpgsql as $$
begin
    insert into notify_queue (id) select id from new_rows;
    perform pg_notify('notify_queue', '');
    return null;
end
$$;
create trigger notify_trigger after insert on notify referencing new table as new_rows
    for each statement execute function notify_trigger();
select embed.enable('enabled', array['content']);
select embed.enable('switching', array['content']);
select embed.add_model('testing:small', 64, 8192, 'query: ', 'passage: ');
select embed.begin_switch('switching', 'testing:small');
"""


def inserts(server: Cluster, url: str, table: str, writers: int, seconds: int) -> float:
    """Single-row INSERTs a second, by pgbench."""
    with TemporaryDirectory() as folder:
        script = Path(folder, "insert.sql")
        script.write_text(
            "\\set number random(1, 1000000000)\n" + INSERT.format(table=table) + ";\n"
        )
        done = subprocess.run(
            [
                server.installation.program("pgbench"),
                *("--no-vacuum", "--protocol=prepared", f"--file={script}"),
                *(f"--client={writers}", f"--jobs={min(writers, 2)}", f"--time={seconds}"),
                url,
            ],
            env={**os.environ, "LD_LIBRARY_PATH": str(server.installation.folder / "lib")},
            capture_output=True,
            text=True,
        )
    rate = re.search(r"tps = ([\d.]+) \(without", done.stdout)
    if done.returncode != 0 or rate is None:
        raise SystemExit(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(rate[1])


def copy(connection: Connection, table: str, rows: int) -> float:
    """Seconds that a COPY takes, with its commit."""
    data = "".join(f"a text of some length, number {number}\n" for number in range(rows))
    begun = time.perf_counter()
    with connection.cursor().copy(f"copy {table} (content) from stdin") as copying:
        copying.write(data)
    return time.perf_counter() - begun


def truncated(connection: Connection) -> bool:
    """Whether the tables could be emptied; a busy worker may use one for longer than we wait."""
    try:
        connection.execute("truncate plain, notify, notify_queue, enabled, switching")
    except LockNotAvailable:
        return False
    return True


def settle(connection: Connection, running: Process) -> None:
    """Empty the tables, wait until the worker has nothing to do, and write everything out."""
    wait_until(lambda: truncated(connection), check=running.check, pause=0.1)
    sources = connection.execute(
        "select id, vectors::text from embed.source"
        " where relation in ('enabled'::regclass, 'switching'::regclass)"
    ).fetchall()
    left = " or ".join(
        f"exists (select from {table})"
        for number, vectors in sources
        for table in (f"embed.inbox_{number}", f"embed.queue_{number}", vectors)
    )
    wait_until(
        lambda: (
            not fetch_value(
                connection, f"select {left} or exists (select from embed.sweep_request)"
            )
        ),
        check=running.check,
        pause=0.1,
    )
    connection.execute("checkpoint")


def main() -> None:
    """Write by turns and print the ratios."""
    given = options(__doc__, seconds=5, rounds=3, writers="1,16,64", rows=100_000).parse_args()
    started = machine()
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    copies: dict[str, list[float]] = defaultdict(list)
    counts = [int(count) for count in given.writers.split(",")]
    with cluster(max_connections="100", autovacuum_naptime="1min") as server:
        url = database(server, "writes", TESTING_MODEL)
        with (
            connect(url) as connection,
            connect(url) as listening,
            # No vector is searched here, and an index would keep the worker busy for long.
            worker(url, index_after_rows="1000000000") as running,
        ):
            warm_up(connection, running)
            connection.execute(SET_UP)
            listening.execute("listen notify_queue")
            settle(connection, running)
            cases = [(table, writers) for writers in counts for table in TABLES]
            for _, (table, writers) in turns(cases, given.rounds):
                rates[table, writers].append(inserts(server, url, table, writers, given.seconds))
                settle(connection, running)
                print(f"{writers} writers, {table}: {rates[table, writers][-1]:.0f}/s", flush=True)
            for _, table in turns(["plain", "enabled"], given.rounds):
                copies[table].append(copy(connection, table, given.rows))
                settle(connection, running)
    measures = []
    for writers in counts:
        rate = {table: statistics.median(rates[table, writers]) for table in TABLES}
        measures += [
            Measure(f"{writers} writers, {table}", rate[table], "rows/s") for table in TABLES
        ]
        measures += [
            Measure(
                f"{writers} writers, enabled : plain",
                rate["enabled"] / rate["plain"],
                "x",
                ">= 0.75",
            ),
            Measure(
                f"{writers} writers, enabled : notify",
                rate["enabled"] / rate["notify"],
                "x",
                ">= 3" if writers >= 16 else "",
            ),
            Measure(
                f"{writers} writers, switching : enabled", rate["switching"] / rate["enabled"], "x"
            ),
        ]
    rate = {table: given.rows / statistics.median(copies[table]) for table in copies}
    measures += [Measure(f"COPY, {table}", rate[table], "rows/s") for table in rate]
    measures += [Measure("COPY, enabled : plain", rate["enabled"] / rate["plain"], "x", ">= 0.5")]
    report(
        "writes",
        given,
        started,
        measures,
        rates={f"{table} {writers}": found for (table, writers), found in rates.items()},
        copies=copies,
    )


if __name__ == "__main__":
    main()
