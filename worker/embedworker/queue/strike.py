"""Settles many rows at once that are gone from their table, without a claim."""

from embedworker.database.connection import pipelined
from embedworker.database.rows import fetch_one
from embedworker.queue.cursor import Cursor
from embedworker.queue.source import Connection, Source

__all__ = ["PAGE", "strike"]

PAGE = 50_000  # rows; they take about a second, so no transaction of ours grows old


def strike(
    connection: Connection,
    source: Source,
    priority: int,
    cursor: Cursor,
    *,
    worker: int = 0,
    limit: int = PAGE,
) -> int:
    """Strike those of the oldest ``limit`` rows of a priority that are gone; return how many.

    Begins at the cursor, which moves on where all of them were.
    """
    after = cursor.due.get(priority)
    with pipelined(connection):
        source.pin_table(connection)
        looked = connection.execute(
            source.render("queue_strike"),
            {
                "source": source.id,
                "worker": worker,
                "priority": priority,
                "after": "-infinity" if after is None else after.isoformat(),
                "limit": limit,
            },
        )
    seen, struck, last, _ = fetch_one(looked)
    if seen and seen == struck:
        cursor.claimed({priority: limit}, [(priority, last)], None)
    return int(struck)
