"""What somebody who owns an enabled table makes others run: nothing, or as little as can be.

``builder`` owns the tables and has no role of ours; a superuser enabled them. ``worker`` is a
member of embed_worker. ``admin``, of embed_admin, enabled a table of his own. Whatever they plant
notes the role that ran it in ``spy.ran``.
"""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from fix_drain import Lane, assert_current
from fix_roles import as_login, database_with_logins
from psycopg import errors

from worker.database.cluster import Cluster
from worker.database.connect import connect
from worker.queue.source import Connection

LOGINS = {"builder": None, "worker": "embed_worker", "admin": "embed_admin", "passer": None}


@pytest.fixture(scope="module")
def url(server: Cluster, template: str) -> Iterator[str]:
    with database_with_logins(server, template, LOGINS) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create schema spy; grant usage on schema spy to public")
            connection.execute("create table spy.ran (role name, by text)")
            connection.execute("grant insert on spy.ran to public")
            connection.execute(
                "create function spy.note(text) returns void language sql "
                "as 'insert into spy.ran values (current_user, $1)'"
            )
        yield url


@pytest.fixture
def superuser(url: str) -> Iterator[Connection]:
    with connect(url) as connection:
        connection.execute("create schema yard; grant usage, create on schema yard to public")
        yield connection
        connection.execute("drop schema yard cascade; truncate spy.ran")
        connection.execute("select embed._refresh(id) from embed.source")


@pytest.fixture
def builder(url: str, superuser: Connection) -> Iterator[Connection]:
    """Owns yard.house and a type with which it can be filled."""
    del superuser
    with connect(as_login(url, "builder")) as connection:
        connection.execute("create type yard.state as enum ('new', 'old')")
        connection.execute(
            "create table yard.house (id int primary key, body text, state yard.state)"
        )
        connection.execute("insert into yard.house values (1, 'one', 'new'), (2, 'two', 'old')")
        yield connection


@pytest.fixture
def lane(url: str) -> Iterator[Lane]:
    with closing(Lane(as_login(url, "worker"))) as lane:
        yield lane


def plant(connection: Connection, name: str, argument: str, returns: str, result: str) -> None:
    """A function that notes who runs it; by another one, so that it can be called immutable."""
    connection.execute(
        f"""
        create function {name}({argument}) returns {returns} language plpgsql as $$
        begin
            perform spy.note('{name}');
            return {result};
        end $$
        """.encode()
    )


def make_partitioned(builder: Connection) -> None:
    """And so captured row by row; without the rows that were there."""
    builder.execute("drop table yard.house")
    builder.execute(
        "create table yard.house (id int primary key, body text, state yard.state) "
        "partition by range (id)"
    )
    builder.execute("create table yard.houses partition of yard.house default")


def ran(superuser: Connection) -> set[str]:
    return {row[0] for row in superuser.execute("select distinct role from spy.ran")}


@pytest.mark.parametrize("partitioned", [False, True])
def test_triggers_run_no_cast_of_the_tables_owner(
    superuser: Connection, builder: Connection, partitioned: bool
) -> None:
    """They run as who enabled the table, a superuser."""
    if partitioned:
        make_partitioned(builder)
    superuser.execute(
        "select embed.enable('yard.house', array['body'], filter => $$state = 'new'$$)"
    )
    plant(builder, "yard.shown", "yard.state", "text", "'x'")
    builder.execute("create cast (yard.state as text) with function yard.shown as assignment")
    builder.execute("insert into yard.house values (3, 'three', 'new')")
    builder.execute("update yard.house set state = 'old' where id = 3")
    builder.execute("update yard.house set body = 'drei' where id = 3")
    assert ran(superuser) == set()


@pytest.mark.parametrize("partitioned", [False, True])
def test_triggers_look_nothing_up_where_the_writer_says(
    url: str, superuser: Connection, builder: Connection, partitioned: bool
) -> None:
    """They have no search_path of their own: the names in them are qualified, every one."""
    if partitioned:
        make_partitioned(builder)
    superuser.execute("select embed.enable('yard.house', array['body'], filter => 'id > 0')")
    builder.execute("grant select, insert, update, delete on yard.house to t_passer")
    with connect(as_login(url, "passer")) as writer:
        for name, arguments, returns in (
            ("concat", "text", "text"),
            ("format", "text, text", "text"),
            ("format", "text, int", "text"),
            ("lower", "text", "text"),
            ("current_setting", "text", "text"),
            ("current_setting", "text, boolean", "text"),
            ("pg_typeof", "int", "pg_catalog.regtype"),
            ("pg_notify", "text, text", "void"),
            ("pg_try_advisory_xact_lock", "int, int", "boolean"),
            ("now", "", "timestamptz"),
            ("nextval", "regclass", "bigint"),
        ):
            plant(writer, f"yard.{name}", arguments, returns, "null" if returns != "void" else "")
        kinds = ("text", "int", "boolean", "pg_catalog.regtype", "name")
        for kind in kinds:
            name = f"yard.compared_{kind.rpartition('.')[2]}"
            plant(writer, name, f"{kind}, {kind}", "boolean", "true")
            for sign in ("=", "<>"):
                writer.execute(
                    f"create operator yard.{sign} "
                    f"(leftarg = {kind}, rightarg = {kind}, function = {name})".encode()
                )
        writer.execute("create domain yard.int4 as text; create domain yard.regtype as text")
        writer.execute("create domain yard.text as int")
        writer.execute("set search_path = yard, pg_catalog")
        writer.execute("insert into house values (3, 'three', 'new')")
        writer.execute("update house set body = 'drei'")
        writer.execute("update house set id = id + 10")
        writer.execute("delete from house")
    assert ran(superuser) <= {"t_passer"}
    number = "select id from embed.source where name = 'house'"
    (source,) = superuser.execute(number).fetchone() or (0,)
    captured = superuser.execute(f"select count(*) from embed.inbox_{source}".encode()).fetchone()
    assert captured is not None
    assert captured[0] >= 4


def test_triggers_run_no_cast_of_a_column_that_became_another_type(
    superuser: Connection, builder: Connection
) -> None:
    superuser.execute("select embed.enable('yard.house', array['body'])")
    builder.execute("create type yard.made as (inner_text text)")
    plant(builder, "yard.opened", "yard.made", "text", "($1).inner_text")
    builder.execute("create cast (yard.made as text) with function yard.opened as implicit")
    builder.execute("alter table yard.house alter body type yard.made using row(body)::yard.made")
    builder.execute("insert into yard.house values (3, row('three'), 'new')")
    builder.execute("update yard.house set body = row('uno') where id = 1")
    assert ran(superuser) == set()
    (verdict,) = superuser.execute(
        "select embed._refresh(id) from embed.source where name = 'house'"
    ).fetchone() or ("",)
    assert "body is now of type yard.made of yard.house, which is no text" in verdict
    superuser.execute("select * from embed.status").fetchall()
    assert ran(superuser) == set()


def test_triggers_run_no_cast_of_a_key_that_became_another_type(
    superuser: Connection, builder: Connection
) -> None:
    """By row, for which the key is put into a variable of the type that it had."""
    builder.execute("create table yard.part (id int, body text) partition by list (body)")
    builder.execute("create table yard.parts partition of yard.part default")
    builder.execute("alter table yard.part add primary key (id, body)")
    superuser.execute("select embed.enable('yard.part', array['body'])")
    builder.execute("create type yard.number as enum ('7')")
    plant(builder, "yard.counted", "yard.number", "int", "7")
    builder.execute("create cast (yard.number as int) with function yard.counted as assignment")
    builder.execute("alter table yard.part alter id type yard.number using '7'")
    builder.execute("insert into yard.part values ('7', 'seven')")
    builder.execute("delete from yard.part")
    assert ran(superuser) == set()
    assert superuser.execute(
        "select reason from embed.sweep_request r join embed.source s on s.id = r.source "
        "where s.name = 'part' and r.reason = 'columns changed'"
    ).fetchall() == [("columns changed",)]


def test_worker_runs_no_check_of_a_keys_domain(
    superuser: Connection, builder: Connection, lane: Lane
) -> None:
    builder.execute("create domain yard.whole as int; create domain yard.number as yard.whole")
    builder.execute("create table yard.listed (id yard.number primary key, body text)")
    builder.execute("insert into yard.listed values (1, 'one'), (2, 'two')")
    superuser.execute("select embed.enable('yard.listed', array['body'])")
    assert lane.drain() == []
    plant(builder, "yard.checked", "int", "boolean", "true")
    builder.execute("alter domain yard.whole add check (yard.checked(value))")
    superuser.execute("truncate spy.ran")  # the owner's own look at the rows that are there
    builder.execute("update yard.listed set body = 'uno' where id = 1")
    builder.execute("delete from yard.listed where id = 2")
    assert lane.drain() == []
    superuser.execute("select embed.sweep('yard.listed')")
    superuser.execute(
        "insert into embed.sweep_request (source, reason) select id, '' from embed.source"
    )
    assert lane.drain() == []
    assert ran(superuser) <= {"t_builder"}
    assert assert_current(superuser, "yard.listed") == {("1",): "uno"}


def test_worker_runs_no_cast_between_text_and_a_key(
    superuser: Connection, builder: Connection, lane: Lane
) -> None:
    builder.execute("create table yard.keyed (id yard.state primary key, body text)")
    builder.execute("insert into yard.keyed values ('new', 'one'), ('old', 'two')")
    superuser.execute("select embed.enable('yard.keyed', array['body'])")
    plant(builder, "yard.shown", "yard.state", "text", "'new'")
    plant(builder, "yard.read", "text", "yard.state", "'new'")
    builder.execute("create cast (yard.state as text) with function yard.shown")
    builder.execute("create cast (text as yard.state) with function yard.read")
    assert lane.drain() == []
    assert ran(superuser) == set()
    builder.execute("drop cast (yard.state as text); drop cast (text as yard.state)")
    assert assert_current(superuser, "yard.keyed") == {("new",): "one", ("old",): "two"}


@pytest.mark.parametrize("volatility", ["volatile", "immutable"])
def test_worker_runs_no_policy_made_since_it_looked(
    superuser: Connection, builder: Connection, lane: Lane, volatility: str
) -> None:
    """An immutable function runs as soon as a statement is planned."""
    builder.execute("alter table yard.house enable row level security")
    builder.execute("create policy w on yard.house for select to embed_worker using (true)")
    superuser.execute("select embed.enable('yard.house', array['body'])")
    assert lane.drain() == []
    plant(builder, "yard.trap", "", "boolean", "true")
    builder.execute(f"alter function yard.trap() {volatility}".encode())
    builder.execute(
        "create policy t on yard.house as restrictive for select to embed_worker "
        "using (yard.trap())"
    )
    builder.execute("update yard.house set body = 'uno' where id = 1")
    superuser.execute(
        "insert into embed.sweep_request (source, reason) select id, '' from embed.source"
    )
    (trouble,) = lane.drain()
    assert "row security of yard.house hides rows" in trouble
    assert ran(superuser) == set()
    builder.execute("drop policy t on yard.house")
    lane.a_minute_later()
    superuser.execute("update embed.source set version = nextval('embed.seq')")
    assert lane.drain() == []
    assert assert_current(superuser, "yard.house") == {("1",): "uno", ("2",): "two"}


def test_worker_reads_no_view_in_the_tables_place(
    superuser: Connection, builder: Connection, lane: Lane
) -> None:
    superuser.execute("select embed.enable('yard.house', array['body'])")
    assert lane.drain() == []
    builder.execute("update yard.house set body = 'uno' where id = 1")
    plant(builder, "yard.trap", "", "text", "'trapped'")
    builder.execute("alter table yard.house rename to castle")
    builder.execute("create view yard.house as select id, yard.trap() as body from yard.castle")
    builder.execute("grant select on yard.house to embed_worker")
    lane.drain()
    lane.a_minute_later()
    superuser.execute("update embed.source set version = nextval('embed.seq')")
    assert lane.drain() == []
    assert ran(superuser) == set()
    assert assert_current(superuser, "yard.castle", "house") == {("1",): "uno", ("2",): "two"}


@pytest.fixture
def admin(url: str, superuser: Connection) -> Iterator[Connection]:
    """Has a table of his own enabled and embedded, whose vectors belong to him."""
    del superuser
    with (
        connect(as_login(url, "admin")) as connection,
        closing(Lane(as_login(url, "worker"))) as lane,
    ):
        connection.execute("create table yard.own (id int primary key, body text)")
        connection.execute("insert into yard.own values (1, 'one')")
        connection.execute("grant select on yard.own to public")
        connection.execute("select embed.enable('yard.own', array['body'])")
        assert lane.drain() == []
        yield connection


def searched_by(url: str, login: str) -> None:
    with connect(as_login(url, login)) as connection:
        plan = "select source from embed._search_plan('yard.own'::regtype, null, 5, false)"
        connection.execute(plan.encode())
        vector = "[1" + ",0" * 383 + "]"
        connection.execute(
            f"select * from embed.search(null::yard.own, '{vector}'::vector)".encode()
        )


def test_a_search_runs_no_cast_of_who_owns_the_vectors_as_another(
    url: str, superuser: Connection, admin: Connection
) -> None:
    """_search_plan has its owner's rights, so it reads no table of anybody else."""
    admin.execute("create type yard.print as (number int)")
    plant(admin, "yard.unpacked", "yard.print", "int", "($1).number")
    admin.execute("create cast (yard.print as int) with function yard.unpacked as implicit")
    admin.execute(
        "alter table yard.own_embedding alter fingerprint type yard.print "
        "using row(fingerprint)::yard.print"
    )
    searched_by(url, "passer")
    assert ran(superuser) <= {"t_passer"}


def test_a_search_runs_no_namesake_of_our_functions(
    url: str, superuser: Connection, admin: Connection
) -> None:
    """A member of embed_admin may create in our schema, a function that fits a call better, say."""
    plant(admin, "embed._text_sql", "embed.source, name", "text", "embed._text_sql($1, $2::text)")
    plant(admin, "embed._column_name", "oid, smallint", "text", "'x'")
    plant(admin, "embed._column_name", "regclass, integer", "text", "'x'")
    try:
        searched_by(url, "passer")
        assert ran(superuser) <= {"t_passer"}
    finally:
        admin.execute("drop function embed._text_sql(embed.source, name)")
        admin.execute("drop function embed._column_name(oid, smallint)")
        admin.execute("drop function embed._column_name(regclass, integer)")


def test_a_key_of_a_composite_type_is_refused(superuser: Connection, builder: Connection) -> None:
    builder.execute("create type yard.pair as (a int, b int)")
    builder.execute("create domain yard.couple as yard.pair")
    builder.execute("create table yard.paired (id yard.couple primary key, body text)")
    with pytest.raises(psycopg.Error, match=r"is of the composite type yard\.couple") as caught:
        superuser.execute("select embed.enable('yard.paired', array['body'])")
    assert caught.value.sqlstate == "EW003"
    with pytest.raises(errors.UndefinedTable):
        superuser.execute("select from yard.paired_embedding")


def test_a_key_of_a_domain_over_an_enumeration_is_refused(
    superuser: Connection, builder: Connection
) -> None:
    builder.execute("create domain yard.condition as yard.state")
    builder.execute("create table yard.graded (id yard.condition primary key, body text)")
    expected = r"is of the domain yard\.condition over yard\.state"
    with pytest.raises(psycopg.Error, match=expected) as caught:
        superuser.execute("select embed.enable('yard.graded', array['body'])")
    assert caught.value.sqlstate == "EW003"
