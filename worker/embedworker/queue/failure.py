"""What happens to a row whose text cannot be embedded, and to rows handed back untried."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from embedworker.queue.claim import BACKFILL, FRESH, RETRIES, Job
from embedworker.queue.source import Connection, Source

__all__ = [
    "LOCKED",
    "backoff",
    "fail",
    "halved",
    "may_be_of_a_row",
    "may_be_unreadable",
    "mend",
    "of_names_or_rights",
    "release",
    "release_held",
]

ERROR_LENGTH = 1000  # characters kept of an error's text
MARGIN = 60.0  # seconds beyond the longest back-off from which on a row waits for no reason
LOCKED = 0.2  # seconds until a row that the application holds locked is tried again
# Classes of SQLSTATE that no row is to blame for: connection, transaction, rollback (deadlock),
# resources, operator, system.
NOT_OF_A_ROW = frozenset({"08", "25", "40", "53", "57", "58"})
LOCK_NOT_AVAILABLE = "55P03"

T = TypeVar("T")


def may_be_of_a_row(error: Exception) -> bool:
    """Whether a row may be what the server refused.

    Any SQLSTATE may be: a trigger of the application chooses its own, and a key can be too long for
    an index. Not so what a connection, the server's resources or a lock give.
    """
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:  # psycopg's own: a value that it cannot write
        return isinstance(error, psycopg.DataError)
    return state[:2] not in NOT_OF_A_ROW and state != LOCK_NOT_AVAILABLE


def of_names_or_rights(error: Exception) -> bool:
    """Whether a name or a privilege is missing, which is seldom the fault of one row."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("42")


def may_be_unreadable(error: Exception) -> bool:
    """Whether a row may be what cannot be read, as by a filter that divides by zero."""
    return may_be_of_a_row(error) and not of_names_or_rights(error)


def halved(
    items: Sequence[T],
    action: Callable[[Sequence[T]], object],
    separable: Callable[[Exception], bool] = may_be_of_a_row,
) -> list[tuple[T, Exception]]:
    """Do ``action`` for all items at once, or in halves where that is refused.

    Returns the items that are refused alone, each with its error.
    Raises the error where ``separable`` says that no item is to blame.
    """
    try:
        action(items)
    except Exception as error:  # separable says whether it is one of those that an item causes
        if not separable(error):
            raise
        if len(items) == 1:
            return [(items[0], error)]
        middle = len(items) // 2
        first = halved(items[:middle], action, separable)
        return first + halved(items[middle:], action, separable)
    return []


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
    into_column = failures[0][0].source.into_column is not None
    died: list[int] = []

    def put_off(some: Sequence[tuple[Job, str]], *, emptied: bool = into_column) -> None:
        source = some[0][0].source
        rows = connection.execute(
            source.render("queue_fail_into" if emptied else "queue_fail"),
            {
                **source.key_parameters([job.key for job, _ in some]),
                "seqs": [job.seq for job, _ in some],
                "errors": [error[:ERROR_LENGTH].replace("\0", "") for _, error in some],
                "delays": [backoff(job.attempts, longest_backoff) for job, _ in some],
                "source": source.id,
                "worker": worker,
                "max_attempts": max_attempts,
            },
        ).fetchall()
        if len(rows) < len(some):
            release(connection, [job for job, _ in some], worker=worker, delay=LOCKED)
        died.extend(row[2] for row in rows)

    if into_column:
        # Whose own table refuses to have the column emptied, too: there the old vector stays.
        for failure, _ in halved(failures, put_off):
            put_off([failure], emptied=False)
    else:
        put_off(failures)
    return sum(died)


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


def mend(connection: Connection, source: Source, *, longest_backoff: float) -> int:
    """Make rows due that wait for longer than any back-off lasts; return how many there were."""
    return connection.execute(
        source.render("queue_mend"),
        {"priorities": [FRESH, *RETRIES, BACKFILL], "longest": longest_backoff + MARGIN},
    ).rowcount
