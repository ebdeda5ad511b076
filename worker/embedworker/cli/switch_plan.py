"""What a switch would cost: rows, time and disk."""

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from embedworker import figures
from embedworker.cli.database import Connection, Table
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import SourceError
from embedworker.extras import require
from embedworker.queue.source import load_sources
from embedworker.search.collection import find_source

if TYPE_CHECKING:
    from embedworker.settings import Settings

__all__ = ["estimate"]

REAL = 4  # bytes of a dimension
COPIES = 2  # a vector stands in the table and in its HNSW index


def estimate(
    connection: Connection,
    table: Table,
    model: str,
    name: str | None,
    settings: "Settings",
    sample: int,
) -> tuple[list[tuple[str, str]], str | None]:
    """Return labelled lines, and a sentence where the disk of the server does not hold it.

    Raises:
        SourceError: the database does not know the model, or no worker has embedded the table.
        ModelError: the model cannot be loaded here.
    """
    require("`embedworker switch plan`", "worker")
    from embedworker.service.models import Card, open_card

    searched = find_source(connection, table.oid, name)
    source = next(one for one in load_sources(connection) if one.id == searched.id)
    card = connection.execute(statement("model_card"), {"name": model}).fetchone()
    if card is None:
        raise SourceError(f"the database does not know the model {model!r}; see embed.add_model")
    passages, present, dimensions, folder = fetch_one(
        connection.execute(statement("switch_sizes"), {"source": source.id})
    )
    texts = [
        text
        for (text,) in connection.execute(
            source.render("switch_texts"), {"characters": 10_000, "most": sample}
        )
    ]
    encoder = open_card(Card(*card), settings)
    tokens = [min(one.total, encoder.max_tokens) for one in encoder.tokenize_passages(texts)]
    started = time.perf_counter()
    encoder.encode_passages(texts)
    rate = len(texts) / max(time.perf_counter() - started, 1e-9)
    rows = max(table.estimate, len(texts))
    seconds = rows / rate if texts else 0.0
    new = present + COPIES * REAL * (encoder.dimensions - dimensions) * max(passages, rows)
    new = max(new, COPIES * REAL * encoder.dimensions * rows)
    lines = [
        ("rows", f"{figures.count(rows)}, about {figures.count(passages)} passages now"),
        ("tokens", f"{figures.count(rows * sum(tokens) / max(len(tokens), 1))}, from a sample"),
        ("time", f"{_hours(seconds)} at {rate:.1f} texts a second, measured here"),
        ("disk", f"{figures.size(present)} now, {figures.size(new)} more during the switch"),
        ("index", f"{figures.size(REAL * encoder.dimensions * rows)} of memory for its build"),
        ("models", f"a worker holds two: {searched.model} and {model}"),
    ]
    free = shutil.disk_usage(folder).free if folder and Path(folder).is_dir() else None
    if free is not None and free < new:
        return lines, (
            f"the disk of the server has {figures.size(free)} free, and {figures.size(new)} are "
            "needed; make room first"
        )
    return lines, None


def _hours(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
