"""A dump of a whole database, restored elsewhere: everything goes on, nothing is made again."""

from pathlib import Path

import psycopg
import pytest
from fix_drain import Connection, assert_current, captured, drain_url
from fix_restore import dump_and_restore

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate

TABLE = """
create schema shop;
set search_path = shop, public;
create table article (
    gone integer, name text primary key, spare text, title text, body text,
    live boolean not null default true
);
alter table article drop column gone, drop column spare;
insert into article (name, title, body)
select 'n' || n, 'title ' || n, 'text ' || n from generate_series(1, 20) n;
create table note (id integer primary key, gone text, body text, other text, vec vector(384));
alter table note drop column gone;
insert into note (id, body) values (1, 'one'), (2, 'two');
create table event (id integer, day date, body text, primary key (id, day))
    partition by range (day);
create table event_2024 partition of event for values from ('2024-01-01') to ('2025-01-01');
insert into event values (1, '2024-05-05', 'party');
insert into embed.document (title, content) values ('t', 'c');
select embed.enable('article', array['title', 'body'],
    filter => 'live and name <> ''n3''', template => '{title}: {body}');
select embed.enable('note', array['body'], into_column => 'vec');
select embed.enable('event', array['body']);
"""
TABLES = ("article", "note", "event")
MADE = """
select array_agg(x.made order by x.made::text)
from (
    select (name, embedded_at)::text as made from shop.article_embedding
    union all select (id, embedded_at)::text from shop.event_embedding
    union all select (id, embedded_at)::text from embed.document_embedding
    union all select (id, vec)::text from shop.note
) x
"""


@pytest.mark.parametrize(
    "where", ["new server", pytest.param("same server", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("first", ["migrate", "worker", "enable", "writes"])
@pytest.mark.slow
def test_restore(
    testing_database: str,
    server: Cluster,
    second_server: Cluster,
    server_folder: Path,
    where: str,
    first: str,
) -> None:
    name = testing_database.rpartition("/")[2]
    with psycopg.connect(testing_database, autocommit=True) as connection:
        connection.execute(TABLE)
        assert drain_url(testing_database) == []
        connection.execute("alter table article rename name to code")
        connection.execute("alter table article rename live to shown")
        assert drain_url(testing_database) == []
        for table in TABLES:
            assert_current(connection, table)
        made = connection.execute(MADE).fetchone()
    folder = server_folder / f"dump-{where.replace(' ', '')}-{first}"
    target = server if where == "same server" else second_server
    url = dump_and_restore(server, name, folder, target, "restored")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set search_path = shop, public")
        if first == "migrate":
            migrate(url)
        elif first == "enable":
            connection.execute(
                "select embed.enable('article', array['title', 'body'],"
                " filter => 'shown and code <> ''n3''', template => '{title}: {body}')"
            )
        elif first == "writes":
            connection.execute("update article set shown = shown")
            connection.execute("update article set body = 'while no worker ran' where code = 'n2'")
            connection.execute("update article set body = body || '' where code = 'n4'")
        assert drain_url(url) == []
        texts = {table: assert_current(connection, table) for table in TABLES}
        assert len(texts["article"]) == 19
        if first != "writes":
            assert connection.execute(MADE).fetchone() == made, "something was embedded again"
        _goes_on(connection, url)


def _goes_on(connection: Connection, url: str) -> None:
    connection.execute("update article set body = 'changed' where code = 'n1'")
    connection.execute("update article set shown = false where code = 'n2'")
    connection.execute("insert into event values (2, '2024-06-06', 'fair')")
    connection.execute("update note set body = null where id = 1")
    assert captured(connection, "article") == [("n1",), ("n2",)]
    assert captured(connection, "event") == [("2", "2024-06-06")]
    assert drain_url(url) == []
    assert assert_current(connection, "article")[("n1",)] == "title 1: changed"
    assert ("n2",) not in assert_current(connection, "article")
    assert len(assert_current(connection, "event")) == 2
    assert assert_current(connection, "note") == {("2",): "two"}
    connection.execute("select embed.disable('article', drop_vectors => true)")
    connection.execute("select embed.enable('article', array['body'])")
    assert drain_url(url) == []
    assert len(assert_current(connection, "article")) == 20


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.slow
def test_restored_without_owners_and_grants(
    testing_database: str,
    server: Cluster,
    second_server: Cluster,
    server_folder: Path,
    restricted: bool,
) -> None:
    """The doctor sees it, and `migrate` gives and takes every right again."""
    name = testing_database.rpartition("/")[2]
    with psycopg.connect(testing_database, autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute("select embed.restrict_questions(%s)", [restricted])
        assert drain_url(testing_database) == []
    folder = server_folder / f"dump-bare-{restricted}"
    url = dump_and_restore(
        server, name, folder, second_server, "bare", "--no-owner", "--no-privileges"
    )
    rights = "select state, detail from embed.doctor() where \"check\" = 'rights'"
    public = "select has_function_privilege('public', %s, 'execute')"
    with psycopg.connect(url, autocommit=True) as connection:
        state, detail = connection.execute(rights).fetchone() or ()
        assert state == "problem"
        for what in ("not everybody may use the schema embed", "everybody may call embed.ask"):
            assert what in detail
        assert migrate(url) == []
        assert connection.execute(rights).fetchone() == (
            "ok",
            "as embedworker migrate gave them",
        )
        for function, expected in {
            "embed.query(text, text)": True,  # it says itself who may ask
            "embed._question(text, text)": not restricted,
            "embed.ask(uuid, text, text, text, text[], oid)": False,
            "embed.restrict_questions(boolean)": True,  # the same
            "embed.source_2_refresh()": False,
            "embed.source_2_open()": True,
            "embed.dblink(text)": False,
        }.items():
            assert connection.execute(public, [function]).fetchone() == (expected,), function
        connection.execute(
            "drop role if exists reader; create role reader;"
            "grant usage on schema shop to reader; grant select on shop.article to reader;"
            "set role reader"
        )
        found = "select count(*) from shop.article_embedding"
        assert connection.execute(found).fetchone() == (19,)
        search = (
            "select count(*) from embed.search(null::shop.article,"
            " array_fill(0.1::real, array[384])::vector, k => 3)"
        )
        assert connection.execute(search).fetchone() == (3,)
        connection.execute("reset role; drop owned by reader; drop role reader")
        connection.execute("set search_path = shop, public")
        connection.execute("update article set body = 'changed' where name = 'n1'")
        assert drain_url(url) == []
        assert assert_current(connection, "article")[("n1",)] == "title 1: changed"
