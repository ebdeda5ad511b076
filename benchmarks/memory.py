"""Memory of a worker whose texts have from 10 to 1,000,000 characters.

    python benchmarks/memory.py --json memory.json

Each round changes the texts of the same rows, of every length; the longest are split into hundreds
of passages. The highest resident memory of each process is the kernel's (VmHWM). Flat means that
what is resident does not grow: the slope is a line through the means of the rounds after the first
quarter, so that what is allocated once does not count. Its standard error says what so few rounds
can tell. (What is resident at one moment tells less: it depends on the batch before.)
"""

import time

import numpy as np
from harness import (
    Connection,
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    report,
    wait_until,
    warm_up,
    worker,
)
from texts import texts

from embedworker.database.connect import connect
from embedworker.model.catalog import BUNDLED_MODEL

ROUND = 3600.0  # seconds; on two processors a text of a million characters takes minutes
PENDING = "select sum(pending) from embed.status"


def change(connection: Connection, lengths: dict[int, int], seed: int) -> None:
    """Give every row a new text of its length; short ones are many."""
    stock = " ".join(texts(200, seed))
    key = 0
    for length, count in lengths.items():
        for number in range(count):
            text = f"{seed} {number} " + stock * (length // len(stock) + 1)
            connection.execute(
                "insert into article values (%s, %s)"
                " on conflict (id) do update set content = excluded.content",
                [key, text[:length]],
            )
            key += 1


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line through points, and its standard error; nan for two points."""
    slope, height = np.polyfit(x, y, 1)
    if len(x) < 3:
        return float(slope), float("nan")
    rest = np.sum((y - slope * x - height) ** 2) / (len(x) - 2)
    return float(slope), float(np.sqrt(rest / np.sum((x - x.mean()) ** 2)))


def main() -> None:
    """Change texts for a while and print what the worker's memory did."""
    given = options(
        __doc__, minutes=5.0, longest=1_000_000, pause=0.0, model=BUNDLED_MODEL
    ).parse_args()
    started = machine()
    counts = {10: 200, 100: 100, 1000: 50, 10_000: 5, 100_000: 1, 1_000_000: 1}
    lengths = {n: count for n, count in counts.items() if n <= given.longest}
    samples: list[tuple[float, dict[str, float]]] = []
    with cluster() as server:
        url = database(server, "memory", given.model)
        with connect(url) as connection, worker(url) as running:
            warm_up(connection, running)
            connection.execute("create table article (id integer primary key, content text)")
            connection.execute("select embed.enable('article', array['content'])")
            loaded = running.memory()
            begun = time.monotonic()
            seed = 0
            while len(samples) < 2 or time.monotonic() - begun < 60 * given.minutes:
                change(connection, lengths, seed)
                looks = [running.memory()]

                def look(looks: list[dict[str, float]] = looks) -> None:
                    running.check()
                    looks.append(running.memory())

                wait_until(
                    lambda: fetch_value(connection, PENDING) == 0,
                    check=look,
                    pause=0.5,
                    timeout=ROUND,
                )
                fetch_value(connection, "select embed.query(%s) is null", [f"question {seed}"])
                means = {lane: float(np.mean([at[lane] for at in looks])) for lane in looks[0]}
                samples.append((time.monotonic() - begun, means))
                print(f"round {seed}: {samples[-1][0]:.0f} s, {samples[-1][1]}", flush=True)
                seed += 1
                time.sleep(given.pause)
            highest = running.memory("VmHWM")
    steady = samples[len(samples) // 4 :]
    hours = np.array([at for at, _ in steady]) / 3600
    measures = []
    for lane in ("passages", "questions"):
        resident = np.array([sizes[lane] for _, sizes in steady])
        slope, error = line(hours, resident)
        measures += [
            Measure(f"{lane}, loaded", loaded[lane], "MB"),
            Measure(f"{lane}, highest", highest[lane], "MB"),
            Measure(f"{lane}, mean of the last round", resident[-1], "MB"),
            Measure(f"{lane}, slope after the first quarter", slope, "MB/h"),
            Measure(f"{lane}, standard error of the slope", error, "MB/h"),
        ]
    measures.append(Measure("rounds", len(samples)))
    report("memory", given, started, measures, samples=samples)


if __name__ == "__main__":
    main()
