"""Connections that misbehave: noticed, said once, recovered from, and what changed is caught up."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import _UNSAFE_BUT_QUICK as UNSAFE_BUT_QUICK
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_pgbouncer import POOL, PgBouncer
from fix_proxy import Proxy
from fix_worker import WorkerProcess, Workers, failpoint, use_hash_model, wait_reached
from oracle import judge, queue_of, wait_settled
from psycopg import sql
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.database.migrate import migrate

LONG = 60.0  # seconds until a recovery counts as none: the longest pause is 10
OURS = "datname = current_database() and application_name like"
POOLER = "leads through a connection pooler"
CHECKED_SOON = {"answer_timeout": "2"}


def articles(shop: Connection) -> None:
    shop.execute(
        "create table article (id bigint generated always as identity primary key, content text);"
        "select embed.enable('article', array['content'])"
    )


def add(shop: Connection, text: str = "글") -> None:
    shop.execute("insert into article (content) values (%s)", [text])


def caught_up(shop: Connection) -> None:
    """Every row has its vector, also those that were changed meanwhile."""
    wait_settled(shop, "article", LONG)
    verdict = judge(shop, "article")
    assert verdict.good, verdict


def warnings(worker: WorkerProcess, about: str = "") -> list[str]:
    lines = worker.output().splitlines()
    return [line for line in lines if ("WARNING" in line or "ERROR" in line) and about in line]


def wait_said(worker: WorkerProcess, about: str) -> None:
    wait_until(lambda: warnings(worker, about), LONG, f"{about!r} in the log of {worker}")


def ask(shop: Connection) -> None:
    """A question that no cache knows gets its vector."""
    shop.execute("set embed.query_timeout = '30s'")
    shop.execute("select embed.query('질문 ' || clock_timestamp())")


def backends(shop: Connection, name: str) -> set[int]:
    found = shop.execute(f"select pid from pg_stat_activity where {OURS} %s", [f"{name}%"])
    return {pid for (pid,) in found.fetchall()}


def registered(shop: Connection, worker: WorkerProcess) -> None:
    """Wait for a worker that may have no lock to show."""
    query = "select from embed.worker where pid = %s"
    wait_until(lambda: shop.execute(query, [worker.pid]).fetchone() is not None, LONG)


# A server of our own, which may be stopped


@pytest.fixture(scope="module")
def frail(new_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = new_cluster(**UNSAFE_BUT_QUICK)
    cluster.start()
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute("create database migrated")
    migrate(cluster.url("migrated"))
    with psycopg.connect(cluster.url("migrated"), autocommit=True) as connection:
        use_hash_model(connection)
    return cluster


@pytest.fixture
def frail_workers(frail: Cluster, tmp_path: Path) -> Iterator[Workers]:
    with new_database(frail, "migrated") as url:
        made = Workers(url, tmp_path)
        try:
            yield made
        finally:
            made.end()
            frail.start()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_server_restarts(mode: str, frail: Cluster, frail_workers: Workers) -> None:
    with connect(frail_workers.url) as shop:
        articles(shop)
    worker = frail_workers.start()
    frail.restart(mode)
    with connect(frail_workers.url) as shop:
        add(shop)
        caught_up(shop)
        frail_workers.wait_up(worker, LONG)
    # Lost, refused, starting: each is said by one of three connections, however often tried.
    said = [line.split(": ", 2)[2] for line in warnings(worker)]
    assert said
    assert len(set(said)) == len(said), worker
    assert worker.terminate() == 0


def test_a_server_that_takes_no_writes(frail: Cluster, frail_workers: Workers) -> None:
    with connect(frail_workers.url) as shop, psycopg.connect(frail.url(), autocommit=True) as boss:
        articles(shop)
        worker = frail_workers.start()
        add(shop)
        caught_up(shop)
        boss.execute("alter system set default_transaction_read_only = on")
        boss.execute("select pg_reload_conf()")
        try:
            wait_said(worker, "default_transaction_read_only")
            shop.execute("set default_transaction_read_only = off")
            add(shop, "다른 글")
        finally:
            boss.execute("set default_transaction_read_only = off")
            boss.execute("alter system reset default_transaction_read_only")
            boss.execute("select pg_reload_conf()")
        caught_up(shop)
        assert len(warnings(worker, "default_transaction_read_only")) == 1
        assert len(warnings(worker)) <= 5, worker
    assert worker.terminate() == 0


def test_a_standby_that_is_away(frail: Cluster, frail_workers: Workers) -> None:
    """Commits of the application wait for it, if they want to; rows and questions go on."""
    name = sql.Identifier(frail_workers.url.rpartition("/")[2])
    with connect(frail_workers.url) as shop, psycopg.connect(frail.url(), autocommit=True) as boss:
        set_up_loopback(shop)
        articles(shop)
        boss.execute(sql.SQL("alter database {} set synchronous_commit = on").format(name))
        worker = frail_workers.start(both_lanes=True)
        add(shop)
        caught_up(shop)
        # Stands for the WAL that the server writes by chance while a question is left.
        shop.execute("alter table embed.question set logged")
        boss.execute("alter system set synchronous_standby_names = 'away'")
        boss.execute("select pg_reload_conf()")
        wait_until(lambda: shop.execute("show synchronous_standby_names").fetchone() == ("away",))
        try:
            add(shop, "다른 글")
            caught_up(shop)
            ask(shop)
        finally:
            boss.execute("alter system reset synchronous_standby_names")
            boss.execute("select pg_reload_conf()")
        assert not warnings(worker), worker
    assert worker.terminate() == 0


@pytest.mark.slow
def test_failover_to_a_replica_that_is_promoted(
    frail: Cluster,
    frail_workers: Workers,
    new_cluster: Callable[..., Cluster],
) -> None:
    with connect(frail_workers.url) as shop:
        articles(shop)
        add(shop)
    assert frail.port is not None
    proxy = Proxy("127.0.0.1", frail.port)
    try:
        worker = frail_workers.start(url=proxy.url(frail_workers.url))
        replica = new_cluster(**UNSAFE_BUT_QUICK)
        frail.stop()
        shutil.copytree(frail.data, replica.data, copy_function=_copy_with_owner)
        shutil.copystat(frail.data, replica.data)
        frail.account.own(replica.data)
        for folder in (path for path in replica.data.rglob("*") if path.is_dir()):
            frail.account.own(folder)
        shutil.copy(frail.passfile, replica.passfile)
        signal_file = replica.data / "standby.signal"
        signal_file.touch()
        frail.account.own(signal_file)
        replica._pg_ctl_start()
        assert replica.port is not None
        proxy.target = ("127.0.0.1", replica.port)
        wait_said(worker, "read-only replica")
        name = frail_workers.url.rpartition("/")[2]
        with psycopg.connect(replica.url("postgres"), autocommit=True) as boss:
            boss.execute("select pg_promote()")
        with connect(replica.url(name)) as shop:
            add(shop, "다른 글")
            caught_up(shop)
        assert len(warnings(worker, "read-only replica")) == 1
        assert worker.terminate() == 0
    finally:
        proxy.end()


def _copy_with_owner(source: str, target: str) -> None:
    shutil.copy2(source, target)
    status = Path(source).stat()
    shutil.chown(target, status.st_uid, status.st_gid)


def test_nothing_is_there_yet(frail: Cluster, tmp_path: Path) -> None:
    """No server, then no database, then no schema: the worker waits for each, and starts."""
    frail.stop()
    workers = Workers(frail.url("later"), tmp_path)
    try:
        worker = workers.start(up=False)
        wait_said(worker, "cannot connect")
        frail.start()
        wait_said(worker, "does not exist")
        with psycopg.connect(frail.url(), autocommit=True) as boss:
            boss.execute("create database later")
        wait_said(worker, "embedworker migrate")
        migrate(workers.url)
        with connect(workers.url) as shop:
            use_hash_model(shop)
            articles(shop)
            add(shop)
            workers.wait_up(worker, LONG)
            caught_up(shop)
        said = [line.split(" ", 3)[3] for line in warnings(worker)]
        assert len(said) <= 6, said
        assert len(set(said)) == len(said), said
        assert worker.terminate() == 0
    finally:
        workers.end()
        frail.start()
        with psycopg.connect(frail.url(), autocommit=True) as boss:
            boss.execute("drop database if exists later with (force)")


# One connection after the other


def test_each_connection_is_terminated(shop: Connection, workers: Workers) -> None:
    articles(shop)
    set_up_loopback(shop)
    worker = workers.start(both_lanes=True, up=False)
    add(shop)
    caught_up(shop)
    ask(shop)
    for number, kind in enumerate(("listen", "keep", "passages", "questions")):
        before = wait_until(lambda kind=kind: backends(shop, f"embedworker {kind} "), LONG)
        seen = len(warnings(worker))
        shop.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS} %s",
            [f"embedworker {kind} %"],
        )
        shop.execute("set embed.notify = off")
        add(shop, f"글 {number}")
        caught_up(shop)
        ask(shop)

        def is_back(kind: str = kind, before: set[int] = before) -> bool:
            now = backends(shop, f"embedworker {kind} ")
            return len(now) == len(before) and not now & before

        wait_until(is_back, LONG, f"new connections of {kind}")
        said = warnings(worker)[seen:]
        assert len(said) == len(before), said  # a line for each connection that was lost
    held = "select bool_and(lock_held), count(*) from embed.worker"
    wait_until(lambda: shop.execute(held).fetchone() == (True, 2), LONG)
    assert worker.terminate() == 0


def test_the_address_of_notifications_is_down(
    shop: Connection, workers: Workers, proxy: Proxy
) -> None:
    """The rest goes on: the worker polls, and its signs of life stand for the lock."""
    articles(shop)
    worker = workers.start(listen_url=proxy.url(workers.url))
    proxy.cut()
    state = "select lock_held from embed.worker where pid = %s"
    wait_until(lambda: shop.execute(state, [worker.pid]).fetchone() == (False,), LONG)
    add(shop)
    caught_up(shop)
    # What a peer does that has seen the lock go.
    shop.execute("delete from embed.worker_session")
    wait_until(lambda: shop.execute(state, [worker.pid]).fetchone() == (False,), LONG)
    proxy.restore()
    wait_until(lambda: shop.execute(state, [worker.pid]).fetchone() == (True,), LONG)
    said = [line.split(" ", 3)[3] for line in warnings(worker)]
    assert all("notifications" in line for line in said), said
    assert len(said) <= 6, said
    assert len(set(said)) == len(said), said
    assert worker.terminate() == 0


@pytest.mark.smoke
def test_no_notification_ever(shop: Connection, workers: Workers) -> None:
    database = sql.Identifier(shop.info.dbname)
    shop.execute(sql.SQL("alter database {} set embed.notify = off").format(database))
    articles(shop)
    worker = workers.start()
    with connect(workers.url) as application:
        for number in range(3):
            add(application, f"글 {number}")
            caught_up(application)
    assert warnings(worker) == []


# The network between


@pytest.fixture
def far(shop: Connection, workers: Workers, proxy: Proxy) -> WorkerProcess:
    """A worker whose connections go through the proxy, with a vector made."""
    articles(shop)
    add(shop)
    worker = workers.start(url=proxy.url(workers.url, connect_timeout="2"), **CHECKED_SOON)
    caught_up(shop)
    return worker


@pytest.mark.smoke
def test_the_network_is_cut(shop: Connection, far: WorkerProcess, proxy: Proxy) -> None:
    proxy.cut()
    wait_said(far, "cannot connect")
    add(shop, "다른 글")
    assert judge(shop, "article").missing == 1
    proxy.restore()
    caught_up(shop)
    assert len(warnings(far)) <= 6, warnings(far)
    assert far.terminate() == 0


@pytest.mark.parametrize("new_ones", [False, True])
def test_half_open(new_ones: bool, shop: Connection, far: WorkerProcess, proxy: Proxy) -> None:
    """All goes silent while the kernel acknowledges: only an answer that does not come tells.

    With ``new_ones`` new connections are served, as by a firewall that has forgotten the old ones.
    """
    if new_ones:
        proxy.forget()
    else:
        proxy.hush()
    add(shop, "다른 글")
    wait_said(far, "has not answered a statement for 2 s")
    if not new_ones:
        assert judge(shop, "article").missing == 1
        proxy.restore()
    caught_up(shop)
    said = [line.split(" ", 3)[3] for line in warnings(far)]
    assert len(said) <= 6, said
    assert far.terminate() == 0


def test_a_statement_that_takes_long_is_not_given_up(hash_database: str) -> None:
    with connect(hash_database, answer_timeout=1) as connection:
        assert connection.execute("select 1 from pg_sleep(3.5)").fetchone() == (1,)


# What the role may see


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("transaction_timeout", "20ms"),
        ("idle_in_transaction_session_timeout", "1ms"),
        ("idle_session_timeout", "300ms"),
    ],
)
def test_what_the_database_sets_for_sessions_of_others(
    setting: str, value: str, shop: Connection, workers: Workers
) -> None:
    """The worker waits for work, counts, and builds an index under a lock, as if it were not so."""
    if shop.execute("select current_setting(%s, true)", [setting]).fetchone() == (None,):
        pytest.skip(f"this server has no {setting}")
    articles(shop)
    shop.execute(
        sql.SQL("alter database {} set {} = {}").format(
            sql.Identifier(shop.info.dbname), sql.Identifier(setting), sql.Literal(value)
        )
    )
    worker = workers.start(index_after_rows="100")
    shop.execute("insert into article (content) select '글 ' || n from generate_series(1, 200) n")
    caught_up(shop)
    index = "select index_state from embed.status where source = 'article'::regclass"
    wait_until(lambda: shop.execute(index).fetchone() == ("valid",), LONG)
    seen = "select lock_held from embed.worker where seen_at > started_at + interval '6 s'"
    wait_until(lambda: shop.execute(seen).fetchone() == (True,), LONG)
    add(shop)
    caught_up(shop)
    assert warnings(worker) == []
    assert worker.terminate() == 0


@pytest.fixture
def clerk(shop: Connection, workers: Workers) -> Iterator[str]:
    """URL of a role that may nothing yet; ``grant embed_worker to clerk`` lets it work."""
    shop.execute("create role clerk login password 'made up'")
    yield make_conninfo(workers.url, user="clerk", password="made up")
    workers.end()
    shop.execute("drop role clerk")


@pytest.mark.parametrize("is_member", [False, True])
def test_a_role_without_permissions(
    shop: Connection, workers: Workers, clerk: str, is_member: bool
) -> None:
    """By the hint; a member lacks them after a restore without grants."""
    articles(shop)
    add(shop)
    if is_member:
        shop.execute("grant embed_worker to clerk")
        shop.execute("revoke all on embed.schema_version from embed_worker")
    worker = workers.start(url=clerk, up=False)
    wait_said(worker, "permission denied")
    if is_member:
        migrate(workers.url)
    else:
        shop.execute("grant embed_worker to clerk")
    caught_up(shop)
    said = warnings(worker)
    assert len(said) == 1, said
    assert 'Have a superuser run: grant embed_worker to "clerk". If it is a member, run' in said[0]
    assert worker.terminate() == 0


# PgBouncer in transaction mode


def left_in_sessions(pooled: str) -> list[tuple[Any, ...]]:
    """What each session of the pool would do to the application that gets it next."""
    with ExitStack() as all_of_them:
        sessions = {}
        for _ in range(POOL):
            # Open transactions: each has a session of its own.
            client = all_of_them.enter_context(psycopg.connect(pooled, prepare_threshold=None))
            (pid, *state) = client.execute(
                "select pg_backend_pid(), current_setting('lock_timeout'),"
                " current_setting('row_security'), current_setting('embed.query_timeout', true),"
                " (select count(*) from pg_listening_channels()),"
                " (select count(*) from pg_prepared_statements),"
                " (select count(*) from pg_locks where locktype = 'advisory'"
                "  and pid = pg_backend_pid())"
            ).fetchone() or (0,)
            sessions[pid] = tuple("" if value is None else value for value in state)
        assert len(sessions) == POOL
    return list(sessions.values())


CLEAN = ("0", "on", "", 0, 0, 0)


def test_a_worker_through_pgbouncer(
    shop: Connection, workers: Workers, pgbouncer: PgBouncer
) -> None:
    articles(shop)
    set_up_loopback(shop)
    pooled = pgbouncer.url(workers.url)
    worker = workers.start(both_lanes=True, up=False, url=pooled)
    wait_until(lambda: shop.execute("select count(*) from embed.worker").fetchone() == (2,), LONG)
    for number in range(3):
        add(shop, f"글 {number}")
        caught_up(shop)
        ask(shop)
    shop.execute("select embed.sweep('article')")
    caught_up(shop)
    assert shop.execute("select bool_or(lock_held) from embed.worker").fetchone() == (False,)
    # Longer than it takes to prepare what is executed often, and for a peer to bury the silent.
    seen = "select count(*) from embed.worker where seen_at > started_at + interval '7 s'"
    wait_until(lambda: shop.execute(seen).fetchone() == (2,), LONG)
    assert left_in_sessions(pooled) == [CLEAN] * POOL
    said = warnings(worker)
    assert len(said) == len(warnings(worker, POOLER)) == 2, said  # once for each of two processes
    assert worker.terminate() == 0
    assert left_in_sessions(pooled) == [CLEAN] * POOL


def test_what_a_worker_writes_through_pgbouncer_is_told_apart(
    hash_database: str, pgbouncer: PgBouncer
) -> None:
    pooled = pgbouncer.url(hash_database)
    writing = "select coalesce(current_setting('embed.writing', true), '')"
    with connect(pooled, writing=True) as connection:
        assert connection.execute(writing).fetchone() == ("on",)
    with psycopg.connect(pooled, prepare_threshold=None) as application:
        assert application.execute(writing).fetchone() == ("",)


def test_a_worker_through_pgbouncer_is_killed(
    shop: Connection, workers: Workers, pgbouncer: PgBouncer, gate: Path
) -> None:
    """Nobody sees it at once; its rows come round when their lease ends."""
    articles(shop)
    pooled = pgbouncer.url(workers.url)
    assert workers.start("--once", up=False, url=pooled).wait(LONG) == 0  # the first sweep is over
    add(shop)
    victim = workers.start(up=False, url=pooled, lease="1", **failpoint("after-embed", gate))
    wait_reached(gate)
    other = workers.start(up=False, url=pooled, lease="1")
    registered(shop, other)
    # It lives, with the model at work for several leases: nobody takes the row over.
    since = shop.execute("select clock_timestamp() + interval '3 s'").fetchone()
    held = sql.SQL("select count(claimed_by), min(attempts) from {}").format(
        queue_of(shop, "article")
    )
    past = "select clock_timestamp() > %s"
    while shop.execute(past, since).fetchone() != (True,):
        assert shop.execute(held).fetchone() == (1, 1)
    victim.kill()
    caught_up(shop)
    gone = "select count(*) from embed.worker_session where pid = %s"
    wait_until(lambda: shop.execute(gone, [victim.pid]).fetchone() == (0,), LONG)
    assert other.terminate() == 0


def test_notifications_by_a_direct_address_beside_pgbouncer(
    shop: Connection, workers: Workers, pgbouncer: PgBouncer
) -> None:
    articles(shop)
    worker = workers.start(url=pgbouncer.url(workers.url), listen_url=workers.url)  # has its lock
    add(shop)
    caught_up(shop)
    assert warnings(worker) == []
    assert worker.terminate() == 0


def test_pgbouncer_given_for_notifications(
    shop: Connection, workers: Workers, pgbouncer: PgBouncer
) -> None:
    """Through it our own NOTIFY may come back to us; that of others does not."""
    articles(shop)
    pooled = pgbouncer.url(workers.url)
    worker = workers.start(url=workers.url, listen_url=pooled, up=False)
    wait_said(worker, "notifications do not arrive")
    add(shop)
    caught_up(shop)
    assert shop.execute("select lock_held from embed.worker").fetchall() == [(False,)]
    assert left_in_sessions(pooled) == [CLEAN] * POOL
    assert len(warnings(worker)) == 1, worker
    assert worker.terminate() == 0


def test_pgbouncer_that_keeps_sessions(
    shop: Connection, workers: Workers, session_pgbouncer: PgBouncer
) -> None:
    articles(shop)
    through = session_pgbouncer.url(workers.url)
    worker = workers.start(url=workers.url, listen_url=through)  # waits for its lock
    assert warnings(worker) == []
    assert worker.terminate() == 0


def test_the_application_through_pgbouncer(
    shop: Connection, workers: Workers, pgbouncer: PgBouncer
) -> None:
    set_up_loopback(shop)
    articles(shop)
    workers.start(both_lanes=True, up=False)
    pooled = pgbouncer.url(workers.url)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as application:
        for number in range(3):
            add(application, f"글 {number}")
        application.execute("update article set content = '새 글' where id = 1")
        application.execute("delete from article where id = 2")
        caught_up(shop)
        for _ in range(3):
            ask(application)
            found = application.execute(
                "select (row).content from embed.search(null::article, '새 글', k => 1)"
            ).fetchall()
            assert found == [("새 글",)]
        with application.transaction():
            application.execute("set transaction isolation level repeatable read read only")
            nearest = application.execute(
                "select id from article_embedding order by embedding <=> embed.query('뭐') limit 5"
            ).fetchall()
            assert len(nearest) == 2


def test_the_schema_is_set_up_through_pgbouncer(bare_database: str, pgbouncer: PgBouncer) -> None:
    pooled = pgbouncer.url(bare_database)
    assert migrate(pooled) == []
    assert migrate(pooled) == []
    assert left_in_sessions(pooled) == [CLEAN] * POOL
