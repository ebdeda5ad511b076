"""What the claim costs does not depend on how much is queued, dead or held; room is given back."""

import json
from pathlib import Path
from typing import Any

import pytest
from fix_database import Connection
from fix_worker import Workers
from oracle import inbox_of, judge, queue_of, wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.queue.source import load_sources

BATCH = 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_claim_of_a_large_queue(shop: Connection) -> None:
    """1,000,000 waiting, 100,000 dead, 100,000 held: pages in proportion to the batch.

    Against a queue of 40,000, whose indexes are nearly as deep: in one of 200 rows, each of them is
    a single page, and a claim touches 1500 pages instead of 3500.
    """
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    (source,) = (s for s in load_sources(shop) if s.name == "article")
    queue = sql.Identifier("embed", f"queue_{source.id}")

    def claim() -> tuple[int, float]:
        """Pages touched, and milliseconds, of one claim that is then undone."""
        with shop.transaction(force_rollback=True):
            row = shop.execute(
                b"explain (analyze, buffers, format json) " + source.render("queue_claim"),
                {
                    "priorities": [0, 20],
                    "quotas": [BATCH, BATCH],
                    "most": 2 * BATCH,
                    "lease": 60.0,
                    "max_attempts": 5,
                    "worker": 1,
                    "afters": ["-infinity", "-infinity"],
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

    add(1, 20_000, "now()")
    add(20_001, 40_000, "now()", 20)
    shop.execute(sql.SQL("vacuum analyze {}").format(queue))
    small_pages, _ = claim()
    claim()
    _, small_time = min((claim() for _ in range(5)), key=lambda seen: seen[1])
    add(40_001, 520_000, "now()")
    add(520_001, 1_000_000, "now()", 20)
    add(1_000_001, 1_100_000, "'infinity'", 15, attempts="5", error="'dead'")
    add(1_100_001, 1_200_000, "now() + interval '1 minute'", 11, attempts="1", claimed_by="2")
    unknown, _ = claim()  # before the planner knows what is in there
    shop.execute(sql.SQL("vacuum analyze {}").format(queue))
    claim()
    pages, took = min((claim() for _ in range(5)), key=lambda seen: seen[1])
    print(f"pages {small_pages} -> {unknown}, {pages}; time {small_time:.2f} -> {took:.2f} ms")
    assert max(small_pages, pages, unknown) < 30 * 2 * BATCH
    assert max(pages, unknown) < 1.5 * small_pages
    assert took < 3 * small_time + 2


@pytest.mark.smoke
def test_a_queue_that_the_planner_takes_for_empty(shop: Connection) -> None:
    """Analysed when it was empty, and full since: rows are looked up by key, one by one.

    The planner takes its indexes for one page, and may read all of one for every job.
    """
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    (source,) = (s for s in load_sources(shop) if s.name == "article")
    queue = sql.Identifier("embed", f"queue_{source.id}")
    fill = sql.SQL(
        "insert into {} (k1, seq, due, priority) select n, n, now(), 0"
        " from generate_series(1, 20_000) n"
    ).format(queue)
    shop.execute(fill)
    shop.execute(sql.SQL("delete from {}").format(queue))
    shop.execute(sql.SQL("vacuum (analyze, truncate off) {}").format(queue))
    shop.execute(fill)

    def pages(name: str, **values: Any) -> int:
        explain = b"explain (analyze, buffers, format json) " + source.render(name)
        row = shop.execute(explain, values).fetchone()
        assert row is not None
        (found,) = row[0] if not isinstance(row[0], str) else json.loads(row[0])
        return int(found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"])

    with shop.transaction(force_rollback=True):
        claimed = pages(
            "queue_claim",
            priorities=[0, 20],
            quotas=[5, 5],
            most=10,
            lease=60.0,
            max_attempts=5,
            worker=1,
            afters=["-infinity", "-infinity"],
        )
        jobs = shop.execute(
            sql.SQL("select k1::text, seq from {} where claimed_by = 1").format(queue)
        ).fetchall()
        assert len(jobs) == 5
        keys = source.key_parameters([[key] for key, _ in jobs])
        numbers = [seq for _, seq in jobs]
        completed = pages(
            "queue_complete",
            **keys,
            source=source.id,
            worker=1,
            fingerprint=0,
            seqs=numbers,
            hashes=[b""] * 5,
            chunks=[0] * 5,
            positions=[],
            passages=[],
            starts=[],
            ends=[],
            truncated=[],
            embeddings=[],
            terms=[],
        )
    assert max(claimed, completed) < 150, (claimed, completed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("change", "rows"), [("insert", 100_000), ("update", 20_000)])
def test_a_transaction_of_many_rows(
    shop: Connection, workers: Workers, change: str, rows: int
) -> None:
    """Many rows in one statement: the trigger runs once, one NOTIFY goes out, all are embedded.

    One call a statement is what keeps the cost of a row small: benchmarks/README.md has it.
    """
    insert = f"insert into article select n, '글 ' || n from generate_series(1, {rows}) n".encode()
    shop.execute("create table article (id integer primary key, content text)")
    if change == "update":
        shop.execute(insert)
    shop.execute("select embed.enable('article', array['content'])")
    shop.execute("set track_functions = 'all'; listen embed")
    with shop.transaction():
        shop.execute(insert if change == "insert" else "update article set content = '새 ' || id")
        calls = shop.execute(
            "select sum(pg_stat_get_xact_function_calls(p.oid)) from pg_proc p"
            " where p.pronamespace = 'embed'::regnamespace and p.proname ~ '^source_'"
        ).fetchone()
    assert calls == (1,)
    assert len(list(shop.notifies(timeout=0.5, stop_after=2))) == 1
    shop.execute("unlisten *")
    captured = sql.SQL("select count(*) from {}").format(inbox_of(shop, "article"))
    assert shop.execute(captured).fetchone() == (rows,)
    workers.start(batch_tokens="50000", window="4096")  # with batches of the usual size minutes
    wait_settled(shop, "article", timeout=600)
    verdict = judge(shop, "article")
    assert verdict.good, verdict
    assert verdict.rows == rows


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_very_large_texts_do_not_fill_the_memory(shop: Connection, workers: Workers) -> None:
    """60 texts of 1,000,000 characters, claimed in one window: held a few at a time."""
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute(
        "insert into article select n, repeat('긴 글 ' || n || E'\n', 1_000_000 / 6)"
        " from generate_series(1, 60) n"
    )
    shop.execute("select embed.enable('article', array['content'])")
    worker = workers.start(batch_tokens="100000")
    wait_settled(shop, "article", timeout=500)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"peak {peak / 1024:.0f} MB")
    assert peak < 1_500_000, "kB"
    passages = shop.execute("select count(*), count(distinct id) from article_embedding").fetchone()
    assert passages is not None
    assert passages[0] > 60 * 100
    assert passages[1] == 60


def size(connection: Connection, relation: str) -> int:
    """Bytes of the queue of a table with its indexes."""
    row = connection.execute(
        "select pg_total_relation_size(%s)", [queue_of(connection, relation).as_string()]
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.timeout(240)
def test_a_queue_that_was_large_gives_its_room_back(shop: Connection, workers: Workers) -> None:
    """Vacuum alone does not: a dead letter keeps the end of the table, and indexes stay large."""
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("insert into article select n, '글 ' || n from generate_series(1, 20) n")
    shop.execute("select embed.enable('article', array['content'])")
    queue = queue_of(shop, "article")
    shop.execute(
        sql.SQL(
            "insert into {} (k1, seq, due, error, attempts)"
            " select n, n, 'infinity', case when n % 2000 = 0 then 'dead' end, 5"
            " from generate_series(1001, 201_000) n"
        ).format(queue)
    )
    shop.execute("insert into article select n * 2000, '<<fail>>' from generate_series(1, 100) n")
    shop.execute(sql.SQL("delete from {} where error is null").format(queue))
    large = size(shop, "article")
    assert large > 20 << 20
    # What autovacuum does within a minute.
    shop.execute("select pg_stat_force_next_flush()")
    shop.execute(sql.SQL("vacuum {}").format(queue))
    assert size(shop, "article") > large / 3
    shop.execute(sql.SQL("truncate {}").format(inbox_of(shop, "article")))
    worker = workers.start()
    wait_until(lambda: size(shop, "article") < large / 20, 150, f"a small queue of {worker}")
    wait_settled(shop, "article", dead=100)
    verdict = judge(shop, "article")
    assert (verdict.missing, verdict.wrong, verdict.dead) == (100, 0, 100)
