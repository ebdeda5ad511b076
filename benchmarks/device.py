"""What a device can do, at several sizes of a batch, and how much of it a worker uses.

    python benchmarks/device.py                                # the GPU if there is one
    python benchmarks/device.py --device cpu --rows 300
    python benchmarks/device.py --device simulated --rate 5000

By turns: the bare engine runs the worker's batches of all texts at each budget of tokens, and a
worker embeds a table of the same texts at the same budget. A simulated device is the encoder of
the tests, which sleeps for the time that a device of ``--rate`` passages a second would compute.
"""

import os
import statistics
import time
from argparse import Namespace
from collections import defaultdict

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
    warm_up,
    worker,
)
from texts import texts

from embedworker.model import open_encoder
from embedworker.model.batches import token_batches
from embedworker.model.catalog import BUNDLED_MODEL, TESTING_MODEL
from embedworker.model.chunking import split
from embedworker.model.encoder import Encoder
from embedworker.settings.worker import DEFAULT_WINDOW

SIMULATED = "simulated"


def bare(encoder: Encoder, contents: list[str], budget: int) -> tuple[float, list[int]]:
    """Run the worker's batches of the texts; return seconds, and the tokens of each passage."""
    started = time.perf_counter()
    lengths: list[int] = []
    for at in range(0, len(contents), DEFAULT_WINDOW):
        parts = split(encoder, contents[at : at + DEFAULT_WINDOW], chunk=True)
        tokens = [made for text in parts for _, _, made in text]
        sizes = [len(each) for each in tokens]
        for batch in token_batches(sizes, budget):
            encoder.encode_tokens([tokens[place] for place in batch])
        lengths += sizes
    return time.perf_counter() - started, lengths


def by_worker(url: str, contents: list[str], budget: int, given: Namespace) -> float:
    """Embed a table of the texts with a new worker; return the seconds."""
    device = {} if given.device == SIMULATED else {"device": given.device}
    with (
        psycopg.connect(url, autocommit=True) as connection,
        worker(url, "--only-passages", batch_tokens=str(budget), **device) as running,
    ):
        warm_up(connection, running)
        connection.execute("create table article (id integer primary key, content text)")
        with connection.cursor().copy("copy article from stdin") as copy:
            for row in enumerate(contents):
                copy.write_row(row)
        connection.execute("vacuum analyze article")
        begun = time.perf_counter()
        connection.execute("select embed.enable('article', array['content'])")
        wait_until(
            lambda: (
                fetch_value(connection, "select count(distinct id) from article_embedding")
                == len(contents)
            ),
            check=running.check,
            pause=0.05,
        )
        return time.perf_counter() - begun


def memory_used() -> dict[str, float]:
    """Return the most memory of the GPU that this process held, in MB, if there is one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    most = {"most memory of the bare engine": torch.cuda.max_memory_allocated() / 2**20}
    torch.cuda.reset_peak_memory_stats()
    return most


def main() -> None:
    """Measure each budget by turns and print rates, memory and the worker's share."""
    parser = options(__doc__, rows=20_000, rounds=2, device="auto", rate=5000.0, dtype="auto")
    parser.add_argument("--model", default=BUNDLED_MODEL, help=f"default {BUNDLED_MODEL}")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[2048, 8192, 32768, 131072], metavar="TOKENS"
    )
    given = parser.parse_args()
    started = machine()
    os.environ["EMBEDWORKER_ALLOW_TESTING_MODEL"] = "1"
    os.environ["EMBEDWORKER_DTYPE"] = given.dtype
    model = given.model
    if given.device == SIMULATED:
        model = TESTING_MODEL
        os.environ["EMBEDWORKER_TESTING_RATE"] = str(given.rate)
    encoder = open_encoder(
        model,
        query_prefix="query: ",
        passage_prefix="passage: ",
        device="auto" if given.device == SIMULATED else given.device,
        dtype=given.dtype,
    )
    contents = texts(given.rows, seed=0)
    bare(encoder, contents[: min(given.rows, 200)], min(given.budgets))  # warms up
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    memory: dict[int, dict[str, float]] = {}
    lengths: list[int] = []
    pairs = [(who, budget) for budget in given.budgets for who in ("engine", "worker")]
    with cluster() as server:
        for turn, (who, budget) in turns(pairs, given.rounds):
            if who == "engine":
                took, lengths = bare(encoder, contents, budget)
                memory[budget] = memory_used()
            else:
                url = database(server, f"device_{turn}_{budget}", model)
                took = by_worker(url, contents, budget, given)
            seconds[who, budget].append(took)
            print(f"round {turn + 1}: {who}, {budget} tokens: {took:.2f} s", flush=True)
    measures = []
    for budget in given.budgets:
        engine, with_worker = (
            statistics.median(seconds[who, budget]) for who in ("engine", "worker")
        )
        at = f"at {budget} tokens: "
        measures += [
            Measure(f"{at}bare engine", given.rows / engine, "rows/s"),
            Measure(f"{at}bare engine", sum(lengths) / engine, "tokens/s"),
            Measure(f"{at}worker", given.rows / with_worker, "rows/s"),
            Measure(f"{at}worker : bare engine", engine / with_worker, "x", ">= 0.95"),
            *(Measure(f"{at}{name}", most, "MB") for name, most in memory[budget].items()),
        ]
        if given.device == SIMULATED:
            share = len(lengths) / with_worker / given.rate
            measures.append(Measure(f"{at}share of time that the device computes", share))
    report("device", given, started, measures, engine=dict(encoder.notes))


if __name__ == "__main__":
    main()
