"""Tables of every kind, key and name: captured, embedded, updated, deleted."""

import threading
from contextlib import nullcontext

import psycopg
import pytest
from fix_drain import (
    Connection,
    Drain,
    assert_current,
    captured,
    drain_url,
    source_of,
)
from psycopg import sql
from waiting import wait_until


def works(app: Connection, drain: Drain, relation: str, body: str, key: str, values: str) -> None:
    """Insert, update the text, change nothing, delete: with the vectors right after each."""
    app.execute(f"insert into {relation} ({key}, {body}) values {values}")
    assert drain() == []
    rows = len(assert_current(app, relation))
    assert rows > 1
    app.execute(f"update {relation} set {body} = {body} || ' changed'")
    assert len(captured(app, relation)) == rows
    assert drain() == []
    assert all(text.endswith(" changed") for text in assert_current(app, relation).values())
    app.execute(f"update {relation} set {body} = {body}")
    assert captured(app, relation) == []
    app.execute(
        f"delete from {relation}"
        f" where ({key}) = (select {key} from {relation} order by {key} limit 1)"
    )
    assert drain() == []
    assert len(assert_current(app, relation)) == rows - 1


KEYS = {
    "identity": (
        "id bigint generated always as identity (minvalue 9007199254740993) primary key",
        "overriding",
        "",
    ),
    "integer": ("id integer primary key", "id", "(1, 'a'), (-2147483648, 'b')"),
    "smallint": ("id smallint primary key", "id", "(1, 'a'), (32767, 'b')"),
    "bigint": (
        "id bigint primary key",
        "id",
        "(9007199254740993, 'a'), (9007199254740992, 'b'), (-9223372036854775808, 'c')",
    ),
    "uuid": (
        "id uuid primary key",
        "id",
        "('018f0000-0000-7000-8000-000000000001', 'a'),"
        " ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'b')",
    ),
    "text": (
        "id text primary key",
        "id",
        "('', 'a'), ('한글 %s {x} ''q'' \"d\" \\ ,', 'b'), ('NULL', 'c'), ('{}', 'd')",
    ),
    "varchar": ("id varchar(5) primary key", "id", "('a', 'a'), ('b    ', 'b'), ('b', 'c')"),
    "char": ("id char(8) primary key", "id", "('a', 'a'), ('b', 'b')"),
    "numeric": (
        "id numeric(30, 10) primary key",
        "id",
        "(0.1, 'a'), (12345678901234567890.0000000001, 'b')",
    ),
    "double": (
        "id double precision primary key",
        "id",
        "(0.1, 'a'), (1e300, 'b'), ('NaN', 'c'), ('-Infinity', 'd')",
    ),
    "date": ("id date primary key", "id", "('2024-02-29', 'a'), ('infinity', 'b')"),
    "timestamptz": (
        "id timestamptz primary key",
        "id",
        "('2024-03-31 02:30:00.123456+01', 'a'), ('epoch', 'b')",
    ),
    "interval": ("id interval(3) primary key", "id", "('1 day 2 hours', 'a'), ('-1 month', 'b')"),
    "boolean": ("id boolean primary key", "id", "(true, 'a'), (false, 'b')"),
    "bytea": ("id bytea primary key", "id", "('\\x00ff', 'a'), ('\\x', 'b')"),
    "inet": ("id inet primary key", "id", "('::1', 'a'), ('10.0.0.0/8', 'b')"),
    "bit": ("id bit(3) primary key", "id", "(b'101', 'a'), (b'000', 'b')"),
    "range": ("id int4range primary key", "id", "('[1,5)', 'a'), ('empty', 'b')"),
    "enum": ("id mood primary key", "id", "('sad', 'a'), ('it''s \"ok\"', 'b')"),
    "domain": ("id sku primary key", "id", "('A-1', 'a'), ('B-2', 'b')"),
    "citext": ("id citext primary key", "id", "('Abc', 'a'), ('abd', 'b'), ('B', 'c')"),
    "collated": (
        'id text collate "C" primary key',
        "id",
        "('B', 'a'), ('a', 'b')",
    ),
    "composite": (
        "tenant uuid, day date, no numeric, code text, primary key (code, no, day, tenant)",
        "tenant, day, no, code",
        "('018f0000-0000-7000-8000-000000000001', '2024-01-01', 1.50, 'x', 'a'),"
        " ('018f0000-0000-7000-8000-000000000001', '2024-01-01', 1.50, 'y', 'b'),"
        " ('018f0000-0000-7000-8000-000000000002', '2024-01-01', 1.50, 'x', 'c')",
    ),
    "unique": (
        "id bigint, code text not null unique, unique (id)",
        "code",
        "('a', 'a'), ('b', 'b')",
    ),
    "included": (
        "code text, more text, primary key (code) include (more)",
        "code",
        "('a', 'a'), ('b', 'b')",
    ),
    "generated": (
        "no integer, id text generated always as ('n' || no::text) stored primary key",
        "no",
        "(1, 'a'), (2, 'b')",
    ),
}
TYPES = """
create type mood as enum ('sad', 'it''s "ok"');
create domain sku as text check (value ~ '^[A-Z]-[0-9]$');
create extension citext schema shop;
"""


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.slow
def test_key(app: Connection, drain: Drain, kind: str) -> None:
    definition, key, values = KEYS[kind]
    app.execute(TYPES)
    app.execute(f"create table article ({definition}, body text)")
    app.execute("select embed.enable('article', array['body'])")
    if kind == "identity":
        app.execute("insert into article (body) values ('a'), ('b')")
        assert drain() == []
        assert set(assert_current(app, "article")) == {("9007199254740993",), ("9007199254740994",)}
        return
    works(app, drain, "article", "body", key, values)


def test_key_that_changes_in_case_only(app: Connection, drain: Drain) -> None:
    """For citext it is the same key."""
    app.execute("create extension citext schema shop")
    app.execute("create table article (id citext primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("insert into article values ('Abc', 'a'), ('Xyz', 'b')")
    assert drain() == []
    app.execute("update article set id = lower(id::text)::citext, body = body || '!'")
    assert drain() == []
    right = "select count(*) from article s join article_embedding v on s.id = v.id"
    right += " where v.hash = embed.text_hash(s.body)"
    assert app.execute(right).fetchone() == (2,)


TEXTS = {
    "varchar": "varchar(200)",
    "char": "char(20)",
    "citext": "citext",
    "domain": "prose",
    "collated": 'text collate "C"',
    "name": "name",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text(app: Connection, drain: Drain, kind: str) -> None:
    app.execute(TYPES)
    app.execute("create domain prose as citext")
    app.execute(f"create table article (id integer primary key, body {TEXTS[kind]})")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("insert into article values (1, 'One'), (2, 'Two'), (3, null), (4, '')")
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "One", ("2",): "Two"}
    app.execute("update article set body = 'ONE' where id = 1")
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "ONE", ("2",): "Two"}


def test_enums_and_arrays(app: Connection, drain: Drain) -> None:
    """An array is its elements with commas; a renamed label is a new text at the next sweep."""
    app.execute(
        """
        create type mood as enum ('calm', 'loud');
        create domain label as varchar(9);
        create table article (id integer primary key, tags text[], feel mood, labels label[]);
        select embed.enable('article', array['tags', 'feel', 'labels'],
            template => '{tags}|{feel}|{labels}');
        insert into article values
            (1, array['red car', 'a, "b"', null], 'calm', '{x}'), (2, '{}', null, null),
            (3, array['one'], null, array[['k', 'l'], ['m', 'n']]::label[]),
            (4, null, 'loud', '{}');
        """
    )
    assert drain() == []
    texts = {("1",): 'red car, a, "b"|calm|x', ("3",): "one||k, l, m, n", ("4",): "|loud|"}
    assert assert_current(app, "article") == texts
    app.execute("update article set tags = array[null, 'blue'], feel = 'loud' where id = 1")
    app.execute("update article set tags = tags, feel = feel")
    assert captured(app, "article") == [("1",)]
    app.execute("alter type mood rename value 'loud' to 'noisy'")
    app.execute("select embed.sweep('article')")
    assert drain() == []
    renamed = {**texts, ("1",): "blue|noisy|x", ("4",): "|noisy|"}
    assert assert_current(app, "article") == renamed


@pytest.mark.parametrize("storage", ["stored", "virtual"])
def test_generated_text(app: Connection, drain: Drain, storage: str) -> None:
    if storage == "virtual" and app.info.server_version < 180000:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    app.execute(
        f"""
        create table article (id integer primary key, title text, body text, other text,
            whole text generated always as (coalesce(title, '') || ': ' || body) {storage});
        select embed.enable('article', array['whole']);
        insert into article values (1, 'one', 'first'), (2, null, 'second'), (3, 'three', null);
        """
    )
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "one: first", ("2",): ": second"}
    app.execute("update article set other = 'x'")
    assert captured(app, "article") == []
    app.execute("update article set title = 'two' where id = 2")
    app.execute("update article set body = 'third' where id = 3")
    assert captured(app, "article") == [("2",), ("3",)]
    assert drain() == []
    assert assert_current(app, "article") == {
        ("1",): "one: first",
        ("2",): "two: second",
        ("3",): "three: third",
    }


def test_unlogged(app: Connection, drain: Drain) -> None:
    app.execute("create unlogged table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    works(app, drain, "article", "body", "id", "(1, 'a'), (2, 'b')")
    number = source_of(app, "article").id
    kinds = app.execute(
        "select relname, relpersistence::text from pg_class where oid in (to_regclass(%s),"
        " to_regclass(%s), to_regclass('article_embedding')) and relpersistence <> 'u'",
        [f"embed.inbox_{number}", f"embed.queue_{number}"],
    ).fetchall()
    assert kinds == [], "a crash would empty the table and leave these"


PARTITIONED = """
create table article (region text, id integer, body text, other integer, primary key (id, region))
    partition by list (region);
create table article_kr partition of article for values in ('kr');
create table article_de (
    body text, gone integer, other integer, id integer not null, region text not null
);
alter table article_de drop column gone;
alter table article attach partition article_de for values in ('de');
create table article_rest partition of article default partition by range (id);
create table article_rest_1 partition of article_rest for values from (0) to (100);
insert into article values ('kr', 1, 'one'), ('de', 2, 'two'), ('fr', 3, 'three');
select embed.enable('article', array['body']);
"""
ONE, TWO, FOUND = ("1", "kr"), ("2", "de"), ("3", "fr")


@pytest.fixture
def partitioned(app: Connection, drain: Drain) -> Connection:
    app.execute(PARTITIONED)
    assert drain() == []
    assert assert_current(app, "article") == {ONE: "one", TWO: "two", FOUND: "three"}
    return app


@pytest.mark.parametrize(
    ("change", "keys", "expected"),
    [
        (
            "insert into article values ('de', 4, 'four'), ('kr', 5, null)",
            [("4", "de")],
            {ONE: "one", TWO: "two", FOUND: "three", ("4", "de"): "four"},
        ),
        (
            "insert into article_de (id, region, body) values (4, 'de', 'four')",
            [("4", "de")],
            {ONE: "one", TWO: "two", FOUND: "three", ("4", "de"): "four"},
        ),
        (
            "update article set body = body || '!', other = 1",
            [ONE, TWO, FOUND],
            {ONE: "one!", TWO: "two!", FOUND: "three!"},
        ),
        (
            "update article_rest_1 set body = 'x'",
            [FOUND],
            {ONE: "one", TWO: "two", FOUND: "x"},
        ),
        (
            "update article_de set body = 'x', other = 2",
            [TWO],
            {ONE: "one", TWO: "x", FOUND: "three"},
        ),
        ("update article set other = 5", [], {ONE: "one", TWO: "two", FOUND: "three"}),
        ("update article set body = body", [], {ONE: "one", TWO: "two", FOUND: "three"}),
        (
            "update article set region = 'kr' where id = 2",
            [TWO, ("2", "kr")],
            {ONE: "one", ("2", "kr"): "two", FOUND: "three"},
        ),
        (
            "update article set id = 9, body = 'nine' where id = 1",
            [ONE, ("9", "kr")],
            {("9", "kr"): "nine", TWO: "two", FOUND: "three"},
        ),
        ("update article set body = null where id = 1", [ONE], {TWO: "two", FOUND: "three"}),
        ("delete from article", [ONE, TWO, FOUND], {}),
        ("delete from article_kr", [ONE], {TWO: "two", FOUND: "three"}),
        ("truncate article", [], {}),
        ("truncate article_kr", [], {TWO: "two", FOUND: "three"}),
        ("truncate article_rest", [], {ONE: "one", TWO: "two"}),
        (
            "insert into article values ('kr', 1, 'new') on conflict (id, region)"
            " do update set body = excluded.body",
            [ONE],
            {ONE: "new", TWO: "two", FOUND: "three"},
        ),
    ],
)
def test_partitions(
    partitioned: Connection,
    drain: Drain,
    change: str,
    keys: list[tuple[str, ...]],
    expected: dict[tuple[str, ...], str],
) -> None:
    partitioned.execute(change)
    assert captured(partitioned, "article") == sorted(keys)
    assert drain() == []
    assert assert_current(partitioned, "article") == expected


def test_partitions_come_and_go(partitioned: Connection, drain: Drain) -> None:
    app = partitioned
    app.execute(
        """
        create table article_jp (like article);
        insert into article_jp values ('jp', 7, 'seven');
        alter table article attach partition article_jp for values in ('jp');
        """
    )
    assert drain() == []
    assert assert_current(app, "article")[("7", "jp")] == "seven"
    app.execute("insert into article_jp values ('jp', 8, 'eight')")
    assert captured(app, "article") == [("8", "jp")]
    app.execute("alter table article detach partition article_de")
    app.execute("update article_de set body = 'no longer'")
    assert drain() == []
    assert assert_current(app, "article") == {
        ONE: "one",
        FOUND: "three",
        ("7", "jp"): "seven",
        ("8", "jp"): "eight",
    }
    # TRUNCATE is the one trigger that a partition does not inherit: a worker puts it on.
    app.execute("truncate article_jp")
    assert drain() == []
    assert assert_current(app, "article") == {ONE: "one", FOUND: "three"}
    app.execute("drop table article_kr")
    assert drain() == []
    assert assert_current(app, "article") == {FOUND: "three"}


UNSEEN_OF_A_PARTITION = {
    "detached": (
        "alter table article detach partition article_de",
        "alter table article attach partition article_de for values in ('de')",
    ),
    "its triggers disabled": (
        "alter table article_de disable trigger all",
        "alter table article_de enable trigger all",
    ),
    "exchanged for another": (
        "alter table article detach partition article_de; alter table article_de rename to old;"
        " create table article_de (like old); insert into article_de select * from old;"
        " drop table old",
        "alter table article attach partition article_de for values in ('de')",
    ),
}
CHANGES_OF_A_PARTITION = (
    "update article_de set body = 'changed' where id = 2; delete from article_de where id = 3;"
    " insert into article_de (region, id, body) values ('de', 9, 'new')"
)


@pytest.mark.parametrize("at_once", [True, False], ids=["one transaction", "three"])
@pytest.mark.parametrize("how", UNSEEN_OF_A_PARTITION)
def test_partition_that_was_away_between_two_looks(
    partitioned: Connection, drain: Drain, how: str, at_once: bool
) -> None:
    """Before and after, the table has the same partitions and triggers."""
    app = partitioned
    app.execute("insert into article values ('de', 3, 'to be deleted')")
    assert drain() == []
    assert len(assert_current(app, "article")) == 4
    away, back = UNSEEN_OF_A_PARTITION[how]
    with app.transaction() if at_once else nullcontext():
        app.execute(away)
        app.execute(CHANGES_OF_A_PARTITION)
        app.execute(back)
    assert captured(app, "article") == []
    assert drain() == []
    assert sorted(assert_current(app, "article").values()) == [
        "changed",
        "new",
        "one",
        "three",
    ]


def test_a_partition_of_its_own(partitioned: Connection, drain: Drain) -> None:
    """What reaches an enabled partition through its root fires no statement trigger of it."""
    app = partitioned
    app.execute("select embed.disable('article', drop_vectors => true)")
    app.execute("select embed.enable('article_de', array['body'])")
    assert drain() == []
    assert list(assert_current(app, "article_de").values()) == ["two"]
    app.execute("insert into article values ('de', 4, 'four'), ('kr', 5, 'five')")
    app.execute("update article set body = 'changed' where id = 2")
    assert drain() == []
    assert sorted(assert_current(app, "article_de").values()) == ["changed", "four"]


def test_table_that_becomes_a_partition(app: Connection, drain: Drain) -> None:
    app.execute(
        """
        create table article_kr (id integer, region text, body text, primary key (id, region));
        insert into article_kr values (1, 'kr', 'one');
        select embed.enable('article_kr', array['body']);
        """
    )
    assert drain() == []
    app.execute(
        """
        create table article (id integer, region text, body text, primary key (id, region))
            partition by list (region);
        alter table article attach partition article_kr for values in ('kr');
        insert into article values (2, 'kr', 'two');
        """
    )
    assert captured(app, "article_kr") == [], "or this test tests nothing"
    assert drain() == []
    app.execute("update article set body = body || '!'")
    app.execute("insert into article values (3, 'kr', 'three')")
    assert len(captured(app, "article_kr")) == 3
    assert drain() == []
    assert sorted(assert_current(app, "article_kr").values()) == ["one!", "three", "two!"]
    app.execute("alter table article detach partition article_kr")
    app.execute("update article_kr set body = 'alone' where id = 1")
    assert captured(app, "article_kr") == [("1", "kr")]
    assert drain() == []
    assert sorted(assert_current(app, "article_kr").values()) == ["alone", "three", "two!"]


@pytest.mark.smoke
def test_root_and_partition_both_enabled(partitioned: Connection, drain: Drain) -> None:
    app = partitioned
    app.execute("select embed.enable('article_de', array['body'])")
    assert drain() == []
    app.execute("update article set body = body || '!'")
    assert drain() == []
    assert len(assert_current(app, "article")) == 3
    assert list(assert_current(app, "article_de").values()) == ["two!"]


INHERITANCE = """
create table article (id integer primary key, body text);
create table essay (pages integer, primary key (id)) inherits (article);
insert into article values (1, 'parent one'), (2, 'parent two');
insert into essay values (1, 'child one'), (3, 'child three');
"""


@pytest.mark.smoke
def test_inheritance_children_are_sources_of_their_own(app: Connection, drain: Drain) -> None:
    app.execute(INHERITANCE)
    app.execute("select embed.enable('article', array['body'])")
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "parent one", ("2",): "parent two"}
    app.execute("select embed.enable('essay', array['body'])")
    app.execute("update article set body = body || '!'")  # reaches the children's rows, too
    app.execute("insert into essay values (4, 'child four')")
    app.execute("delete from article where id = 3")
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "parent one!", ("2",): "parent two!"}
    assert assert_current(app, "essay") == {("1",): "child one!", ("4",): "child four"}
    app.execute("truncate article")
    assert drain() == []
    assert assert_current(app, "article") == assert_current(app, "essay") == {}


NAMES = [
    "MiXed Case",
    'a "quoted" name',
    "100% {sure} %s %(x)s",
    "it's; drop table x; --",
    "select",
    "n",
    "o",
    "new_row",
    "new_rows",
    "wanted",
    "seq",
    "문서 본문",
    "back\\slash $body$ $1",
    "old.x (new_row.y",
    "x" * 63,
    "가" * 21,
]


@pytest.mark.parametrize(
    ("name", "partitions"),
    [(name, False) for name in NAMES] + [(name, True) for name in NAMES[1:16:2]],
)
@pytest.mark.slow
def test_names(app: Connection, drain: Drain, name: str, partitions: bool) -> None:
    key = name if name != "seq" else "key"  # a column of the vectors has that name
    identifiers = {
        "schema": sql.Identifier(name),
        "table": sql.Identifier(name),
        "key": sql.Identifier(key),
        "body": sql.Identifier(name[:-1] + "T"),
        "other": sql.Identifier(name[:-1] + "O"),
        "leaf": sql.Identifier(name[:-1] + "L"),
    }

    def run(statement: str) -> None:
        app.execute(sql.SQL(statement).format(**identifiers))

    run("create schema {schema}")
    try:
        run(
            "create table {schema}.{table} ({key} text primary key, {body} text, {other} boolean)"
            + (" partition by hash ({key})" if partitions else "")
        )
        if partitions:
            run(
                "create table {schema}.{leaf} partition of {schema}.{table}"
                " for values with (modulus 1, remainder 0)"
            )
        relation = sql.SQL("{schema}.{table}").format(**identifiers).as_string(app)
        app.execute(
            "select embed.enable(%s, %s, filter => %s, template => %s)",
            [
                relation,
                [name[:-1] + "T"],
                sql.SQL("{other} is not false").format(**identifiers).as_string(app),
                None if set("{}") & set(name) else "body: {" + name[:-1] + "T}",
            ],
        )
        run(
            "insert into {schema}.{table}"
            " values ('a', 'one', null), ('b', 'two', true), ('c', 'x', false)"
        )
        assert drain() == []
        assert set(assert_current(app, relation)) == {("a",), ("b",)}
        run("update {schema}.{table} set {body} = {body} || '!', {key} = upper({key})")
        assert drain() == []
        assert set(assert_current(app, relation)) == {("A",), ("B",)}
        run("update {schema}.{table} set {other} = false where {key} = 'A'")
        run("delete from {schema}.{table} where {key} = 'B'")
        assert drain() == []
        assert assert_current(app, relation) == {}
        assert app.execute(
            "select state from embed.status where source = %s::regclass", [relation]
        ).fetchone() != ("error",)
    finally:
        run("drop schema {schema} cascade")


def test_long_names_that_begin_alike(app: Connection) -> None:
    one, two = "x" * 60 + "one", "x" * 60 + "two"
    for name in (one, two):
        app.execute(
            sql.SQL("create table {} (id integer primary key, body text)").format(
                sql.Identifier(name)
            )
        )
    app.execute("select embed.enable(%s, array['body'])", [one])
    with pytest.raises(
        psycopg.errors.DuplicateTable, match="holds the vectors of another"
    ) as error:
        app.execute("select embed.enable(%s, array['body'])", [two])
    assert "name =>" in (error.value.diag.message_hint or "")
    app.execute("select embed.enable(%s, array['body'], name => 'two')", [two])


@pytest.mark.smoke
def test_search_path_of_the_application(app: Connection, drain: Drain) -> None:
    """Tables and operators of the caller's that look like ours or the system's are not used."""
    app.execute(
        """
        create table article (id integer primary key, body text);
        create schema trap;
        create table trap.source (id integer);
        create table trap.inbox_1 (id integer);
        create function trap.wake() returns void language plpgsql
            as 'begin raise exception ''trapped''; end';
        create function trap.never(text, text) returns boolean language sql immutable
            as 'select false';
        create function trap.cardinality(anyarray) returns integer language sql as 'select 0';
        create operator trap.<> (leftarg = text, rightarg = text, function = trap.never);
        create function trap.format(text, variadic text[]) returns text
            language sql as 'select null';
        """
    )
    try:
        app.execute("set search_path = trap, pg_catalog")
        app.execute("select embed.enable('shop.article', array['body'], filter => 'id > 0')")
        app.execute("insert into shop.article values (1, 'one'), (2, 'two')")
        app.execute("set search_path = ''")
        app.execute("update shop.article set body = 'changed' where id = 1")
        assert drain() == []
        assert assert_current(app, "shop.article") == {("1",): "changed", ("2",): "two"}
    finally:
        app.execute("drop schema trap cascade; set search_path = shop, public")


@pytest.mark.smoke
def test_two_sources_of_one_table(app: Connection, drain: Drain) -> None:
    app.execute(
        """
        create table article (id integer primary key, title text, body text);
        select embed.enable('article', array['title']);
        select embed.enable('article', array['title', 'body'], name => 'whole',
            template => '{title} -- {body}');
        insert into article values (1, 'one', 'first'), (2, 'two', null);
        """
    )
    assert drain() == []
    assert assert_current(app, "article", "article") == {("1",): "one", ("2",): "two"}
    assert assert_current(app, "article", "whole") == {("1",): "one -- first", ("2",): "two -- "}
    app.execute("update article set body = 'changed' where id = 1")
    assert captured(app, "article", "article") == []
    assert captured(app, "article", "whole") == [("1",)]
    assert drain() == []
    app.execute("select embed.disable('article', name => 'whole', drop_vectors => true)")
    app.execute("update article set title = 'changed' where id = 1")
    assert drain() == []
    assert assert_current(app, "article", "article") == {("1",): "changed", ("2",): "two"}
    assert app.execute("select to_regclass('whole_embedding')").fetchone() == (None,)


def test_vector_in_a_column_of_the_table(app: Connection, drain: Drain) -> None:
    """Writing it must not capture the row again (S13)."""
    app.execute(
        """
        create table article (id integer primary key, body text, embedding vector(384));
        insert into article (id, body) values (1, 'one'), (2, null);
        select embed.enable('article', array['body'], into_column => 'embedding');
        """
    )
    assert drain() == []
    assert captured(app, "article") == []
    assert assert_current(app, "article") == {("1",): "one"}
    app.execute("update article set body = case id when 1 then null else 'two' end")
    assert drain() == []
    assert assert_current(app, "article") == {("2",): "two"}
    assert app.execute("select id from article where embedding is null").fetchall() == [(1,)]
    app.execute("truncate article; insert into article (id, body) values (2, 'again')")
    assert drain() == []
    assert assert_current(app, "article") == {("2",): "again"}


def test_created_filled_and_enabled_in_one_transaction(app: Connection, drain: Drain) -> None:
    app.execute(
        """
        begin;
        create table article (id integer primary key, body text);
        insert into article values (1, 'one');
        select embed.enable('article', array['body']);
        insert into article values (2, 'two');
        update article set body = 'changed' where id = 1;
        savepoint s;
        delete from article;
        rollback to s;
        commit;
        """
    )
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "changed", ("2",): "two"}


def test_enabled_and_rolled_back(app: Connection, drain: Drain) -> None:
    app.execute("create table article (id integer primary key, body text)")
    app.execute("begin; select embed.enable('article', array['body']); rollback")
    app.execute("insert into article values (1, 'one')")
    assert drain() == []
    assert app.execute("select to_regclass('article_embedding')").fetchone() == (None,)


def test_enabled_by_two_at_once(app: Connection, drain: Drain, shared_database: str) -> None:
    app.execute("create table article (id integer primary key, body text)")
    results: list[object] = []
    barrier = threading.Barrier(4)

    def enable() -> None:
        with psycopg.connect(shared_database, autocommit=True) as connection:
            barrier.wait(10)
            try:
                results.append(
                    connection.execute(
                        "select embed.enable('shop.article', array['body'])::text"
                    ).fetchone()
                )
            except psycopg.Error as error:
                results.append(error)

    threads = [threading.Thread(target=enable) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [("shop.article_embedding",)] * 4
    works(app, drain, "article", "body", "id", "(1, 'a'), (2, 'b')")


def test_enabled_while_writers_run(app: Connection, shared_database: str) -> None:
    app.execute("create table article (id integer primary key, body text)")
    app.execute("insert into article select n, 'old ' || n from generate_series(1, 50) n")
    stop = threading.Event()
    errors: list[BaseException] = []
    writes = [0] * 3

    def write(number: int) -> None:
        try:
            with psycopg.connect(shared_database, autocommit=True) as connection:
                while not stop.is_set():
                    writes[number] += 1
                    key = 100 * number + writes[number] % 60
                    connection.execute(
                        "insert into shop.article values (%s, %s) on conflict (id)"
                        " do update set body = excluded.body",
                        [key, f"{number} wrote {writes[number]}"],
                    )
                    if writes[number] % 7 == 0:
                        connection.execute("delete from shop.article where id = %s", [key])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(writes) >= 30 or errors)
        app.execute("select embed.enable('article', array['body'])")
        seen = list(writes)
        wait_until(lambda: min(map(int.__sub__, writes, seen)) >= 30 or errors)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert drain_url(shared_database) == []
    assert len(assert_current(app, "article")) > 100
