"""What an evaluation found, as plain data for JSON and for printing."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import psycopg

from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.search.beir import Collection
from embedworker.search.collection import Searched, passages
from embedworker.search.evaluate import Answers
from embedworker.search.measures import compared, means, measured, standard_errors

__all__ = ["report"]


def report(
    connection: psycopg.Connection[tuple[Any, ...]],
    source: Searched,
    collection: Collection,
    answers: Sequence[Answers],
    k: int,
) -> dict[str, Any]:
    """Put together measures, times (ms), and everything that must be the same to repeat them.

    Every setting after the first has its differences from the first, with the standard error of
    the mean over the questions. ``by_question`` has nDCG@k of each, for comparing with another
    evaluation. ``missed`` are the questions of the first setting of which no right row was among
    the ``k``. Times are None where there are none.
    """
    values = [measured(collection.relevance, each.run, each.deep, k) for each in answers]
    server, extension = fetch_one(connection.execute(statement("evaluate_versions")))
    found: dict[str, Any] = {
        "collection": collection.name,
        "table": source.qualified,
        "questions": len(collection.questions),
        "passages": passages(connection, source),
        "k": k,
        "chunk": source.chunk,
        "model": source.model,
        "fingerprint": source.fingerprint,
        "versions": {
            "embedworker": version("embedworker"),
            "postgresql": server,
            "pgvector": extension,
        },
        "settings": [],
        "missed": [number for number, recall in values[0][f"recall@{k}"].items() if recall == 0],
    }
    for number, (each, measures) in enumerate(zip(answers, values, strict=True)):
        entry: dict[str, Any] = {
            "setting": str(each.setting),
            "path": each.path,
            "measures": means(measures),
            "standard_error": standard_errors(measures),
            "p50_ms": _milliseconds(each, 50),
            "p95_ms": _milliseconds(each, 95),
            "by_question": measures[f"nDCG@{k}"],
        }
        if number:
            differences = compared(measures, values[0])
            entry["difference"] = {name: asdict(value) for name, value in differences.items()}
        found["settings"].append(entry)
    return found


def _milliseconds(answers: Answers, percentile: float) -> float | None:
    if not answers.seconds:
        return None
    return 1000 * float(np.percentile(answers.seconds, percentile))
