"""What happens to a row whose text cannot be embedded, and to rows handed back untried."""

import random
from collections.abc import Sequence

from worker.queue.claim import Job
from worker.queue.source import Connection

__all__ = ["LOCKED", "backoff", "fail", "release", "release_held"]

ERROR_LENGTH = 1000  # characters kept of an error's text
LOCKED = 0.2  # seconds until a row that the application holds locked is tried again


def backoff(attempts: int, longest: float) -> float:
    """Return the seconds to wait after the given number of attempts: min(2^n, longest), jittered.

    Half of it is random ("Exponential Backoff And Jitter", equal jitter), so that rows that failed
    together are not tried together.
    """
    ceiling = min(2.0 ** min(attempts, 60), longest)
    return ceiling / 2 + random.uniform(0, ceiling / 2)  # noqa: S311  (no secret)


def fail(
    connection: Connection,
    failures: Sequence[tuple[Job, str]],
    *,
    worker: int,
    max_attempts: int,
    longest_backoff: float,
) -> int:
    """Put jobs of one source off, each with its error, or make them dead letters.

    Their vectors are removed: the text they were made of is no longer there. A row that is locked
    at that moment, in the queue or, where its vector is a column of it, in its own table, is handed
    back instead. Returns how many died.
    """
    if not failures:
        return 0
    source = failures[0][0].source
    rows = connection.execute(
        source.render("queue_fail_into" if source.into_column else "queue_fail"),
        {
            **source.key_parameters([job.key for job, _ in failures]),
            "seqs": [job.seq for job, _ in failures],
            "errors": [error[:ERROR_LENGTH].replace("\0", "") for _, error in failures],
            "delays": [backoff(job.attempts, longest_backoff) for job, _ in failures],
            "worker": worker,
            "max_attempts": max_attempts,
        },
    ).fetchall()
    if len(rows) < len(failures):
        release(connection, [job for job, _ in failures], worker=worker, delay=LOCKED)
    return sum(dead for _, _, dead in rows)


def release(
    connection: Connection, jobs: Sequence[Job], *, worker: int, delay: float = 0.0
) -> None:
    """Hand jobs of one source back untried, due again in ``delay`` seconds."""
    if not jobs:
        return
    source = jobs[0].source
    connection.execute(
        source.render("queue_release"),
        {
            **source.key_parameters([job.key for job in jobs]),
            "seqs": [job.seq for job in jobs],
            "priorities": [job.priority for job in jobs],
            "worker": worker,
            "delay": delay,
        },
    )


def release_held(connection: Connection, jobs: Sequence[Job], *, worker: int) -> None:
    """Hand jobs of one source back whose keys may be what its trouble is."""
    if jobs:
        connection.execute(
            jobs[0].source.render("queue_release_held"),
            {
                "seqs": [job.seq for job in jobs],
                "priorities": [job.priority for job in jobs],
                "worker": worker,
            },
        )
