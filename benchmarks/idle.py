"""What a worker costs while there is nothing to do.

    python benchmarks/idle.py --json idle.json

A worker with both lanes and a model serves a table that nobody changes. Its processor time is that
of its processes, its statements are counted by pg_stat_statements in the server; the server's own
processor time for them is theirs too. A poll is one look of the passage lane at all queues.
"""

import time

from harness import (
    Connection,
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    report,
    warm_up,
    worker,
)

from embedworker.database.connect import connect
from embedworker.model.catalog import BUNDLED_MODEL

SETTLE = 20.0  # seconds after the last work: statistics are written, the pauses have grown
# Of the lane of questions, and of what shows that a worker and its peers are alive.
NOT_OF_THE_LANE = ("embed.question", "_claim_questions", "embed.worker_session", "pg_stat")
ALIVE = "select $1"  # the listener's, which has no other
STATEMENTS = (
    "select query, calls::integer, total_exec_time from pg_stat_statements"
    " where query not like '%%pg_stat_statements%%' order by calls desc"
)


def statements(connection: Connection) -> list[tuple[str, int, float]]:
    """Statement, calls and milliseconds of everything since the last reset."""
    return [(" ".join(q.split()), n, ms) for q, n, ms in connection.execute(STATEMENTS)]


def main() -> None:
    """Watch an idle worker and print what it used."""
    given = options(
        __doc__, seconds=60.0, settle=SETTLE, rows=2000, model=BUNDLED_MODEL
    ).parse_args()
    started = machine()
    with cluster(shared_preload_libraries="pg_stat_statements") as server:
        url = database(server, "idle", given.model)
        with connect(url) as connection, worker(url) as running:
            connection.execute("create extension pg_stat_statements")
            warm_up(connection, running)
            connection.execute(
                "insert into warm_up select n, 'text ' || n from generate_series(21, %s) n",
                [given.rows],
            )
            while fetch_value(connection, "select sum(pending) from embed.status"):
                running.check()
                time.sleep(0.5)
            time.sleep(given.settle)
            fetch_value(connection, "select pg_stat_statements_reset()::text")
            before, begun = running.cpu_seconds(), time.monotonic()
            time.sleep(given.seconds)
            after, took = running.cpu_seconds(), time.monotonic() - begun
            seen = statements(connection)
    polls = sum(n for query, n, _ in seen if "embed._poll" in query)
    calls = sum(n for _, n, _ in seen)
    lane = sum(
        n
        for query, n, _ in seen
        if query != ALIVE and not any(word in query for word in NOT_OF_THE_LANE)
    )
    used = {name: 100 * (after[name] - before[name]) / took for name in sorted(after)}
    measures = [
        *(Measure(f"processor, {name}", share, "%") for name, share in used.items()),
        Measure("processor, together", sum(used.values()), "%", "<= 1"),
        Measure("processor of the server for it", sum(ms for *_, ms in seen) / took / 10, "%"),
        Measure("polls of the passage lane", polls / took, "/s"),
        Measure("its statements for each poll", lane / max(polls, 1), "", "<= 1.1"),
        Measure("statements of all connections", calls / took, "/s"),
    ]
    report("idle", given, started, measures, statements=seen)
    for query, n, ms in seen:
        print(f"{n / took:8.2f}/s {ms / n:7.3f} ms  {query[:90]}")


if __name__ == "__main__":
    main()
