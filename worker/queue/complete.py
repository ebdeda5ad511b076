"""Writing vectors, fenced: only for jobs whose row is still the version that was claimed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worker.model.lexical import term_vector
from worker.queue.claim import Job
from worker.queue.source import Connection

__all__ = ["Passage", "Result", "complete"]

UNTOUCHED = -1


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a job's text, characters [start, end), and its vector, float32 [dimensions].

    ``truncated``: the end of it did not fit the model's window.
    """

    start: int
    end: int
    embedding: npt.NDArray[np.float32]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job. No passages: the row's vectors go. ``untouched``: they stay."""

    job: Job
    passages: list[Passage] = field(default_factory=list)
    untouched: bool = False


def complete(
    connection: Connection,
    results: Sequence[Result],
    *,
    worker: int,
    fingerprint: int,
    average_length: float,
) -> int:
    """Write the vectors of jobs of one source and strike the jobs; one statement, one commit.

    ``average_length`` is that of the source's passages in terms, as
    :func:`worker.model.lexical.term_vector` wants it.
    Returns for how many. The others were changed meanwhile, or belong to another worker by now, and
    are not touched: they come round again.
    """
    if not results:
        return 0
    source = results[0].job.source
    passages = [
        (position, number, passage)
        for position, result in enumerate(results)
        for number, passage in enumerate(result.passages)
    ]
    row = connection.execute(
        source.render("queue_complete_into" if source.into_column else "queue_complete"),
        {
            **source.key_parameters([result.job.key for result in results]),
            "worker": worker,
            "fingerprint": fingerprint,
            "seqs": [result.job.seq for result in results],
            "hashes": [result.job.hash for result in results],
            "chunks": [
                UNTOUCHED if result.untouched else len(result.passages) for result in results
            ],
            "positions": [position for position, _, _ in passages],
            "passages": [number for _, number, _ in passages],
            "starts": [passage.start for _, _, passage in passages],
            "ends": [passage.end for _, _, passage in passages],
            "truncated": [passage.truncated for _, _, passage in passages],
            "embeddings": [passage.embedding for _, _, passage in passages],
            "terms": [
                term_vector(
                    (results[position].job.text or "")[passage.start : passage.end], average_length
                )
                for position, _, passage in passages
            ],
        },
        binary=True,
    ).fetchone()
    return 0 if row is None else int(row[0])
