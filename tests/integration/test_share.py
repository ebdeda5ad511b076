"""A worker of a fleet, without Ray: its tables, its connections, its limit."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from fix_database import Connection
from fix_drain import source_of
from oracle import judge, queue_of, wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.fleet.progress import Progress
from embedworker.fleet.token_bucket import TokenBucket
from embedworker.service.models import Models
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.passage_runner import PassageRunner
from embedworker.service.share import Share
from embedworker.settings import load

LONG = 60.0  # seconds on a machine that does much else
NAMES = """
select array_agg(application_name order by application_name) from pg_stat_activity
where application_name ~ '^embedworker [a-z]+ [0-9]+$' and datname = current_database()
"""


class LocalLimit:
    """Asks a bucket of this process; notes the changes of the application, which are not asked."""

    def __init__(self, rate: float) -> None:
        self._bucket = TokenBucket(rate, time.monotonic())
        self._unused = 0
        self.refused = 0
        self.unasked = 0

    def take(self, wanted: int) -> int:
        unused, self._unused = self._unused, 0
        allowed, _ = self._bucket.take(wanted, unused, time.monotonic())
        self.refused += allowed == 0
        return allowed

    def give_back(self, unused: int) -> None:
        self._unused += unused
        self.unasked -= min(0, unused)


@contextmanager
def fleet_worker(url: str, share: Share, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    settings = load(database_url=url, index_after_rows=10, poll_max=0.2)
    telemetry, stopped = Telemetry("passages"), threading.Event()
    runner = PassageRunner(
        url,
        settings,
        Models(settings, threads=1, telemetry=telemetry),
        telemetry,
        stopped=stopped,
        deaf=threading.Event(),
        exit_when_hung=False,
        share=share,
    )
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        runner.wake.set()
        thread.join()


def make(shop: Connection, name: str, rows: int) -> int:
    table = sql.Identifier(name)
    shop.execute(sql.SQL("create table {} (id integer primary key, content text)").format(table))
    shop.execute(
        sql.SQL("insert into {} select n, 'text ' || n from generate_series(1, {}) n").format(
            table, rows
        )
    )
    shop.execute("select embed.enable(%s::regclass, array['content'])", [name])
    return source_of(shop, name).id


def test_it_embeds_its_tables_with_three_connections_and_shows_that_it_lives(
    shop: Connection, hash_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make(shop, "article", 300)
    make(shop, "other", 3)
    with (
        closing(Progress(hash_database, frozenset([mine]))) as progress,
        fleet_worker(hash_database, Share(frozenset([mine])), monkeypatch),
    ):
        assert not progress.drained(progress.look())
        wait_until(lambda: progress.drained(progress.look()), LONG, "a drained table")
        assert judge(shop, "article").good
        (names,) = shop.execute(NAMES).fetchone() or ([],)
        (held,) = shop.execute("select bool_and(lock_held) from embed.worker").fetchone() or (None,)
        assert [name.split()[1] for name in names] == ["keep", "passages", "write"]
        assert held is True
        # The lock goes with the connection, and comes back on another.
        heartbeat = (
            "select pid from pg_stat_activity where application_name like 'embedworker keep %'"
        )
        (before,) = shop.execute(heartbeat).fetchone() or (0,)
        shop.execute("select pg_terminate_backend(%s)", [before])
        holds = (
            "select count(*) from pg_locks l join pg_stat_activity a using (pid)"
            " join embed.worker w on l.classid = 1701667429 and l.objid = w.id and w.lock_held"
            " where a.application_name like 'embedworker keep %%' and l.granted and l.pid <> %s"
        )
        wait_until(lambda: shop.execute(holds, [before]).fetchone() == (1,), LONG, "its lock")
        shop.execute("insert into article values (1000, 'a change')")
        wait_settled(shop, "article", LONG)
    assert judge(shop, "article").good
    assert judge(shop, "other").missing == 3
    index = "select index_state from embed.status where name = 'article'"
    assert shop.execute(index).fetchone() == ("none",)


def test_a_backfill_keeps_below_its_rate_limit_and_a_change_does_not_wait_for_it(
    shop: Connection, hash_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make(shop, "article", 5000)
    limit = LocalLimit(200.0)
    started = time.monotonic()
    with fleet_worker(hash_database, Share(frozenset([mine]), limit), monkeypatch):
        vectors = "select count(*) from article_embedding"
        wait_until(lambda: shop.execute(vectors).fetchone() > (50,), LONG, "the first vectors")
        shop.execute("insert into article values (9000, 'a change')")
        changed = "select from article_embedding where id = 9000"
        wait_until(lambda: shop.execute(changed).fetchall(), 10, "the vector of the change")
        (count,) = shop.execute(vectors).fetchone() or (0,)
        assert count <= 200 * (time.monotonic() - started + 1) + 1
        assert count < 5000
    assert limit.refused > 0
    assert limit.unasked >= 1
    held = sql.SQL("select count(*) from {} where claimed_by is not null").format(
        queue_of(shop, "article")
    )
    assert shop.execute(held).fetchone() == (0,)  # all is handed back


def test_a_table_is_drained_although_the_application_changes_it(
    shop: Connection, hash_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits since before the first look, or the last sweep, counts; what comes later not."""
    mine = make(shop, "article", 3)
    with fleet_worker(hash_database, Share(frozenset([mine])), monkeypatch):
        wait_settled(shop, "article", LONG)
    with (
        connect(hash_database) as other,
        closing(Progress(hash_database, frozenset([mine]))) as progress,
    ):
        other.execute("update article set content = 'earlier' where id = 1")
        assert not progress.drained(progress.look())
        with fleet_worker(hash_database, Share(frozenset([mine])), monkeypatch):
            wait_settled(shop, "article", LONG)
        assert progress.drained(progress.look())
        other.execute("update article set content = 'later' where id = 1")
        assert progress.drained(progress.look())
        other.execute("select embed.sweep('article')")
        assert not progress.drained(progress.look())
