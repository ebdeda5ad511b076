"""What a switch would cost: rows, time and disk."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from embedworker import figures
from embedworker.cli.database import Connection, Table
from embedworker.cli.sampling import sample as sample_of
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.extras import require
from embedworker.queue.source import load_sources
from embedworker.search.collection import find_source

if TYPE_CHECKING:
    from embedworker.settings import Settings

__all__ = ["COPIES", "REAL", "estimate", "hours"]

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
    searched = find_source(connection, table.oid, name)
    source = next(one for one in load_sources(connection) if one.id == searched.id)
    measured = sample_of(connection, source, model, settings, sample)
    counted, passages, present, dimensions, folder = fetch_one(
        connection.execute(statement("switch_sizes"), {"source": source.id})
    )
    rows = max(counted, measured.texts)
    seconds = rows / measured.rate if measured.texts else 0.0
    new = present + COPIES * REAL * (measured.dimensions - dimensions) * max(passages, rows)
    new = max(new, COPIES * REAL * measured.dimensions * rows)
    lines = [
        ("rows", f"{figures.count(rows)}, about {figures.count(passages)} passages now"),
        ("tokens", f"{figures.count(rows * measured.tokens)}, from a sample"),
        ("time", f"{hours(seconds)} at {measured.rate:.1f} texts a second, measured here"),
        ("disk", f"{figures.size(present)} now, {figures.size(new)} more during the switch"),
        ("index", f"{figures.size(REAL * measured.dimensions * rows)} of memory for its build"),
        ("models", f"a worker holds two: {searched.model} and {model}"),
    ]
    free = shutil.disk_usage(folder).free if folder and Path(folder).is_dir() else None
    if free is not None and free < new:
        return lines, (
            f"the disk of the server has {figures.size(free)} free, and {figures.size(new)} are "
            "needed; make room first"
        )
    return lines, None


def hours(seconds: float) -> str:
    """Return a time in hours, or in seconds where it is less than ten minutes."""
    return f"{math.ceil(seconds)} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
