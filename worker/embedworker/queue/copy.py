"""Vectors that the other side of a switch has of the same texts, so that no model is asked."""

from collections.abc import Sequence

import numpy as np
from psycopg.errors import UndefinedTable

from embedworker.queue.claim import Job
from embedworker.queue.complete import EmbeddedPassage, Result
from embedworker.queue.source import Connection

__all__ = ["copied"]


def copied(connection: Connection, jobs: Sequence[Job], *, fingerprint: int) -> list[Result]:
    """Return results for those jobs of one source whose texts the other side has by this model.

    They are written as others are: only where the row is still as it was claimed. A sweep is over
    after them, and finds what was wrong on the other side.
    """
    if not jobs or jobs[0].source.twin is None:
        return []
    source = jobs[0].source
    try:
        found = connection.execute(
            source.render("queue_copy"),
            {
                **source.key_parameters([job.key for job in jobs]),
                "hashes": [job.hash for job in jobs],
                "fingerprint": fingerprint,
            },
            binary=True,
        ).fetchall()
    except UndefinedTable:
        return []  # embed.end_switch has dropped it a moment ago
    return [
        Result(
            jobs[position],
            [
                EmbeddedPassage(start, end, vector.to_numpy().astype(np.float32), truncated)
                for start, end, truncated, vector in zip(*passages, strict=True)
            ],
        )
        for position, *passages in found
    ]
