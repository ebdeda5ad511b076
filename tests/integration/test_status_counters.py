"""The counters behind ``embed.status``: the numbers that a count of every row finds, always."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, make_dead, source_of
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from waiting import wait_until

from embedworker.database.statements import statement
from embedworker.service.counting import Counting, count

COUNTS = ("rows", "embedded", "pending", "stale", "dead", "removing", "truncated", "split")


@pytest.fixture
def article(app: Connection, drain: Drain) -> Connection:
    """Forty embedded rows, two of them in several passages, and two without text."""
    app.execute("create table article (id integer primary key, title text)")
    app.execute("insert into article select n, 'title ' || n from generate_series(1, 38) n")
    app.execute(
        "insert into article select n, repeat('word ', 3000) from generate_series(39, 40) n"
    )
    app.execute("insert into article values (41, ''), (42, null)")
    app.execute("select embed.enable('article', array['title'])")
    assert drain() == []
    return app


def line(connection: Connection, what: str = "embed.status", name: str = "article") -> Any:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(f"select * from {what} where name = %s".encode(), [name]).fetchone()
    assert row is not None
    return row


def counts(connection: Connection, *, kept: bool = True, name: str = "article") -> tuple[int, ...]:
    """What the view shows, which must be what a count of every row finds."""
    seen = line(connection, name=name)
    exact = line(connection, "embed.status_exact()", name)
    assert seen["error"] is None
    assert [seen[column] for column in COUNTS] == [exact[column] for column in COUNTS]
    assert seen["rows"] == seen["embedded"] + seen["pending"] + seen["dead"]
    assert exact["estimated"] is False
    if kept:
        assert seen["estimated"] is False
        assert seen["counted_at"] < exact["counted_at"], "this is not a count on the spot"
    return tuple(seen[column] for column in COUNTS)


@pytest.mark.smoke
def test_after_a_backfill(article: Connection) -> None:
    assert counts(article) == (40, 40, 0, 0, 0, 0, 0, 2)
    assert line(article)["rows_per_second"] > 0


CHANGES = {
    "insert": ("insert into article values (50, 'new'), (51, '')", (41, 40, 1, 0, 0, 0)),
    "update": ("update article set title = title || '!' where id < 4", (40, 37, 3, 3, 0, 0)),
    "delete": ("delete from article where id < 4", (37, 37, 0, 0, 0, 3)),
    "emptied": ("update article set title = '' where id < 4", (37, 37, 0, 0, 0, 3)),
    "key": ("update article set id = id + 100 where id = 1", (40, 39, 1, 0, 0, 1)),
    "twice": ("delete from article where id = 1; insert into article values (1, 'again')", None),
    "shorter": ("update article set title = 'short' where id = 39", (40, 39, 1, 1, 0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_waits_and_what_was_done(article: Connection, drain: Drain, change: str) -> None:
    changing, expected = CHANGES[change]
    article.execute(changing.encode())
    before = counts(article)
    if expected is not None:
        assert before[:6] == expected
    assert drain() == []
    pending, removing = counts(article)[2], counts(article)[5]
    assert (pending, removing) == (0, 0)


def test_rows_that_fail_and_dead_ones(article: Connection, drain: Drain) -> None:
    article.execute("update article set title = '<<fail>>' where id in (1, 2)")
    article.execute("insert into article values (60, '<<fail>>')")
    assert counts(article)[:5] == (41, 38, 3, 2, 0)
    drain()
    assert counts(article)[:5] == (41, 38, 3, 0, 0), "the vectors of older texts are gone"
    make_dead(article, "article")
    assert counts(article)[:5] == (41, 38, 0, 0, 3)
    article.execute("update article set title = 'well' where id = 1")
    assert counts(article)[:5] == (41, 38, 1, 0, 2), "a change of its text revives it"
    article.execute("delete from article where id = 2")
    article.execute("update article set title = 'fine' where id = 60")
    assert drain() == []
    assert counts(article)[:5] == (40, 40, 0, 0, 0)


@pytest.mark.parametrize("again", [False, True])
def test_truncate(article: Connection, lane: Lane, again: bool) -> None:
    article.execute("truncate article")
    if again:
        article.execute("insert into article values (1, 'one'), (90, 'another')")
    seen = line(article)
    rows = 2 if again else 0
    assert (seen["rows"], seen["embedded"], seen["pending"]) == (rows, 0, rows)
    assert seen["estimated"]
    assert lane.drain() == []
    assert counts(article) == (rows, rows, 0, 0, 0, 0, 0, 0)


def test_changes_that_no_trigger_saw(article: Connection, drain: Drain) -> None:
    article.execute("alter table article disable trigger user")
    article.execute("delete from article where id < 5; insert into article values (70, 'unseen')")
    article.execute("delete from article_embedding where id in (10, 11)")
    article.execute("alter table article enable trigger user")
    article.execute(
        "insert into embed.sweep_request (source, reason) select id, 'by hand'"
        " from embed.source where relation = 'article'::regclass"
    )
    assert line(article)["estimated"], "a sweep was asked for"
    assert drain() == []
    assert counts(article) == (37, 37, 0, 0, 0, 0, 0, 2)


@pytest.mark.smoke
def test_disabled_and_enabled_again(article: Connection, drain: Drain) -> None:
    article.execute("select embed.disable('article')")
    article.execute("insert into article values (80, 'meanwhile')")
    article.execute("select embed.enable('article', array['title'])")
    seen = line(article)
    assert seen["counted_at"] is not None, "a small table is counted at once"
    assert (seen["rows"], seen["estimated"]) == (41, False)
    assert drain() == []
    assert counts(article) == (41, 41, 0, 0, 0, 0, 0, 2)


@pytest.mark.smoke
def test_another_filter(article: Connection, drain: Drain) -> None:
    article.execute("select embed.enable('article', array['title'], filter => 'id > 20')")
    assert drain() == []
    assert counts(article) == (20, 20, 0, 0, 0, 0, 0, 2)


@pytest.mark.smoke
def test_vectors_of_another_model_are_stale(article: Connection) -> None:
    number = source_of(article, "article").id
    other = """
        insert into embed.fingerprint
            (digest, model, revision, query_prefix, passage_prefix, pooling, dimensions, max_tokens)
        select 'other', model, '2', '', '', pooling, dimensions, max_tokens
        from embed.fingerprint
        limit 1
        returning id
        """
    (fingerprint,) = article.execute(other).fetchone() or (0,)
    activate = "update embed.source_state set fingerprint = %s where source = %s"
    article.execute(activate, [fingerprint, number])
    assert counts(article)[:4] == (40, 0, 40, 40)
    article.execute("update article set title = 'x' where id = 1; delete from article where id = 2")
    assert counts(article)[:6] == (39, 0, 39, 39, 0, 1)


def test_a_column_of_the_table(app: Connection, drain: Drain) -> None:
    app.execute("create table article (id integer primary key, title text, v vector(384))")
    app.execute(
        "insert into article (id, title) select n, 'title ' || n from generate_series(1, 9) n"
    )
    app.execute("select embed.enable('article', array['title'], into_column => 'v')")
    assert drain() == []
    assert counts(app)[:3] == (9, 9, 0)
    app.execute("update article set title = 'x' where id = 1; delete from article where id = 2")
    assert counts(app)[:3] == (8, 7, 1)
    assert drain() == []
    assert counts(app)[:3] == (8, 8, 0)


def test_a_key_of_two_columns_in_partitions(app: Connection, drain: Drain) -> None:
    app.execute(
        """
        create table article (
            "Id" integer, kind text, title text, primary key ("Id", kind)
        ) partition by list (kind);
        create table article_a partition of article for values in ('a');
        create table article_b partition of article for values in ('b');
        insert into article values (1, 'a', 'one'), (1, 'b', 'two'), (2, 'b', null);
        select embed.enable('article', array['title']);
        """
    )
    assert drain() == []
    assert counts(app)[:3] == (2, 2, 0)
    app.execute("delete from article_a; update article_b set title = 'x'")
    assert counts(app)[:6] == (2, 0, 2, 1, 0, 1)
    assert drain() == []
    assert counts(app)[:3] == (2, 2, 0)


def test_a_statement_that_is_rolled_back_counts_nothing(article: Connection, lane: Lane) -> None:
    """What a crash between two steps leaves: the vectors and their count, or neither."""
    article.execute("update article set title = 'changed' where id < 6")
    with lane.connection.transaction(force_rollback=True):
        while lane.lane.step():
            pass
        inside = line(lane.connection)
        assert inside["pending"] == 0
    assert counts(article)[:4] == (40, 35, 5, 5)


def test_counters_of_workers_that_are_gone_are_kept(article: Connection, drain: Drain) -> None:
    number = source_of(article, "article").id
    of_workers = f"select count(*) from embed.source_tally where source = {number} and worker <> 0"
    article.execute(
        f"update embed.source_tally set worker = 999999 where source = {number}".encode()
    )
    assert counts(article)[:2] == (40, 40)
    article.execute(
        f"insert into embed.sweep_request (source, reason) values ({number}, 'x')".encode()
    )
    assert drain() == []
    assert counts(article)[:2] == (40, 40)
    assert article.execute(of_workers.encode()).fetchone() == (0,)


def test_counters_that_are_wrong_are_put_right_by_a_sweep(
    article: Connection, drain: Drain
) -> None:
    number = source_of(article, "article").id
    article.execute(
        f"update embed.source_tally set vectors = vectors + 7, split = 9 where source = {number};"
        f"update embed.source_state set unqueued = 3, orphans = 4 where source = {number};"
        f"insert into embed.sweep_request (source, reason) values ({number}, 'x')".encode()
    )
    assert drain() == []
    assert counts(article) == (40, 40, 0, 0, 0, 0, 0, 2)


def test_more_waits_than_is_looked_at(article: Connection, drain: Drain) -> None:
    article.execute("insert into article select n, 'title ' || n from generate_series(100, 3099) n")
    article.execute("update article set title = title || '!' where id < 11")
    seen = line(article)
    assert seen["estimated"]
    assert abs(seen["rows"] - 3040) <= 30
    assert abs(seen["pending"] - 3010) <= 30
    assert seen["rows"] == seen["embedded"] + seen["pending"] + seen["dead"]
    assert drain() == []
    assert counts(article)[:3] == (3040, 3040, 0)


def test_an_unlogged_table_that_a_crash_has_emptied(
    app: Connection, drain: Drain, lane: Lane
) -> None:
    app.execute("create unlogged table article (id integer primary key, title text)")
    app.execute("insert into article values (1, 'one'), (2, 'two')")
    app.execute("select embed.enable('article', array['title'])")
    assert drain() == []
    assert counts(app)[:2] == (2, 2)
    number = source_of(app, "article").id
    # What the server leaves of unlogged tables; no trigger sees it.
    app.execute("alter table article disable trigger user")
    app.execute(
        f"truncate article, article_embedding, embed.inbox_{number}, embed.queue_{number}".encode()
    )
    app.execute("alter table article enable trigger user")
    assert counts(app)[:3] == (0, 0, 0)
    app.execute("insert into article values (1, 'again')")
    app.execute(
        f"update embed.source_state set counted_at = pg_postmaster_start_time() - interval '1 h'"
        f", recount_at = counted_at - interval '2 h' where source = {number}".encode()
    )
    assert lane.drain() == []
    assert counts(app)[:3] == (1, 1, 0)


def test_a_sweep_that_ends_while_rows_are_counted(article: Connection, lane: Lane) -> None:
    """The count has seen rows that the sweep has queued since; it is to be made again."""
    source = source_of(article, "article")
    known = {"source": source.id}
    swept = {**known, "missing": 3, "orphaned": 0, "done": True, "recount": True}
    at, asked, drift, _, orphans = (
        article.execute(statement("count_measure"), known).fetchone() or ()
    )
    article.execute(statement("count_swept"), swept)
    found = {"at": at, "asked": asked, "drift": Jsonb(drift), "unqueued": 3, "orphans": orphans}
    article.execute(statement("count_correct"), {**known, **found})
    wanted = [number for (number,) in article.execute(statement("count_wanted"))]
    assert source.id in wanted
    assert lane.drain() == []
    assert counts(article)[:2] == (40, 40)


def test_a_count_gives_way_to_who_waits_for_it(article: Connection, lane: Lane) -> None:
    """ALTER TABLE would wait for its end, and all writers behind it."""
    counting = Counting(lane.url)
    with psycopg.connect(lane.url) as counter, psycopg.connect(lane.url) as other:
        counter.execute("lock table shop.article in access share mode")
        counting._pid = counter.info.backend_pid

        def alter() -> None:
            other.execute("alter table shop.article add column more text")
            other.commit()

        with ThreadPoolExecutor() as pool:
            busy = pool.submit(counter.execute, "select pg_sleep(60)")
            counting.give_way(article)
            assert not busy.done(), "nobody waits for it yet"
            waiting = pool.submit(alter)
            wait_until(lambda: counting.give_way(article) or busy.done())
            with pytest.raises(psycopg.errors.QueryCanceled):
                busy.result()
            counter.rollback()
            waiting.result(10)


def test_two_who_count_at_once_correct_once(article: Connection, lane: Lane) -> None:
    source = source_of(article, "article")
    article.execute(
        f"update embed.source_tally set vectors = 1 where source = {source.id}".encode()
    )
    with psycopg.connect(lane.url) as other:
        other.execute("select pg_advisory_xact_lock(1701667434, %s)", [source.id])
        assert not count(lane.connection, source)
    assert count(lane.connection, source)
    assert counts(article)[:2] == (40, 40)


@pytest.mark.parametrize("condition", ["name = 'article'", "source = 'article'::regclass"])
def test_a_condition_looks_at_one_source(
    article: Connection, condition: str, plan: Callable[[str], str]
) -> None:
    article.execute("create table other (id integer primary key, title text)")
    article.execute("select embed.enable('other', array['title'])")
    shown = plan(f"select * from embed.status where {condition}")
    assert "Function Scan on _status" in shown
    assert "loops=1)" in shown.partition("Function Scan on _status")[2].partition("\n")[0]


@pytest.fixture
def plan(app: Connection) -> Callable[[str], str]:
    def explained(query: str) -> str:
        rows = app.execute(f"explain (analyze, timing off, summary off) {query}".encode())
        return "\n".join(row[0] for row in rows)

    return explained


def test_doctor_looks_at_each_source_once(article: Connection) -> None:
    article.execute("create table other (id integer primary key, title text)")
    article.execute("select embed.enable('other', array['title'])")
    (sources,) = article.execute("select count(*) from embed.source").fetchone() or (0,)
    with article.transaction():
        article.execute("set local track_functions = 'all'")
        article.execute("select * from embed.doctor()")
        calls = article.execute(
            "select calls from pg_stat_xact_user_functions where funcname = '_status'"
        ).fetchone()
    assert calls == (sources,)


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no processor time of a process")
def test_three_hundred_sources_in_a_moment(app: Connection) -> None:
    for number in range(300):
        app.execute(f"create table t{number} (id integer primary key, title text)".encode())
        app.execute(f"select embed.enable('t{number}', array['title'])".encode())
    app.execute("update embed.source_state set counted_at = clock_timestamp()")
    app.execute("vacuum analyze")  # autovacuum does it within a minute

    def seconds(query: str) -> float:
        """Of processor time, so that it is the same on a machine that does much else."""
        app.execute(query.encode())  # what a session reads but once
        began = _processor_time(app.info.backend_pid)
        for _ in range(10):
            app.execute(query.encode())
        return (_processor_time(app.info.backend_pid) - began) / 10

    assert seconds("select * from embed.status where name = 't7'") < 0.02
    assert seconds("select * from embed.status where source = 't7'::regclass") < 0.02
    assert seconds("select * from embed.status") < 0.3
