"""A change of the model while somebody or something comes between: the old or the new state."""

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, drain_url, source_of
from fix_restore import dump_and_restore
from fix_roles import as_login, database_with_logins
from fix_switch import (
    ENABLE,
    OTHER,
    STATE,
    TABLES,
    answer,
    begin,
    calls,
    check_both,
    check_columns,
    check_sides,
    one,
    state,
    switch,
)
from waiting import wait_until

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.claim import FRESH, claim, move
from embedworker.queue.failure import fail


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_is_killed_in_the_middle_of_each_call(
    new_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commit the old state, after it the new one; every call may be repeated."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    server = new_cluster(fsync="off")  # the machine goes on
    server.start()
    url = server.url()
    migrate(url, model=TESTING_MODEL)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(ENABLE)
    serving = 384
    for call in ("begin_switch", "cut_over", "roll_back", "end_switch"):
        drain_url(url)
        for commits in (False, True):
            with closing(psycopg.connect(url)) as connection:
                connection.execute("set search_path = shop, public")
                connection.commit()
                before = state(connection)
                calls(connection, call)
                after = state(connection)
                assert after != before
                if commits:
                    connection.commit()
                server.kill()
            server.start()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("set search_path = shop, public")
                assert state(connection) == (after if commits else before), call
                connection.execute("update article set title = title || '!' where id = 1")
                connection.execute("update page set title = title || '!' where id = 1")
                if commits and call != "end_switch":
                    calls(connection, call)  # a notice says that it is so already
                    assert state(connection) == after
                drain_url(url)
                if commits and call in ("cut_over", "roll_back"):
                    serving = 448 - serving
                if connection.execute(STATE).fetchall():
                    check_both(connection, serving=serving)
                else:
                    check_columns(connection, v=384)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_a_dump_is_restored_in_the_middle(
    testing_database: str, server: Cluster, second_server: Cluster, server_folder: Path, cut: bool
) -> None:
    with psycopg.connect(testing_database, autocommit=True) as connection:
        connection.execute(TABLES)
        # Other numbers of columns after the restore.
        connection.execute(
            "alter table page add column gone int; alter table page drop column gone"
        )
        connection.execute("alter table page drop column v; alter table page add v vector(384)")
        connection.execute(ENABLE)
        calls(connection, "begin_switch")
        if cut:
            drain_url(testing_database)
            calls(connection, "cut_over")
    name = testing_database.rpartition("/")[2]
    url = dump_and_restore(server, name, server_folder / f"switch-{cut}", second_server, "switched")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set search_path = shop, public")
        connection.execute("update article set title = 'after the restore' where id = 1")
        assert drain_url(url) == []
        check_both(connection, serving=64 if cut else 384)
        calls(connection, "roll_back" if cut else "cut_over")
        connection.execute("update article set title = 'another text' where id = 2")
        connection.execute("update page set title = 'another text' where id = 2")
        assert drain_url(url) == []
        check_both(connection, serving=384 if cut else 64)
        calls(connection, "end_switch")
        assert drain_url(url) == []
        check_columns(connection, v=384 if cut else 64)


@pytest.mark.parametrize("second", ["cut_over", "roll_back", "end_switch", "begin_switch"])
def test_two_administrators_at_once(
    article: Connection, drain: Drain, shared_database: str, second: str
) -> None:
    """The second waits for the first, and then acts on what that has left."""
    begin(article)
    drain()
    more = f", '{OTHER}'" if second == "begin_switch" else ""
    said: list[str | None] = []
    with psycopg.connect(shared_database, autocommit=True) as other:
        other.execute("set search_path = shop, public")

        def call() -> None:
            try:
                other.execute(f"select embed.{second}('article'{more})".encode())
                said.append(None)
            except psycopg.Error as error:
                said.append(error.sqlstate)

        thread = threading.Thread(target=call)
        with article.transaction():
            article.execute("select embed.cut_over('article')")
            thread.start()
            waits = (
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and pid = %s"
            )
            wait_until(lambda: one(article, waits, other.info.backend_pid) == 1, what="the wait")
        thread.join()
    assert said == ["EW010" if second == "begin_switch" else None]
    phases = {"cut_over": ["cut over"], "roll_back": ["ready"], "begin_switch": ["cut over"]}
    assert [phase for (phase,) in article.execute("select phase from embed.switch")] == phases.get(
        second, []
    )
    answer(article, "kettle", 384 if second == "roll_back" else 64)
    if second != "end_switch":
        check_sides(article, serving=384 if second == "roll_back" else 64)


@pytest.mark.parametrize("call", ["cut_over", "roll_back", "end_switch"])
def test_an_administrator_in_an_old_transaction_is_told_to_repeat_it(
    article: Connection, drain: Drain, shared_database: str, call: str
) -> None:
    begin(article)
    drain()
    if call == "roll_back":
        article.execute("select embed.cut_over('article')")
    with psycopg.connect(shared_database, autocommit=True) as old:
        old.execute("set search_path = shop, public")
        old.execute("begin isolation level repeatable read")
        old.execute("select count(*) from embed.switch_state")
        article.execute(
            f"select embed.{'roll_back' if call == 'roll_back' else 'cut_over'}('article')".encode()
        )
        before = state(article)
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute(f"select embed.{call}('article')".encode())
        old.execute("rollback")
    assert state(article) == before
    answer(article, "kettle", 384 if call == "roll_back" else 64)


def test_a_call_that_is_cut_off_while_it_waits_changes_nothing(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    begin(article)
    drain()
    before = state(article)
    with (
        psycopg.connect(shared_database) as reader,
        psycopg.connect(shared_database, autocommit=True) as waiting,
    ):
        reader.execute("select 1 from shop.article_embedding limit 1")
        said: list[str | None] = []

        def call() -> None:
            try:
                waiting.execute("select embed.cut_over('shop.article')")
            except psycopg.Error as error:
                said.append(error.sqlstate)

        thread = threading.Thread(target=call)
        thread.start()
        waits = "select count(*) from pg_locks where not granted and pid = %s"
        wait_until(lambda: one(article, waits, waiting.info.backend_pid) > 0, what="the wait")
        article.execute("select pg_terminate_backend(%s)", [waiting.info.backend_pid])
        thread.join()
    assert said == ["57P01"]
    assert state(article) == before
    article.execute("select embed.cut_over('article')")
    check_sides(article, serving=64)


def test_a_long_reader_keeps_the_cut_waiting_and_other_readers_go_on(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    """Whoever comes while the cut tries for its locks waits behind it, so it tries seldom."""
    begin(article)
    drain()
    with (
        psycopg.connect(shared_database) as reader,
        psycopg.connect(shared_database, autocommit=True) as waiting,
    ):
        reader.execute("select 1 from shop.article_embedding limit 1")
        thread = threading.Thread(
            target=lambda: waiting.execute("select embed.cut_over('shop.article')")
        )
        thread.start()
        tries = "select count(*) from pg_locks where not granted and pid = %s"
        wait_until(lambda: one(article, tries, waiting.info.backend_pid) > 0, what="a try")
        begun = time.monotonic()
        seen = []
        while (passed := time.monotonic() - begun) < 3:
            tried = one(article, tries, waiting.info.backend_pid) > 0
            if passed > 1:
                seen.append(tried)
        reader.rollback()
        thread.join()
    assert sum(seen) < 0.4 * len(seen)
    check_sides(article, serving=64)


def test_partitions_are_attached_in_the_middle(article: Connection, drain: Drain) -> None:
    article.execute(
        "create table event (id int primary key, title text) partition by range (id);"
        "create table event_1 partition of event for values from (0) to (10);"
        "insert into event values (1, 'a red kettle')"
    )
    article.execute("select embed.enable('event', '{title}', model => %s)", [TESTING_MODEL])
    article.execute("select embed.begin_switch('event', %s)", [OTHER])
    rows = "select array_agg(id order by id) from {}"
    tables = ("event_embedding", "event_next_embedding")
    for number, call in enumerate(("cut_over", "roll_back", "end_switch"), 2):
        article.execute(
            f"create table event_{number} (id int primary key, title text);"
            f"insert into event_{number} values ({number}0, 'it was there before');"
            f"alter table event attach partition event_{number}"
            f" for values from ({number}0) to ({number}9);"
            f"insert into event values ({number}1, 'it came after')".encode()
        )
        drain()
        expected = [1, *(n * 10 + m for n in range(2, number + 1) for m in (0, 1))]
        for table in tables:
            assert one(article, rows.format(table)) == expected
        article.execute(f"select embed.{call}('event')".encode())
    drain()
    assert one(article, rows.format("event_embedding")) == expected


@pytest.mark.parametrize("cut", [False, True])
def test_disabling_the_table_ends_all_of_it(article: Connection, drain: Drain, cut: bool) -> None:
    begin(article)
    drain()
    if cut:
        article.execute("select embed.cut_over('article')")
    article.execute("truncate article")
    article.execute("select embed.disable('article', drop_vectors => true)")
    assert article.execute("select * from embed.switch").fetchall() == []
    for table in ("article_embedding", "article_next_embedding"):
        assert one(article, "select to_regclass(%s)", table) is None
    article.execute("insert into article values (7, 'it is of nobody')")
    article.execute("select embed.enable('article', '{title}', model => %s)", [OTHER])
    drain()
    assert one(article, "select count(*) from article_embedding") == 1


def test_a_policy_that_comes_in_the_middle_guards_both_sides(
    server: Cluster, template: str
) -> None:
    with database_with_logins(server, template, {"owner": "embed_admin", "reader": None}) as url:
        with psycopg.connect(url, autocommit=True) as boss:
            boss.execute("grant create on schema public to t_owner")
            boss.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
        with (
            psycopg.connect(as_login(url, "owner"), autocommit=True) as owner,
            psycopg.connect(as_login(url, "reader"), autocommit=True) as reader,
        ):
            owner.execute("create table note (id int primary key, body text, own boolean)")
            owner.execute("insert into note values (1, 'of all', true), (2, 'a secret', false)")
            owner.execute("grant select on note to t_reader")
            owner.execute("select embed.enable('note', '{body}')")
            owner.execute("select embed.begin_switch('note', %s)", [OTHER])
            drain_url(url)
            seen = "select count(*) from note_embedding union all"
            seen += " select count(*) from note_next_embedding"
            assert reader.execute(seen.encode()).fetchall() == [(2,), (2,)]
            owner.execute("alter table note enable row level security")
            owner.execute("create policy own on note for select using (own)")
            for call in ("cut_over", "roll_back"):
                assert reader.execute(seen.encode()).fetchall() == [(1,), (1,)]
                owner.execute(f"select embed.{call}('note')".encode())
            assert reader.execute(seen.encode()).fetchall() == [(1,), (1,)]


def test_a_model_that_cannot_be_loaded_stops_the_new_side_alone(
    article: Connection, lane: Lane
) -> None:
    article.execute("select embed.add_model('/no/such/folder', 64)")
    article.execute("select embed.begin_switch('article', '/no/such/folder')")
    (trouble,) = lane.drain()
    assert "/no/such/folder" in trouble
    assert "/no/such/folder" in one(article, "select error from embed.switch")
    assert switch(article)[0] == "filling"
    with pytest.raises(psycopg.Error, match="no worker has begun with it"):
        article.execute("select embed.cut_over('article')")
    article.execute("update article set title = 'a green kettle' where id = 1")
    lane.drain()
    answer(article, "kettle", 384)
    article.execute("select embed.end_switch('article')")
    assert lane.drain() == []
    begin(article)
    lane.drain()
    check_sides(article, serving=384)


def test_all_rows_of_the_new_side_fail(article: Connection, drain: Drain) -> None:
    """What is dead there is found by the old side as before, and again after a forced cut."""
    begin(article)
    drain()
    new = source_of(article, "article", "article_next")
    article.execute("update article set title = title || '!'")
    move(article, new)
    jobs, _ = claim(article, new, worker=77, quotas={FRESH: 10}, lease=60.0, max_attempts=5)
    lost = [(job, "too odd for this model") for job in jobs]
    assert fail(article, lost, worker=77, max_attempts=1, longest_backoff=1.0) == 3
    drain()
    assert one(article, "select phase, coverage, dead, from_coverage from embed.switch") == (
        "filling",
        0,
        3,
        1,
    )
    with pytest.raises(psycopg.Error, match="it lacks 3 rows"):
        article.execute("select embed.cut_over('article')")
    answer(article, "kettle", 384)
    article.execute("select embed.cut_over('article', force => true)")
    assert answer(article, "kettle", 64) == []
    assert one(article, "select forced from embed.switch") is True
    article.execute("select embed.roll_back('article')")
    assert len(answer(article, "kettle", 384)) == 3
    article.execute("select embed.retry('article')")
    drain()
    check_sides(article, serving=384)
