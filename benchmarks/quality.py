"""Retrieval quality through the database, beside plain sentence-transformers with the same model.

    python benchmarks/quality.py sets/*/ --model bundled:multilingual-e5-small

For every folder in BEIR's format two things are measured with the same metrics library:

reference  sentence-transformers encodes everything with the model's prefixes, numpy compares all
ours       ``embedworker eval``: a table, a worker, and embed.search, in the database named by
           DATABASE_URL or in the embedded one; long texts are cut as the reference cuts them

Prints a Markdown table, and with ``--json FILE`` writes everything that was found.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedworker.model.bundled import bundled_folder
from embedworker.model.catalog import BUNDLED_MODEL, catalog
from embedworker.search.beir import Collection, read_beir
from embedworker.search.measures import DEEP, means, measured

K = 10
TIMED = 100  # questions encoded one by one, for the reference's time


def reference(collection: Collection, model: str) -> dict[str, Any]:
    """Measure sentence-transformers and numpy, without a database.

    The time of a question is that of encoding it alone, on one thread, and comparing it with all
    documents.
    """
    card = catalog()[model]
    threads = torch.get_num_threads()
    encoder = SentenceTransformer(str(bundled_folder()) if model == BUNDLED_MODEL else model)
    documents = _encode(encoder, card.passage_prefix, list(collection.documents.values()))
    questions = _encode(encoder, card.query_prefix, list(collection.questions.values()))
    deep = {
        number: _nearest(documents @ question, list(collection.documents), DEEP)
        for number, question in zip(collection.questions, questions, strict=True)
    }
    run = {number: dict(list(found.items())[:K]) for number, found in deep.items()}
    torch.set_num_threads(1)  # as a worker answers a question
    seconds = []
    for text in list(collection.questions.values())[:TIMED]:
        started = time.perf_counter()
        question = _encode(encoder, card.query_prefix, [text])[0]
        _nearest(documents @ question, list(collection.documents), K)
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    p50, p95 = np.percentile([1000 * taken for taken in seconds], [50, 95])
    return {
        "setting": "sentence-transformers",
        "measures": means(measured(collection.relevance, run, deep, K)),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
    }


def ours(
    folder: Path, model: str, settings: str, *, chunk: bool = False, quick: bool = False
) -> dict[str, Any]:
    """Run ``embedworker eval`` and return its report."""
    arguments = ["eval", str(folder), "--model", model, "--k", str(K), "--json"]
    arguments += ["--compare", settings, "--chunk" if chunk else "--no-chunk"]
    arguments += ["--quick"] if quick else []
    done = subprocess.run(
        [sys.executable, "-m", "embedworker.cli", *arguments], stdout=subprocess.PIPE, check=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _encode(encoder: SentenceTransformer, prefix: str, texts: Sequence[str]) -> Any:
    return encoder.encode(
        [prefix + text for text in texts], normalize_embeddings=True, convert_to_numpy=True
    )


def _nearest(scores: Any, ids: Sequence[str], count: int) -> dict[str, float]:
    best = np.argsort(-scores, kind="stable")[:count]
    return {ids[place]: float(scores[place]) for place in best}


def _table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| set | search | nDCG@1 | nDCG@3 | nDCG@5 | nDCG@10 | recall@10 | recall@100 | MRR@10 "
        "| p50 ms | p95 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = [f"nDCG@{cut}" for cut in (1, 3, 5, 10)] + ["recall@10", "recall@100", "MRR@10"]
    for result in results:
        for entry in (result["reference"], *result["ours"]["settings"]):
            values = " | ".join(f"{entry['measures'][name]:.4f}" for name in names)
            lines.append(
                f"| {result['set']} | {entry['setting']} | {values} "
                f"| {entry['p50_ms']:.0f} | {entry['p95_ms']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure every folder and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument(
        "--compare",
        default="exact+lexical=0,hnsw+lexical=0,default",
        help="as of `embedworker eval`",
    )
    parser.add_argument("--chunk", action="store_true", help="split long texts, as by default")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results = []
    for folder in given.folders:
        collection = read_beir(folder)
        results.append(
            {
                "set": collection.name,
                "reference": reference(collection, given.model),
                "ours": ours(folder, given.model, given.compare, chunk=given.chunk),
            }
        )
        if given.json is not None:
            given.json.write_text(json.dumps(results, ensure_ascii=False, indent=2))
    print(_table(results))


if __name__ == "__main__":
    main()
