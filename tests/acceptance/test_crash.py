"""A worker ends at the worst moment: its rows are with another at once, and nothing is wrong."""

import shutil
import time
from pathlib import Path

import pytest
from fix_database import Connection
from fix_worker import SIGCONT, SIGSTOP, Workers, failpoint, wait_claimed, wait_reached
from oracle import judge, queue_of, wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.resources import sql_folder

FREED = 2.0  # seconds within which a killed worker's rows are free; the lease is 60


def articles(shop: Connection, count: int = 40) -> None:
    shop.execute(
        "create table article (id bigint generated always as identity primary key, content text)"
    )
    shop.execute(
        "insert into article (content) select '글 ' || n from generate_series(1, %s) n", [count]
    )
    shop.execute("select embed.enable('article', array['content'])")


def free_after(shop: Connection, started: float) -> float:
    """Wait until no row is held; return the seconds since ``started``."""
    held = sql.SQL("select count(*) from {} where claimed_by is not null").format(
        queue_of(shop, "article")
    )
    wait_until(lambda: shop.execute(held).fetchone() == (0,))
    return time.monotonic() - started


@pytest.mark.parametrize(
    "place", ["after-claim", "after-read", "after-embed", "before-complete", "after-commit"]
)
def test_killed_at(place: str, shop: Connection, workers: Workers) -> None:
    """Each failpoint, one worker after another, as on a machine with a single one."""
    articles(shop)
    assert workers.start(up=False, **failpoint(place)).wait() == -9
    workers.start()
    wait_settled(shop, "article", timeout=20)  # less than the lease
    verdict = judge(shop, "article")
    assert verdict.good, verdict
    assert verdict.rows == 40


def test_nothing_is_claimed_before_the_lock_is_held(
    shop: Connection, workers: Workers, tmp_path: Path
) -> None:
    """Killed between the two, its rows would wait for the whole lease: it looks like a worker
    behind a pooler, which nobody can see die. It happened on a loaded machine."""
    articles(shop)
    late = Path(shutil.copytree(sql_folder(), tmp_path / "sql"))
    file = late / "queries" / "worker.sql"
    lock = "select pg_try_advisory_lock(1701667429, %(worker)s)"
    assert lock in file.read_text()
    file.write_text(file.read_text().replace(lock, f"{lock} from pg_sleep(2)"))
    assert workers.start(up=False, sql_folder=late, **failpoint("after-claim")).wait() == -9
    workers.start()
    wait_settled(shop, "article", timeout=20)
    assert judge(shop, "article").good


@pytest.mark.smoke
def test_another_has_the_rows_within_two_seconds(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    articles(shop)
    victim = workers.start(**failpoint("after-embed", gate))
    wait_reached(gate)
    workers.start()
    wait_claimed(shop, "article", 40)  # still all with the first
    started = time.monotonic()
    victim.kill()
    assert free_after(shop, started) < FREED
    wait_settled(shop, "article")
    assert judge(shop, "article").good


def test_a_worker_of_questions_frees_the_rows_of_passages(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    """It never looks at sources itself, but may be the only one there to see a peer go."""
    articles(shop)
    victim = workers.start(**failpoint("after-embed", gate))
    wait_reached(gate)
    workers.start("--only-queries")
    started = time.monotonic()
    victim.kill()
    assert free_after(shop, started) < FREED


def test_rows_of_a_killed_worker_do_not_wait_behind_a_backfill(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    articles(shop, 3)
    victim = workers.start(**failpoint("after-embed", gate))
    wait_reached(gate)
    shop.execute(
        """
        create table history (id integer primary key, content text);
        insert into history select n, '옛 글 ' || n from generate_series(1, 2000) n;
        select embed.enable('history', array['content'])
        """
    )
    # About 200 batches of 0.05 s, in windows of 100.
    workers.start(window="100", batch_tokens="200", testing_delay="0.05")
    wait_claimed(shop, "history")
    victim.kill()
    wait_settled(shop, "article", timeout=20)
    left = judge(shop, "history").missing
    assert left > 0, "the backfill was over before it could be in the way"
    assert judge(shop, "article").good


def test_a_worker_that_slept_through_its_lease(
    shop: Connection, workers: Workers, gate: Path
) -> None:
    articles(shop)
    sleeper = workers.start(**failpoint("after-embed", gate), lease="1")
    wait_reached(gate)
    # It sweeps in another thread, and would sleep with the lock of the sweep.
    swept = "select from embed.sweep_state where phase = 'done'"
    wait_until(lambda: shop.execute(swept).fetchone() is not None, 30, "a sweep that is done")
    sleeper.signal(SIGSTOP)
    shop.execute("update article set content = '새 ' || content where id % 2 = 0")
    shop.execute("delete from article where id % 5 = 0")
    workers.start(lease="1")
    wait_settled(shop, "article")
    verdict = judge(shop, "article")
    assert verdict.good, verdict
    vectors = "select id, xmin::text from article_embedding order by id"
    before = shop.execute(vectors).fetchall()
    gate.touch()
    sleeper.signal(SIGCONT)
    assert sleeper.terminate() == 0, sleeper
    assert shop.execute(vectors).fetchall() == before, "the late one wrote something"
    wait_settled(shop, "article")
    assert judge(shop, "article").good


def test_a_worker_that_sleeps_within_a_sweep_lets_another_sweep(
    shop: Connection, workers: Workers, gate: Path, tmp_path: Path
) -> None:
    """The server ends its session, and with it the lock; when it wakes, it connects again."""
    shop.execute("select embed.pause('embed.document')")
    articles(shop)
    quick = Path(shutil.copytree(sql_folder(), tmp_path / "sql"))
    file = quick / "queries" / "connection.sql"
    minute = "'idle_in_transaction_session_timeout', '60s'"
    assert file.read_text().count(minute) == 2
    file.write_text(file.read_text().replace(minute, minute.replace("60s", "2s")))
    sleeper = workers.start(sql_folder=quick, lease="1", **failpoint("in-sweep", gate))
    wait_reached(gate)
    sleeper.signal(SIGSTOP)
    workers.start(lease="1")
    wait_settled(shop, "article", timeout=30)
    (asleep,) = shop.execute("select clock_timestamp()").fetchone() or (None,)
    gate.touch()
    sleeper.signal(SIGCONT)
    back = "select from embed.worker where pid = %s and started_at > %s"
    wait_until(
        lambda: shop.execute(back, [sleeper.pid, asleep]).fetchone() is not None,
        30,
        f"the return of {sleeper}",
    )
    assert "Traceback" not in sleeper.output()
    shop.execute("update article set content = '새 ' || content")
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert sleeper.terminate() == 0, sleeper


@pytest.mark.parametrize("asked_to_end", [False, True])
def test_a_long_batch_keeps_its_lease(
    shop: Connection, workers: Workers, gate: Path, asked_to_end: bool
) -> None:
    articles(shop)
    worker = workers.start(**failpoint("after-embed", gate), lease="1")
    wait_reached(gate)
    workers.start(lease="1")
    if asked_to_end:
        worker.process.terminate()
    held = sql.SQL(
        "select count(distinct claimed_by), count(claimed_by), min(attempts) from {}"
    ).format(queue_of(shop, "article"))
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:  # three leases
        assert shop.execute(held).fetchone() == (1, 40, 1)
        wait_until(lambda: True)
    gate.touch()
    if asked_to_end:
        assert worker.wait() == 0, worker
    wait_settled(shop, "article")
    assert judge(shop, "article").good
