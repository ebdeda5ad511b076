"""The model of a table is changed that keeps its vectors in a column of its own."""

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, drain_url, source_of
from fix_roles import as_login, database_with_logins
from fix_switch import OTHER, check_columns, one

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, claim, move
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.failure import release


def test_columns_exchange_their_names(
    paged: Connection, drain: Drain, shared_database: str
) -> None:
    drain()
    nearest = "select id from embed.search(null::page, 'kettle') h, lateral (select (h.row).id) x"
    paged.execute("select embed.begin_switch('page', %s)", [OTHER])
    assert one(paged, nearest) in (1, 2)
    drain()
    check_columns(paged, v=384, v_next=64)
    assert one(paged, "select phase from embed.switch") == "ready"
    sweeps = "select count(*) from embed.sweep_request"
    with connect(shared_database) as old:
        old.execute("set search_path = shop, public")
        old.execute("begin isolation level repeatable read")
        old.execute("select count(*) from embed.source")
        paged.execute("select embed.cut_over('page')")
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute("select embed.query('kettle', of => 'page')")
    assert one(paged, sweeps) == 0
    check_columns(paged, v=64, v_next=384)
    asked = float(hash_vector("query: kettle", 64) @ hash_vector("passage: a red kettle", 64))
    score = "select 1 - (v <=> embed.query('kettle', of => 'page')) from page where id = 1"
    assert one(paged, score) == pytest.approx(asked, abs=1e-5)
    paged.execute("update page set title = 'a green kettle' where id = 1")
    drain()
    check_columns(paged, v=64, v_next=384)
    paged.execute("select embed.roll_back('page')")
    drain()
    check_columns(paged, v=384, v_next=64)
    paged.execute("create view titles as select title, v from page")
    with pytest.raises(psycopg.Error, match="bound to the column v of "):
        paged.execute("select embed.cut_over('page')")
    paged.execute("drop view titles")
    paged.execute("select embed.cut_over('page')")
    paged.execute("select embed.end_switch('page')")
    columns = "select array_agg(attname::text order by attnum) from pg_attribute"
    here = " where attrelid = 'page'::regclass and attnum > 0 and not attisdropped"
    assert one(paged, columns + here) == ["id", "title", "v"]
    paged.execute("update page set title = 'the last kettle' where id = 1")
    drain()
    check_columns(paged, v=64)
    assert sorted(paged.execute(nearest.encode()).fetchall()) == [(1,), (2,)]


def test_a_column_of_the_application_is_not_taken(app: Connection) -> None:
    """embed.end_switch dropped it with what was in it."""
    app.execute(
        "create table page (id int primary key, body text, emb vector(384), emb_next halfvec(2));"
        "insert into page values (1, 'one', null, '[1,2]');"
        "select embed.enable('page', array['body'], into_column => 'emb')"
    )
    with pytest.raises(psycopg.DatabaseError, match="page has a column emb_next") as refused:
        app.execute("select embed.begin_switch('page', storage => 'halfvec')")
    assert refused.value.sqlstate == "EW003"
    assert "rename column emb_next to" in str(refused.value.diag.message_hint)
    app.execute("alter table page rename column emb_next to mine")
    app.execute("select embed.begin_switch('page', storage => 'halfvec')")
    app.execute("select embed.end_switch('page')")
    assert app.execute("select mine::text from page").fetchall() == [("[1,2]",)]


def test_who_may_read_the_column_may_read_the_next(server: Cluster, template: str) -> None:
    with database_with_logins(server, template, {"owner": "embed_admin", "reader": None}) as url:
        with psycopg.connect(url, autocommit=True) as boss:
            boss.execute("grant create on schema public to t_owner")
            boss.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
        with (
            psycopg.connect(as_login(url, "owner"), autocommit=True) as owner,
            psycopg.connect(as_login(url, "reader"), autocommit=True) as reader,
        ):
            owner.execute("create table page (id int primary key, title text, v vector(384))")
            owner.execute("grant select (id, v) on page to t_reader")
            owner.execute("select embed.enable('page', '{title}', into_column => 'v')")
            owner.execute("select embed.begin_switch('page', %s)", [OTHER])
            drain_url(url)
            owner.execute("select embed.cut_over('page')")
            reader.execute("select v from page")


@pytest.mark.parametrize("moment", ["before the claim", "after the claim"])
def test_a_worker_writes_nothing_into_the_wrong_column(
    paged: Connection, lane: Lane, shared_database: str, moment: str
) -> None:
    paged.execute("alter table page alter v type public.vector(64)")
    paged.execute("select embed.disable('page')")
    paged.execute("select embed.add_model('same', 64, 8192, 'query: ', 'passage: ')")
    paged.execute("select embed.enable('page', '{title}', into_column => 'v', model => 'same')")
    paged.execute("select embed.begin_switch('page', %s)", [OTHER])
    lane.drain()
    stale = source_of(paged, "page", "page")
    paged.execute("update page set title = 'a new text' where id = 1")
    move(paged, stale)
    if moment == "before the claim":
        paged.execute("select embed.cut_over('page', force => true)")
    (job,), _ = claim(paged, stale, worker=77, quotas={FRESH: 10}, lease=60.0, max_attempts=5)
    if moment == "after the claim":
        paged.execute("select embed.cut_over('page', force => true)")
    vectors = "select array_agg(p.*::text order by id) from page p"
    before = one(paged, vectors)
    made = Result(job, [EmbeddedPassage(0, 10, hash_vector("passage: another text", 64))])
    with connect(shared_database) as worker:
        written = complete(
            worker, [made], worker=77, fingerprint=stale.fingerprint or 0, average_length=10.0
        )
        assert written == 0
        release(worker, [job], worker=77)
    assert one(paged, vectors) == before


@pytest.mark.parametrize("dropped", ["v", "v_next"])
def test_a_dropped_column_is_named_and_the_switch_can_be_ended(
    paged: Connection, drain: Drain, dropped: str
) -> None:
    drain()
    paged.execute("select embed.begin_switch('page', %s)", [OTHER])
    drain()
    paged.execute(f"alter table page drop column {dropped}".encode())
    with pytest.raises(psycopg.Error, match="were dropped") as error:
        paged.execute("select embed.cut_over('page', force => true)")
    assert error.value.sqlstate == "EW004"
    paged.execute("select embed.end_switch('page')")
    assert paged.execute("select * from embed.switch_state").fetchall() == []
