"""What the claim costs does not depend on how much is queued, dead or held."""

import json
from typing import Any

import psycopg
import pytest
from psycopg import sql

from worker.queue.source import load_sources

Connection = psycopg.Connection[tuple[Any, ...]]

BATCH = 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_claim_of_a_large_queue(shop: Connection) -> None:
    """1,000,000 waiting, 100,000 dead, 100,000 held: pages in proportion to the batch."""
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    (source,) = (s for s in load_sources(shop) if s.name == "article")
    queue = sql.Identifier("embed", f"queue_{source.id}")

    def claim() -> tuple[int, float]:
        """Pages touched, and milliseconds, of one claim that is then undone."""
        with shop.transaction(force_rollback=True):
            row = shop.execute(
                sql.SQL("explain (analyze, buffers, format json) ") + source.render("queue_claim"),
                {
                    "priorities": [0, 20],
                    "quotas": [BATCH, BATCH],
                    "most": 2 * BATCH,
                    "lease": 60.0,
                    "max_attempts": 5,
                    "worker": 1,
                    "after": "-infinity",
                },
            ).fetchone()
        assert row is not None
        plan = row[0] if not isinstance(row[0], str) else json.loads(row[0])
        top = plan[0]["Plan"]
        return top["Shared Hit Blocks"] + top["Shared Read Blocks"], plan[0]["Execution Time"]

    fill = sql.SQL(
        "insert into {} (k1, seq, due, attempts, priority, claimed_by, error)"
        " select n, n, {}, {}, {}, {}, {} from generate_series({}::integer, {}::integer) n"
    )

    def add(first: int, last: int, due: str, priority: int = 0, **other: str) -> None:
        shop.execute(
            fill.format(
                queue,
                sql.SQL(due),
                sql.SQL(other.get("attempts", "0")),
                sql.Literal(priority),
                sql.SQL(other.get("claimed_by", "null")),
                sql.SQL(other.get("error", "null")),
                sql.Literal(first),
                sql.Literal(last),
            )
        )

    add(1, BATCH, "now()")
    add(BATCH + 1, 2 * BATCH, "now()", 20)
    shop.execute(sql.SQL("vacuum analyze {}").format(queue))
    small_pages, _ = claim()
    claim()
    _, small_time = min((claim() for _ in range(5)), key=lambda seen: seen[1])
    add(1001, 501_000, "now()")
    add(501_001, 1_001_000, "now()", 20)
    add(1_001_001, 1_101_000, "'infinity'", 15, attempts="5", error="'dead'")
    add(1_101_001, 1_201_000, "now() + interval '1 minute'", 11, attempts="1", claimed_by="2")
    unknown, _ = claim()  # before the planner knows what is in there
    shop.execute(sql.SQL("vacuum analyze {}").format(queue))
    claim()
    pages, took = min((claim() for _ in range(5)), key=lambda seen: seen[1])
    print(f"pages {small_pages} -> {unknown}, {pages}; time {small_time:.1f} -> {took:.1f} ms")
    # The same number of rows from deeper trees.
    assert max(pages, unknown) < 30 * 2 * BATCH
    assert took < 3 * small_time + 2
