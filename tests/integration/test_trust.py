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

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.errors import DatabaseError
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.source import Connection

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


@pytest.fixture
def version_0001(superuser: Connection) -> Iterator[None]:
    """There every member of embed_admin could create in the schema embed."""
    superuser.execute("grant create on schema embed to embed_admin")
    yield
    superuser.execute("revoke create on schema embed from embed_admin")


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


@pytest.mark.smoke
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


@pytest.mark.smoke
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


@pytest.mark.smoke
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


@pytest.mark.usefixtures("version_0001")
@pytest.mark.smoke
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


@pytest.fixture
def secret(superuser: Connection) -> str:
    superuser.execute("create table yard.secret (id int primary key, body text)")
    superuser.execute("insert into yard.secret values (1, 'secret')")
    return "yard.secret"


def number_of(connection: Connection, name: str) -> int:
    row = connection.execute("select id from embed.source where name = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


def is_public(superuser: Connection, table: str) -> bool:
    row = superuser.execute(
        "select has_table_privilege('t_passer', %s, 'select')", [table]
    ).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.parametrize(
    "attempt",
    [
        "update {} set relation = 'yard.secret'",
        "update {} set vectors = 'yard.secret'",
        "update {} set relation = 'yard.secret', vectors = 'yard.secret' where name = 'own'",
        "update {} set vectors = 'yard.house' where name = 'own'",
        "update {} set relation = 'yard.own' where name = 'house'",
        "update {} set filter = 'true' where name = 'house'",
        "update {} set paused = true where name = 'house'",
        "delete from {} where name = 'house'",
        "insert into {} (name, relation, relation_oid, vectors, keys, key_attnums, key_types,"
        " columns, column_attnums, watch_attnums, chunk, dimensions) select 'x',"
        " 'yard.secret'::regclass, 'yard.secret'::regclass, vectors, keys, key_attnums, key_types,"
        " columns, column_attnums, watch_attnums, chunk, dimensions from embed.source"
        " where name = 'own'",
    ],
)
def test_an_administrator_writes_no_source_of_others(
    superuser: Connection, builder: Connection, admin: Connection, secret: str, attempt: str
) -> None:
    del builder
    superuser.execute("select embed.enable('yard.house', array['body'])")
    kept = superuser.execute("select * from embed.source order by id").fetchall()
    for place in ("embed.source", "embed._own_source"):
        with pytest.raises(errors.InsufficientPrivilege):
            admin.execute(attempt.format(place).encode())
    assert superuser.execute("select * from embed.source order by id").fetchall() == kept
    superuser.execute("select embed._refresh(id) from embed.source")
    assert not is_public(superuser, secret)


def test_nobody_is_granted_a_write_of_the_sources(superuser: Connection) -> None:
    assert (
        superuser.execute(
            "select r.rolname, w.word from pg_roles r, unnest(array['insert', 'update', 'delete',"
            " 'truncate', 'trigger', 'references']) as w (word)"
            " where not r.rolsuper and r.rolname !~ '^pg_'"
            " and has_table_privilege(r.oid, 'embed.source', w.word)"
        ).fetchall()
        == []
    )


def test_the_owner_may_pause_what_a_superuser_enabled(
    superuser: Connection, builder: Connection, admin: Connection
) -> None:
    """And so may whom he lets act for him, which is what the hint says."""
    del builder
    superuser.execute("select embed.enable('yard.house', array['body'])")
    with pytest.raises(errors.InsufficientPrivilege, match=r"does not own yard\.house") as caught:
        admin.execute("select embed.pause('yard.house')")
    hint = caught.value.diag.message_hint or ""
    superuser.execute(hint[hint.index("grant") :].encode())
    try:
        admin.execute("select embed.pause('yard.house'), embed.set_lexical('yard.house', 0.5)")
        assert superuser.execute(
            "select paused, lexical from embed.source where name = 'house'"
        ).fetchall() == [(True, 0.5)]
        with pytest.raises(errors.InsufficientPrivilege, match=r"may not act for \w+, who enabled"):
            admin.execute("update embed._own_source set filter = 'true' where name = 'house'")
    finally:
        superuser.execute("revoke t_builder from t_admin")


@pytest.mark.parametrize("column", ["relation", "vectors"])
def test_refresh_touches_nothing_that_whoever_enabled_it_does_not_own(
    superuser: Connection, builder: Connection, admin: Connection, secret: str, column: str
) -> None:
    """However the row came to say so."""
    del builder
    number = number_of(admin, "own")
    if column == "vectors":
        superuser.execute("drop table yard.secret")
        superuser.execute("create table yard.secret (like yard.own_embedding including all)")
    superuser.execute(
        f"update embed.source set {column} = 'yard.secret' where id = {number}".encode()
    )
    superuser.execute(f"grant all on {secret} to t_admin".encode())
    superuser.execute("update embed.source_state set structure = null")
    for refresh in (f"embed._refresh({number})", f"embed.source_{number}_refresh()"):
        (verdict,) = superuser.execute(f"select {refresh}".encode()).fetchone() or ("",)
        assert "yard.secret belongs to postgres, for whom t_admin" in verdict
    assert not is_public(superuser, secret)
    triggers = "select from pg_trigger where tgrelid = 'yard.secret'::regclass"
    assert superuser.execute(triggers).fetchall() == []
    superuser.execute(f"update embed.source set {column} = 'yard.own' where id = {number}".encode())
    superuser.execute("select embed.disable('yard.own')")


@pytest.mark.usefixtures("version_0001")
@pytest.mark.parametrize("verb", ["insert", "truncate", "refresh", "open", "visible"])
def test_a_function_made_in_advance_is_refused(
    superuser: Connection, builder: Connection, admin: Connection, verb: str
) -> None:
    """Its owner could have written it again, to run in the statements of the table's writers."""
    del builder
    name = f"embed.source_{number_of(admin, 'own') + 1}_{verb}"
    kind = {"refresh": "text", "open": "boolean", "visible": "boolean"}.get(verb, "trigger")
    argument = "integer" if verb == "visible" else ""
    admin.execute(
        f"create function {name}({argument}) returns {kind} language plpgsql "
        "as 'begin return null; end'".encode()
    )
    superuser.execute(
        "select setval(pg_get_serial_sequence('embed.source', 'id'), max(id)) from embed.source"
    )
    with pytest.raises(errors.InsufficientPrivilege, match=f"{name}.*belongs to t_admin") as caught:
        superuser.execute("select embed.enable('yard.house', array['body'])")
    hint = caught.value.diag.message_hint or ""
    superuser.execute(hint[hint.index("drop") :].encode())
    superuser.execute("select embed.enable('yard.house', array['body'])")


def test_an_administrator_sets_no_more_than_the_models(
    superuser: Connection, admin: Connection
) -> None:
    kept = superuser.execute("select * from embed.setting order by name").fetchall()
    for attempt in (
        "insert into embed.setting values ('loopback_problem', 'none')",
        "update embed.setting set value = '0' where name = 'loopback'",
        "update embed.setting set name = 'loopback_problem' where name = 'reranker'",
        "delete from embed.setting",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            admin.execute(attempt.encode())
    admin.execute("select embed.use_reranker(embed.reranker()), embed.use_model('testing:hash')")
    assert superuser.execute("select * from embed.setting order by name").fetchall() == kept


@pytest.mark.parametrize("table", ["source_state", "sweep_state"])
def test_an_administrator_writes_no_state_of_others(
    superuser: Connection, builder: Connection, admin: Connection, table: str
) -> None:
    del builder
    superuser.execute("select embed.enable('yard.house', array['body'])")
    number = number_of(superuser, "house")
    superuser.execute(
        "insert into embed.sweep_state (source, phase) values (%s, 'done') on conflict do nothing",
        [number],
    )
    column = "error" if table == "source_state" else "phase"
    for attempt in (
        f"update embed.{table} set {column} = 'rows' where source = {number}",
        f"delete from embed.{table} where source = {number}",
    ):
        with pytest.raises(errors.InsufficientPrivilege, match=r"may not act for \w+, who enabled"):
            admin.execute(attempt.encode())
    own = number_of(admin, "own")
    admin.execute(f"update embed.{table} set {column} = 'rows' where source = {own}".encode())


@pytest.mark.usefixtures("version_0001")
def test_migrate_runs_no_function_that_somebody_else_made(
    url: str, superuser: Connection, admin: Connection
) -> None:
    """``embed.enable('embed.document', array[…])`` found one that fits better."""
    plant(admin, "embed.enable", "regclass, text[]", "regclass", "null")
    expected = r"does not own it.*: drop function embed\.enable\(regclass,text\[\]\)"
    with pytest.raises(DatabaseError, match=expected) as caught:
        migrate(url, model=TESTING_MODEL)
    assert ran(superuser) == set()
    hint = str(caught.value)
    superuser.execute(hint[hint.index("drop function") :].encode())
    migrate(url, model=TESTING_MODEL)


PLANTED = {
    "overload": ("create function embed.query(varchar) returns int language sql as 'select 1'"),
    "aggregate": "create aggregate embed.query(text) (sfunc = textcat, stype = text)",
    "table": "create table embed.status_of_mine (id int)",
    "queue of nothing": "create table embed.queue_99999 (id int)",
    "type": "create type embed.mood as enum ('good')",
    "operator": "create operator embed.= (leftarg = int, rightarg = int, function = int4eq)",
    "function of another source": (
        "create function embed.source_1_open(int) returns boolean language sql as 'select true'"
    ),
    "renamed": "alter function embed.source_{own}_open() rename to search",
    "moved": (
        "create function yard.doctor(int) returns int language sql as 'select 1';"
        "alter function yard.doctor(int) set schema embed"
    ),
}


def try_all(connection: Connection, *statements: bytes) -> None:
    for statement in statements:
        connection.execute(statement)


@pytest.mark.parametrize("kind", PLANTED)
def test_an_administrator_creates_nothing_in_our_schema(
    superuser: Connection, admin: Connection, kind: str
) -> None:
    """Whoever called embed.query with a varchar ran what a member of embed_admin had planted."""
    planting = PLANTED[kind].replace("{own}", str(number_of(admin, "own"))).encode()
    with pytest.raises(psycopg.Error):
        admin.execute(planting)
    enable = b"create table yard.new (id int primary key, body text);"
    enable += b"select embed.enable('yard.new', array['body'])"
    opened = b"select embed._open_schema(current_user::text::regrole)"
    for call in (enable, opened):
        for end in (b"commit", b"set constraints all immediate"):
            with pytest.raises(errors.InsufficientPrivilege):
                try_all(admin, b"begin", call, planting, end)
            admin.execute("rollback")
    # To have it looked at before it is there does not help: then the right is gone.
    for before in ((b"set constraints all immediate", enable), (enable,)):
        with pytest.raises(errors.InsufficientPrivilege):
            try_all(admin, b"begin", *before, b"set constraints all immediate", planting, b"commit")
        admin.execute("rollback")
    assert superuser.execute(
        "select has_schema_privilege('embed_admin', 'embed', 'create'),"
        " has_schema_privilege('t_admin', 'embed', 'create'),"
        " (select count(*) from embed.setting where name like 'opened%')"
    ).fetchone() == (False, False, 0)


def test_nobody_else_opens_our_schema(url: str, superuser: Connection, admin: Connection) -> None:
    with connect(as_login(url, "passer")) as passer:
        for role in ("t_passer", "t_admin"):
            with pytest.raises(errors.InsufficientPrivilege, match="function _open_schema"):
                passer.execute("select embed._open_schema(%s)", [role])
    with pytest.raises(errors.InsufficientPrivilege, match="may not create in the schema") as said:
        admin.execute("select embed._open_schema('t_passer')")
    superuser.execute("begin")
    superuser.execute((said.value.diag.message_hint or "").split(": ")[1].encode())
    superuser.execute("select embed._open_schema('t_passer'); rollback")


@pytest.mark.usefixtures("version_0001")
def test_the_doctor_names_what_was_planted_before(superuser: Connection, admin: Connection) -> None:
    rights = "select state, detail from embed.doctor() where \"check\" = 'rights'"
    assert superuser.execute(rights.encode()).fetchone() == (
        "ok",
        "as embedworker migrate gave them",
    )
    admin.execute("create function embed.query(varchar) returns int language sql as 'select 1'")
    assert superuser.execute(rights.encode()).fetchone() == (
        "problem",
        "embed.query(character varying) belongs to t_admin",
    )
    superuser.execute("drop function embed.query(varchar)")
    assert superuser.execute(rights.encode()).fetchone() == (
        "ok",
        "as embedworker migrate gave them",
    )


def test_migrate_waits_for_no_open_enable(
    url: str, superuser: Connection, admin: Connection
) -> None:
    """To enable changes the rights of the schema, and so may migrate."""
    del superuser
    admin.execute(
        "create table yard.new (id int primary key, body text);"
        "begin; select embed.enable('yard.new', array['body'])"
    )
    migrate(url, model=TESTING_MODEL)
    admin.execute("rollback")
