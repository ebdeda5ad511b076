"""Rows a second until a table is embedded, committed and searchable.

    python benchmarks/backfill.py --json backfill.json

By turns, each in a warm process of its own and at the same priority:

naive   the script a user would write: SentenceTransformer.encode(batch_size=32) in fp32 over
        SELECT ... WHERE embedding IS NULL LIMIT 500, then executemany(UPDATE) and a commit
engine  the worker's own batches of the same rows through its encoder, without a database
worker  embed.enable on a table that holds the rows, until every vector is committed

The rows are dealt out to the rounds, so that each of the three does all rows once. The peak is that
of matrix products at the layers' shapes, in the format that the model runs in.
"""

import multiprocessing
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psycopg
import torch
from harness import (
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    model_folder,
    options,
    report,
    turns,
    wait_until,
    warm_up,
    worker,
)
from pgvector.psycopg import register_vector
from sentence_transformers import SentenceTransformer
from texts import texts

from embedworker.database.connect import connect
from embedworker.model import open_encoder
from embedworker.model.batches import token_batches
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.model.chunking import split
from embedworker.model.cpu import cpu_quota
from embedworker.model.encoder import Encoder, EngineName
from embedworker.settings.worker import DEFAULT_WINDOW

LIMIT = 500  # rows of the naive script's SELECT
BATCH = 32  # of its encode()
GEMM_ROWS = 2048
GEMM_SECONDS = 0.5

_loaded: dict[str, Any] = {}  # in each process: its own model


def naive(url: str, model: str, table: str) -> float:
    """Embed a table as the script would; return the seconds it took."""
    if "naive" not in _loaded:
        _loaded["naive"] = SentenceTransformer(model_folder(model), device="cpu")
    encoder = _loaded["naive"]
    with psycopg.connect(url) as connection:
        register_vector(connection)
        started = time.perf_counter()
        while rows := connection.execute(
            f"select id, content from {table} where embedding is null limit {LIMIT}"
        ).fetchall():
            vectors = encoder.encode(
                ["passage: " + content for _, content in rows],
                batch_size=BATCH,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    f"update {table} set embedding = %s where id = %s",
                    [(vector, key) for vector, (key, _) in zip(vectors, rows, strict=True)],
                )
            connection.commit()
        return time.perf_counter() - started


def engine(model: str, name: EngineName, contents: list[str]) -> dict[str, Any]:
    """Make the worker's batches and run them; return seconds, tokens, and the sum of squares."""
    encoder = _encoder(model, name)
    started = time.perf_counter()
    lengths: list[int] = []
    for at in range(0, len(contents), DEFAULT_WINDOW):
        parts = split(encoder, contents[at : at + DEFAULT_WINDOW], chunk=True)
        tokens = [made for text in parts for _, _, made in text]
        sizes = [len(t) for t in tokens]
        for batch in token_batches(sizes, encoder.token_budget):
            encoder.encode_tokens([tokens[place] for place in batch])
        lengths += sizes
    return {
        "seconds": time.perf_counter() - started,
        "tokens": sum(lengths),
        "squares": sum(n * n for n in lengths),
        "notes": dict(encoder.notes),
    }


def peak(model: str, name: EngineName) -> float:
    """GFLOP/s of matrix products at the shapes of the model's layers, in its own format."""
    dtype = getattr(torch, str(_encoder(model, name).notes["dtype"]))
    hidden, inner, _ = _sizes(model)
    products = [
        (torch.randn(GEMM_ROWS, width, dtype=dtype), torch.randn(height, width, dtype=dtype))
        for width, height in [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
    ]
    operations = sum(2 * a.numel() * b.shape[0] for a, b in products)
    best = 0.0
    until = time.perf_counter() + GEMM_SECONDS
    with torch.inference_mode():
        while time.perf_counter() < until:
            started = time.perf_counter()
            for a, b in products:
                torch.nn.functional.linear(a, b)
            best = max(best, operations / (time.perf_counter() - started) / 1e9)
    return best


def operations(model: str, tokens: int, squares: int) -> float:
    """Floating-point operations that the texts need: linear layers, and attention by length."""
    hidden, inner, layers = _sizes(model)
    linear = layers * 2 * (4 * hidden * hidden + 2 * hidden * inner)
    return float(tokens * linear + squares * layers * 4 * hidden)


def _encoder(model: str, engine: EngineName) -> Encoder:
    if "ours" not in _loaded:
        _loaded["ours"] = open_encoder(
            model,
            query_prefix="query: ",
            passage_prefix="passage: ",
            engine=engine,
            threads=cpu_quota(),
        )
    encoder: Encoder = _loaded["ours"]
    return encoder


def _sizes(model: str) -> tuple[int, int, int]:
    if "config" not in _loaded:
        from transformers import AutoConfig

        _loaded["config"] = AutoConfig.from_pretrained(model_folder(model))
    config = _loaded["config"]
    return config.hidden_size, config.intermediate_size, config.num_hidden_layers


def fill(connection: Any, number: int, contents: list[str]) -> None:
    """Two tables of the same rows, one for the script and one to be enabled."""
    for table, column in (
        (f"naive_{number}", ", embedding vector(384)"),
        (f"article_{number}", ""),
    ):
        connection.execute(
            f"create table {table} (id integer primary key, content text not null{column})"
        )
        with connection.cursor().copy(f"copy {table} (id, content) from stdin") as copy:
            for row in enumerate(contents):
                copy.write_row(row)
        connection.execute(f"vacuum analyze {table}")


def main() -> None:
    """Measure the three by turns and print their ratios."""
    given = options(
        __doc__, rows=5000, rounds=5, model=BUNDLED_MODEL, engine="torch", seed=0
    ).parse_args()
    started = machine()
    contents = texts(given.rows, given.seed)
    share = -(-given.rows // given.rounds)
    deals = [contents[at : at + share] for at in range(0, given.rows, share)]
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: list[float] = []
    tokens = squares = 0
    notes: dict[str, Any] = {}
    with (
        cluster() as server,
        ProcessPoolExecutor(1, spawn) as script,
        ProcessPoolExecutor(1, spawn) as bare,
    ):
        url = database(server, "backfill", given.model)
        with (
            connect(url) as connection,
            worker(url, nice="0", index_after_rows="0", engine=given.engine) as running,
        ):
            warm_up(connection, running)
            fill(connection, 0, contents[:10])
            script.submit(naive, url, given.model, "naive_0").result()
            bare.submit(engine, given.model, given.engine, contents[:10]).result()
            for number, who in turns(["naive", "engine", "worker"], len(deals)):
                deal = deals[number]
                table = f"article_{number + 1}"
                if not fetch_value(connection, "select to_regclass(%s) is not null", [table]):
                    fill(connection, number + 1, deal)
                if who == "naive":
                    took = script.submit(naive, url, given.model, f"naive_{number + 1}").result()
                elif who == "engine":
                    found = bare.submit(engine, given.model, given.engine, deal).result()
                    took, notes = found["seconds"], found["notes"]
                    tokens, squares = tokens + found["tokens"], squares + found["squares"]
                    peaks.append(bare.submit(peak, given.model, given.engine).result())
                else:
                    begun = time.perf_counter()
                    connection.execute("select embed.enable(%s, array['content'])", [table])
                    wait_until(
                        lambda table=table, deal=deal: (
                            fetch_value(
                                connection, f"select count(distinct id) from {table}_embedding"
                            )
                            == len(deal)
                        ),
                        check=running.check,
                        pause=0.05,
                    )
                    took = time.perf_counter() - begun
                seconds[who].append(took)
                print(f"round {number + 1}: {who} {took:.1f} s", flush=True)
        flop = operations(given.model, tokens, squares)
    rate = {who: given.rows / sum(took) for who, took in seconds.items()}
    best = max(peaks)
    measures = [
        Measure("naive script", rate["naive"], "rows/s"),
        Measure("bare engine", rate["engine"], "rows/s"),
        Measure("worker", rate["worker"], "rows/s"),
        Measure("worker : naive script", rate["worker"] / rate["naive"], "x", ">= 5"),
        Measure("worker : bare engine", rate["worker"] / rate["engine"], "x", ">= 0.95"),
        Measure("worker", tokens / sum(seconds["worker"]), "tokens/s"),
        Measure(f"peak of matrix products, {notes['dtype']}", best, "GFLOP/s"),
        Measure("worker's share of it", flop / sum(seconds["worker"]) / best / 1e9, "", ">= 0.5"),
        Measure("naive script's share", flop / sum(seconds["naive"]) / best / 1e9),
        Measure(
            "worker : naive script, if every product ran at the peak",
            best * 1e9 * sum(seconds["naive"]) / flop,
            "x",
        ),
    ]
    report("backfill", given, started, measures, seconds=seconds, peaks=peaks, engine=notes)


if __name__ == "__main__":
    main()
