"""Writing vectors, fenced: only for jobs whose row is still the version that was claimed."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pgvector import SparseVector

from embedworker.database.connection import pipelined
from embedworker.model.lexical import term_vectors
from embedworker.queue.claim import Job
from embedworker.queue.source import Connection, Source

__all__ = ["EmbeddedPassage", "Result", "complete"]

log = logging.getLogger("embedworker.queue")

UNTOUCHED = -1


@dataclass(frozen=True, slots=True)
class EmbeddedPassage:
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
    passages: list[EmbeddedPassage] = field(default_factory=list)
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
    :func:`embedworker.model.lexical.term_vectors` wants it.
    Returns for how many. The others were changed meanwhile, or belong to another worker by now, and
    are not touched: they come round again.
    """
    if not results:
        return 0
    source = results[0].job.source
    results = _once_a_key(source, results)
    passages = [
        (position, number, passage)
        for position, result in enumerate(results)
        for number, passage in enumerate(result.passages)
    ]
    with pipelined(connection) if source.into_column else nullcontext():
        if source.into_column:
            source.pin_table(connection)  # it writes the table itself
        written = connection.execute(
            source.render("queue_complete_into" if source.into_column else "queue_complete"),
            {
                **source.key_parameters([result.job.key for result in results]),
                "source": source.id,
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
                # Null instead of the array makes each of them null.
                "terms": _term_vectors(
                    [
                        (results[position].job.text or "")[passage.start : passage.end]
                        for position, _, passage in passages
                    ],
                    average_length,
                )
                if source.with_terms
                else None,
            },
            binary=True,
        )
    row = written.fetchone()
    return 0 if row is None else int(row[0])


def _term_vectors(texts: Sequence[str], average_length: float) -> list[SparseVector]:
    """Return the vector of terms of each text, made once where texts are equal."""
    different = list(dict.fromkeys(texts))
    vectors = dict(zip(different, term_vectors(different, average_length), strict=True))
    return [vectors[text] for text in texts]


def _once_a_key(source: Source, results: Sequence[Result]) -> Sequence[Result]:
    """Keep the newest result of each key.

    Nobody should hold a key twice. Where somebody does, it depends on the server's plan whether it
    refuses the whole statement (SQLSTATE 21000).
    """
    newest = {r.job.key: r for r in sorted(results, key=lambda result: result.job.seq)}
    if len(newest) < len(results):
        log.error(
            "source %s: %s of %s rows were held twice, at the numbers %s",
            source,
            len(results) - len(newest),
            len(results),
            sorted(r.job.seq for r in results if newest[r.job.key] is not r),
        )
    return list(newest.values())
