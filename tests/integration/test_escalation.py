"""Functions of the owner of the schema embed plan nothing over tables of others.

A policy or a view of whoever enabled a table would run there with the rights of that owner. The
schema belongs to a superuser, or, as on a managed server, to a role that owns the database alone.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from fix_database import _new_database as new_database
from fix_drain import Lane
from fix_roles import PASSWORD, as_login
from psycopg import errors, sql

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import downgrade, migrate
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.source import Connection

LOGINS = {
    "keeper": "",  # owns the database and the schema embed
    "owner": "in role embed_admin",
    "plain": "",
    "worker": "in role embed_worker",
}
POISON = """
create schema yard; grant usage on schema yard to public;
create table yard.ran (role name);
grant insert on yard.ran to public;
create function yard.note() returns void language sql
as 'insert into yard.ran values (current_user)';
create function yard.evil() returns boolean language plpgsql immutable
as $$begin perform yard.note(); return true; end$$;
create table yard.mine (id int primary key, body text);
insert into yard.mine values (1, 'one'), (2, 'two');
select embed.enable('yard.mine', array['body']);
"""
SEARCH = "select count(*) from embed.search(null::yard.mine, array_fill(1, array[384])::vector{})"
CALLS = (
    SEARCH.format(""),
    SEARCH.format(", matching => '{{\"id\": 77}}'"),
    "select embed._search_plan('yard.mine'::regtype, null, 3, false)",
    "select embed.similar(null::yard.mine, 1)",
    "select embed._passage_columns_sql('yard.mine'::regtype, null)",
    "select embed._keys_shown('yard.mine'::regtype, null)",
    "select embed._twin({id}), embed._is_standby({id}), embed._name_of_vectors({id})",
    "select embed._rows_wait({id})",
)


@contextmanager
def server_of(server: Cluster, template: str, keeper: str) -> Iterator[str]:
    """URL of a database whose schema embed belongs to ``postgres`` or to ``t_keeper``."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, template) as url:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with psycopg.connect(url, autocommit=True) as boss:
            name = sql.Identifier(boss.info.dbname)
            for login, group in LOGINS.items():
                boss.execute(f"create role t_{login} login password '{PASSWORD}' {group}".encode())
            try:
                boss.execute(sql.SQL("grant create on database {} to t_owner").format(name))
                if keeper == "postgres":
                    migrate(url, model=TESTING_MODEL)
                else:
                    downgrade(url)
                    boss.execute(sql.SQL("alter database {} owner to t_keeper").format(name))
                    migrate(as_login(url, "keeper"), model=TESTING_MODEL)
                yield url
            finally:
                boss.execute(sql.SQL("alter database {} owner to postgres").format(name))
                for login in LOGINS:
                    boss.execute(f"drop owned by t_{login} cascade; drop role t_{login}".encode())


@contextmanager
def embedded(url: str) -> Iterator[Connection]:
    """A session of t_owner, who enabled yard.mine; all of its rows are embedded."""
    with psycopg.connect(as_login(url, "owner"), autocommit=True) as owner:
        owner.execute(POISON)
        with closing(Lane(as_login(url, "worker"))) as lane:
            assert lane.drain() == []
        yield owner


def lay_statistics(owner: Connection) -> None:
    """Lay an expression that is computed for everybody who plans a statement over a table."""
    number = _number(owner)
    for place, (key, table) in enumerate(
        (
            ("k1", f"embed.inbox_{number}"),
            ("k1", f"embed.queue_{number}"),
            ("id", "yard.mine"),
            ("id", "yard.mine_embedding"),
        )
    ):
        owner.execute(
            f"create statistics yard.s{place} on (yard.evil()), {key} from {table}".encode()
        )


def lay_policies(owner: Connection) -> None:
    owner.execute("create policy evil on yard.mine_embedding using (yard.evil())")
    for table in (f"embed.inbox_{_number(owner)}", f"embed.queue_{_number(owner)}"):
        policy = f"create policy evil on {table} using (yard.evil())"
        owner.execute(
            f"alter table {table} enable row level security; {policy};"
            f"grant select on {table} to public".encode()
        )


@pytest.mark.parametrize(
    ("keeper", "lay"),
    [
        ("postgres", lay_statistics),  # no policy holds for a superuser
        ("t_keeper", lay_statistics),
        ("t_keeper", lay_policies),
    ],
)
def test_nothing_of_an_enabled_table_runs_as_the_owner_of_the_schema(
    server: Cluster, template: str, keeper: str, lay: Callable[[Connection], None]
) -> None:
    with server_of(server, template, keeper) as url, embedded(url) as owner:
        lay(owner)
        owner.execute("truncate yard.ran")
        owner.execute("grant select on yard.mine to t_plain")
        # Plans of functions, and prepared ones, are not made yet in a new session.
        with psycopg.connect(as_login(url, "plain"), autocommit=True) as plain:
            for call in CALLS:
                plain.execute(call.format(id=_number(owner)).encode())
        assert _ran(owner) == {"t_plain"}


def test_no_view_takes_the_place_of_vectors_or_of_a_queue(server: Cluster, template: str) -> None:
    with server_of(server, template, "postgres") as url, embedded(url) as owner:
        number = _number(owner)
        owner.execute("create view yard.v as select * from yard.mine_embedding where yard.evil()")
        with pytest.raises(errors.InsufficientPrivilege, match=r"yard\.v is no table") as said:
            owner.execute("update embed._own_source set vectors = 'yard.v' where id = %s", [number])
        assert said.value.diag.message_hint == (
            "A source keeps its vectors in a table. Call embed.enable."
        )
        with pytest.raises(errors.InsufficientPrivilege, match="create nothing of its own"):
            owner.execute(
                "begin; select embed._open_schema('t_owner');"
                f"drop table embed.inbox_{number};"
                f"create view embed.inbox_{number} as select 1 as k1, 1::bigint as seq,"
                " 0::smallint as priority, now() as at where yard.evil(); commit".encode()
            )


def _ran(connection: Connection) -> set[str]:
    return {role for (role,) in connection.execute("select distinct role from yard.ran")}


FUNCTIONS = """
select distinct o.rolname from pg_proc p join pg_roles o on o.oid = p.proowner
where p.pronamespace = 'embed'::regnamespace and p.proname ~ '^source_%s_'
"""


@pytest.mark.parametrize("how", ["dropped", "a superuser's", "attached"])
def test_no_function_of_a_source_belongs_to_a_superuser_who_made_it_again(
    server: Cluster, template: str, how: str
) -> None:
    """It ran as him at every write, where triggers fired that the enabler had put on his inbox."""
    with (
        server_of(server, template, "postgres") as url,
        psycopg.connect(url, autocommit=True) as boss,
        psycopg.connect(as_login(url, "owner"), autocommit=True) as owner,
    ):
        owner.execute(POISON)
        number = _number(owner)
        if how == "dropped":
            owner.execute(f"drop function embed.source_{number}_insert cascade".encode())
        elif how == "attached":
            owner.execute(
                "create table yard.root (id int not null, body text) partition by range (id);"
                "alter table yard.root attach partition yard.mine for values from (0) to (100)"
            )
        else:  # as an older version left them
            boss.execute(
                f"alter function embed.source_{number}_insert() owner to postgres".encode()
            )
            boss.execute(
                f"alter function embed.source_{number}_refresh() owner to postgres;"
                f"create or replace function embed.source_{number}_refresh() returns text"
                " language sql as 'select null::text'".encode()
            )
        owner.execute(
            "create function yard.note_all() returns trigger language plpgsql"
            " as $$begin perform yard.note(); return new; end$$;"
            f"create trigger t before insert on embed.inbox_{number}"
            " for each row execute function yard.note_all()".encode()
        )
        migrate(url, model=TESTING_MODEL)
        assert boss.execute((FUNCTIONS % number).encode()).fetchall() == [("t_owner",)]
        owner.execute("insert into yard.mine values (77, 'y')")
        assert _ran(owner) == {"t_owner"}


def test_migrate_plans_nothing_over_tables_of_others(server: Cluster, template: str) -> None:
    """Not even where it sets the default model back, which an administrator had changed."""
    with server_of(server, template, "postgres") as url, embedded(url) as owner:
        lay_statistics(owner)
        owner.execute("select embed.add_model('other', 384); select embed.use_model('other')")
        owner.execute("truncate yard.ran")
        migrate(url, model=TESTING_MODEL)
        assert _ran(owner) == set()


def _number(owner: Connection) -> int:
    row = owner.execute("select id from embed.source where name = 'mine'").fetchone()
    assert row is not None
    return int(row[0])


def test_who_did_not_enable_a_table_searches_it_without_a_hit(
    server: Cluster, template: str
) -> None:
    """The owner of the schema may not read the queue of who enabled the table."""
    with server_of(server, template, "t_keeper") as url, embedded(url) as owner:
        assert owner.execute(SEARCH.format("").encode()).fetchone() == (2,)
        nothing = SEARCH.format(", matching => '{\"id\": 77}'").encode()
        assert owner.execute(nothing).fetchone() == (0,)
        owner.execute("grant select on yard.mine to t_plain")
        with psycopg.connect(as_login(url, "plain"), autocommit=True) as plain:
            assert plain.execute(nothing).fetchone() == (0,)
