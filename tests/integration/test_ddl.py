"""What the application does to the form of its tables after enabling them."""

from contextlib import closing

import psycopg
import pytest
from fix_drain import (
    Connection,
    Drain,
    Lane,
    assert_current,
    captured,
    drain_url,
    source_of,
    wait_until_done,
)
from waiting import wait_until

from embedworker.errors import ModelError
from embedworker.service import scan
from embedworker.service.source_errors import LOCKED

TABLE = """
create table article (
    gone integer, id integer primary key, title varchar(20), body text,
    live boolean not null default true, other text
);
alter table article drop column gone;
insert into article (id, title, body)
values (1, 'one', 'first'), (2, 'two', 'second'), (3, 'three', null);
"""
ENABLE = (
    "select embed.enable('article', array['title', 'body'], filter => 'live',"
    " template => '{title}: {body}')"
)
TEXTS = {("1",): "one: first", ("2",): "two: second", ("3",): "three: "}


@pytest.fixture
def article(app: Connection, drain: Drain) -> Connection:
    app.execute(TABLE)
    app.execute(ENABLE)
    assert drain() == []
    assert assert_current(app, "article") == TEXTS
    return app


def error_of(app: Connection, source: int) -> tuple[str | None, str]:
    """What embed.source_state keeps, and the state that embed.status shows."""
    row = app.execute(
        "select t.error, s.state from embed.source_state t, embed.source e, embed.status s"
        " where t.source = %s and e.id = t.source and s.source = e.relation and s.name = e.name",
        [source],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


UNSEEN = {
    "triggers disabled for a while": (
        "alter table article disable trigger all; update article set body = 'changed' where id = 1;"
        " alter table article enable trigger all",
        TEXTS | {("1",): "one: changed"},
    ),
    "one trigger disabled for a while": (
        "alter table article disable trigger embed_{}_update;"
        " update article set body = 'changed' where id = 1;"
        " alter table article enable trigger embed_{}_update",
        TEXTS | {("1",): "one: changed"},
    ),
    "a trigger dropped": (
        "drop trigger embed_{}_delete on article; delete from article where id = 1",
        {("2",): "two: second", ("3",): "three: "},
    ),
    "rows written anew": (
        "alter table article alter column body type text using upper(body)",
        {("1",): "one: FIRST", ("2",): "two: SECOND", ("3",): "three: "},
    ),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_no_trigger_saw_between_two_looks(
    article: Connection, drain: Drain, what: str
) -> None:
    """The form is as it was at both, and a worker sweeps all the same: once."""
    statement, expected = UNSEEN[what]
    source = source_of(article, "article")
    with article.transaction():
        article.execute(statement.replace("{}", str(source.id)))
    assert captured(article, "article") == []
    assert drain() == []
    assert assert_current(article, "article") == expected
    again = article.execute("select embed._refresh(%s)", [source.id]).fetchone()
    assert again == ("same",)


RENAMES = {
    "table": ("alter table article rename to story", "story", ("id", "title", "body", "live")),
    "key": (
        "alter table article rename id to number",
        "article",
        ("number", "title", "body", "live"),
    ),
    "text": (
        "alter table article rename body to prose",
        "article",
        ("id", "title", "prose", "live"),
    ),
    "filter": (
        "alter table article rename live to shown",
        "article",
        ("id", "title", "body", "shown"),
    ),
    "swap": (
        "alter table article rename body to x; alter table article rename title to body;"
        " alter table article rename x to title",
        "article",
        ("id", "body", "title", "live"),
    ),
    "schema": (
        "create schema shop2; alter table article set schema shop2;"
        " set search_path = shop2, shop, public",
        "article",
        ("id", "title", "body", "live"),
    ),
    "other": (
        "alter table article rename other to another",
        "article",
        ("id", "title", "body", "live"),
    ),
    "vectors": (
        "alter table article_embedding rename to vecs",
        "article",
        ("id", "title", "body", "live"),
    ),
}


@pytest.mark.parametrize("what", RENAMES)
@pytest.mark.parametrize("worker", ["same worker", "new worker"])
@pytest.mark.slow
def test_rename(
    article: Connection, lane: Lane, shared_database: str, what: str, worker: str
) -> None:
    """A session that has run the triggers before goes on writing, and nothing is missed."""
    statement, table, (key, title, body, live) = RENAMES[what]
    try:
        article.execute("update article set body = body || '' where id = 1")
        assert lane.drain() == []
        article.execute(statement)
        # Whoever searches or asks for the state needs no worker to have looked first.
        errors = "select error from embed.status where source = %s::regclass"
        assert article.execute(errors, [table]).fetchone() == (None,)
        article.execute(f"update {table} set {body} = 'changed' where {key} = 1")
        article.execute(f"update {table} set {live} = false where {key} = 2")
        article.execute(
            f"insert into {table} ({key}, {title}, {body}) values (4, 'four', 'fourth')"
        )
        settle = lane.drain if worker == "same worker" else lambda: drain_url(shared_database)
        wait_until_done(article, table, settle)  # a worker with the old names fails once
        if what == "swap":  # nothing fails
            lane.a_minute_later()
            assert settle() == []
        expected = {("1",): "one: changed", ("3",): "three: ", ("4",): "four: fourth"}
        assert assert_current(article, table) == expected
        article.execute(f"update {table} set {title} = 'again' where {key} = 1")
        assert captured(article, table) == [("1",)]
        article.execute(f"delete from {table} where {key} = 4")
        assert settle() == []
        assert assert_current(article, table) == {("1",): "again: changed", ("3",): "three: "}
    finally:
        article.execute("drop schema if exists shop2 cascade; set search_path = shop, public")


def test_other_columns_come_and_go(article: Connection, drain: Drain) -> None:
    article.execute("alter table article drop column other, add column more text default 'x'")
    article.execute("update article set more = 'y'")
    assert captured(article, "article") == []
    article.execute("update article set body = 'changed' where id = 1")
    article.execute("insert into article (id, title, body) values (4, 'four', 'fourth')")
    assert drain() == []
    assert assert_current(article, "article") == TEXTS | {
        ("1",): "one: changed",
        ("4",): "four: fourth",
    }


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("alter table article alter title type text", "one: first"),
        ("alter table article alter title type varchar(3) using left(title, 3)", "one: first"),
        ("alter table article alter body type varchar(99) using upper(body)", "one: FIRST"),
    ],
)
def test_type_of_the_text(article: Connection, drain: Drain, statement: str, first: str) -> None:
    """A change of type may rewrite every text, and fires no trigger."""
    article.execute(statement)
    article.execute("insert into article (id, title, body) values (4, 'fou', 'fourth')")
    assert drain() == []
    assert assert_current(article, "article")[("1",)] == first
    assert assert_current(article, "article")[("4",)] == "fou: fourth"


def test_text_that_becomes_another_type_and_back(article: Connection, lane: Lane) -> None:
    """What the look said is taken back as soon as it goes well again."""
    lane.drain()
    source = source_of(article, "article").id
    article.execute("alter table article alter column body type jsonb using to_jsonb(body)")
    lane.a_minute_later()
    assert "body is now of type jsonb" in " ".join(lane.drain())
    assert error_of(article, source)[1] == "error"
    article.execute("alter table article alter column body type text using body #>> '{}'")
    lane.a_minute_later()
    assert lane.drain() == []
    assert error_of(article, source)[0] is None
    assert assert_current(article, "article") == TEXTS


@pytest.mark.smoke
def test_an_event_trigger_that_refuses_and_lets_pass_again(article: Connection, lane: Lane) -> None:
    """The error holds its words and none of our functions, and is taken back."""
    lane.drain()
    source = source_of(article, "article").id
    article.execute(
        "create function refuse() returns event_trigger language plpgsql"
        " as $$ begin raise exception 'not today' using hint = 'Come back tomorrow.'; end $$;"
        "create event trigger refuse on ddl_command_start when tag in ('CREATE FUNCTION')"
        " execute function refuse()"
    )
    try:
        article.execute("alter table article rename title to name")
        lane.a_minute_later()
        lane.drain()
        assert error_of(article, source) == ("not today\nHINT:  Come back tomorrow.", "error")
    finally:
        article.execute("drop event trigger refuse")
    lane.a_minute_later()
    assert lane.drain() == []
    assert error_of(article, source)[0] is None
    assert assert_current(article, "article") == TEXTS


@pytest.mark.smoke
def test_another_expression_of_a_generated_text(app: Connection, drain: Drain) -> None:
    if app.info.server_version < 170000:
        pytest.skip("SET EXPRESSION came with PostgreSQL 17")
    app.execute(
        """
        create table article (id integer primary key, body text,
            whole text generated always as ('a ' || body) stored);
        insert into article (id, body) values (1, 'one');
        select embed.enable('article', array['whole']);
        """
    )
    assert drain() == []
    app.execute("alter table article alter whole set expression as ('b ' || body)")
    assert drain() == []
    assert assert_current(app, "article") == {("1",): "b one"}


def test_type_of_the_key(app: Connection, lane: Lane) -> None:
    """A key that no longer fits: the application goes on, and the state says what to do."""
    app.execute("create table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("insert into article values (1, 'one')")
    assert lane.drain() == []
    source = source_of(app, "article").id
    app.execute("alter table article alter id type bigint")
    app.execute("insert into article values (5000000000, 'big')")
    app.execute("update article set body = 'changed'")
    app.execute("delete from article where id = 1")
    (trouble,) = lane.drain()
    assert "from integer to bigint" in trouble
    assert "embed.disable" in trouble
    error, state = error_of(app, source)
    assert state == "error"
    assert error is not None
    assert error in trouble
    app.execute("update article set body = 'again'")
    assert app.execute(
        "select count(*) from embed.sweep_request where source = %s", [source]
    ).fetchone() == (0,)
    with pytest.raises(psycopg.DatabaseError, match="another key"):
        app.execute("select embed.enable('article', array['body'])")
    app.execute("select embed.disable('article', drop_vectors => true)")
    app.execute("select embed.enable('article', array['body'])")
    assert lane.drain() == []
    assert assert_current(app, "article") == {("5000000000",): "again"}


def test_key_that_changes_its_type_and_back(app: Connection, lane: Lane) -> None:
    app.execute("create table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    app.execute("insert into article values (1, 'one')")
    assert lane.drain() == []
    app.execute("alter table article alter id type bigint")
    app.execute("insert into article values (2, 'two')")
    assert len(lane.drain()) == 1
    app.execute("alter table article alter id type integer")
    app.execute("insert into article values (3, 'missed by the silenced trigger')")
    lane.a_minute_later()
    assert lane.drain() == []
    assert len(assert_current(app, "article")) == 3
    app.execute("update article set body = 'seen' where id = 3")
    assert captured(app, "article") == [("3",)]


@pytest.mark.parametrize("kind", ["varchar", "numeric", "char"])
def test_key_that_becomes_longer(app: Connection, drain: Drain, kind: str) -> None:
    short, long, value = {
        "varchar": ("varchar(3)", "varchar(10)", "'abcdefgh'"),
        "numeric": ("numeric(3)", "numeric(10)", "12345678"),
        "char": ("char(3)", "char(10)", "'abcdefgh'"),
    }[kind]
    app.execute(f"create table article (id {short} primary key, body text)")
    app.execute("insert into article values ('1', 'one')")
    app.execute("select embed.enable('article', array['body'])")
    assert drain() == []
    app.execute(f"alter table article alter id type {long}")
    app.execute(f"insert into article values ({value}, 'long')")
    assert drain() == []
    assert sorted(assert_current(app, "article").values()) == ["long", "one"]


def test_a_key_that_is_lost_and_made_again(app: Connection, lane: Lane) -> None:
    """Two rows with one key shared a vector, and a null key stopped the table for good."""
    app.execute("create table article (id integer constraint known primary key, body text)")
    app.execute("insert into article values (1, 'one'), (2, 'two')")
    app.execute("select embed.enable('article', array['body'])")
    assert lane.drain() == []
    app.execute("alter table article drop constraint known, alter id drop not null")
    app.execute("insert into article values (1, 'one more'), (null, 'none')")
    lane.a_minute_later()
    (said,) = lane.drain()
    assert "rows of article can have the same key (id)" in said.replace("shop.", "")
    app.execute("delete from article where id is null or body = 'one more'")
    app.execute("alter table article add primary key (id)")
    app.execute("insert into article values (3, 'three')")
    lane.a_minute_later()
    assert lane.drain() == []
    assert len(assert_current(app, "article")) == 3


def test_a_null_key_stops_no_other_row(app: Connection, lane: Lane) -> None:
    """Before a worker looks at the table, and sees that it lost its key."""
    app.execute("create table article (id integer constraint known primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    assert lane.drain() == []
    app.execute("alter table article drop constraint known, alter id drop not null")
    app.execute("insert into article values (null, 'none'), (1, 'one')")
    app.execute("delete from article where id is null")
    app.execute("alter table article add primary key (id)")
    assert lane.drain() == []
    assert list(assert_current(app, "article").values()) == ["one"]


def test_another_unique_index_takes_the_place_of_the_key(article: Connection, lane: Lane) -> None:
    article.execute("create unique index by_id on article (id)")
    article.execute("alter table article drop constraint article_pkey, alter id set not null")
    article.execute("update article set body = 'again' where id = 1")
    lane.a_minute_later()
    assert lane.drain() == []
    assert_current(article, "article")


@pytest.mark.parametrize("column", ["body", "live", "id"])
def test_drop_of_an_enabled_column(article: Connection, lane: Lane, column: str) -> None:
    assert lane.drain() == []
    source = source_of(article, "article").id
    article.execute(f"alter table article drop column {column} cascade")
    article.execute(
        "insert into article (title) values ('new')"
        if column == "id"
        else "insert into article (id, title) values (4, 'four')"
    )
    article.execute("update article set title = 'changed'")
    article.execute("delete from article where title = 'none'")
    article.execute("update article set other = 'x'")
    (trouble,) = lane.drain()
    assert "was dropped" in trouble
    error, state = error_of(article, source)
    assert (state, error is not None and error in trouble) == ("error", True)
    for _ in range(3):
        article.execute("update article set title = 'changed again', other = 'y'")
        assert lane.drain() == [trouble]
    assert article.execute(
        "select count(*) from embed.sweep_request where source = %s", [source]
    ).fetchone() == (0,)
    article.execute("select embed.disable('article')")
    if column == "id":
        article.execute("alter table article add id serial primary key")
    article.execute(
        "select embed.enable('article', array['title'], key => array['id'])"
        if column != "id"
        else "select embed.enable('article', array['title'])"
    )
    assert lane.drain() == []
    assert set(assert_current(article, "article").values()) == {"changed again"}


def left_of(app: Connection, source: int) -> list[str]:
    return [
        name
        for (name,) in app.execute(
            "select relname::text from pg_class where relname ~ %(mine)s"
            " union all select proname::text from pg_proc where proname ~ %(mine)s"
            " union all select 'trigger ' || tgname from pg_trigger where tgname ~ %(trigger)s"
            " union all select 'request' from embed.sweep_request where source = %(source)s"
            " union all select 'state' from embed.source_state where source = %(source)s"
            " union all select 'vectors' where to_regclass('article_embedding') is not null",
            {
                "mine": rf"^(inbox|queue|state|source)_{source}(_|$)",
                "trigger": rf"^embed_{source}_",
                "source": source,
            },
        ).fetchall()
    ]


@pytest.mark.parametrize(
    "statement", ["drop table article", "drop schema shop cascade; create schema shop"]
)
def test_drop_of_the_table(article: Connection, lane: Lane, statement: str) -> None:
    assert lane.drain() == []
    source = source_of(article, "article").id
    assert left_of(article, source) != []
    article.execute("update article set body = 'waits'; truncate article")
    article.execute(statement)
    lane.a_minute_later()
    assert lane.drain() == []
    assert left_of(article, source) == []


def test_drop_of_a_table_with_row_security(article: Connection, lane: Lane) -> None:
    """The policy of the vectors must not stand in the way of the application's own changes."""
    article.execute("alter table article enable row level security")
    article.execute("select embed.disable('article', drop_vectors => true)")
    article.execute(ENABLE)
    assert lane.drain() == []
    article.execute("alter table article rename id to number; alter table article drop column body")
    article.execute("drop table article")


@pytest.mark.smoke
def test_table_dropped_and_made_again(article: Connection, drain: Drain) -> None:
    """In one transaction, before any worker has looked; the vectors that fit are used again."""
    before = vectors_of(article)
    article.execute(f"begin; drop table article; {TABLE} {ENABLE}; commit")
    article.execute("update article set body = 'changed' where id = 1")
    assert drain() == []
    assert assert_current(article, "article") == TEXTS | {("1",): "one: changed"}
    after = vectors_of(article)
    assert {key: at for key, at in after.items() if key != 1} == {
        key: at for key, at in before.items() if key != 1
    }


def vectors_of(app: Connection) -> dict[int, object]:
    return dict(app.execute("select id, embedded_at from article_embedding").fetchall())


def test_drop_of_the_vectors(article: Connection, lane: Lane) -> None:
    assert lane.drain() == []
    article.execute("drop table article_embedding")
    article.execute("update article set body = 'changed' where id = 1")
    wait_until(lambda: "vectors of shop.article was dropped" in "".join(lane.drain()))
    article.execute(ENABLE)
    lane.a_minute_later()
    wait_until_done(article, "article", lane.drain)
    assert assert_current(article, "article") == TEXTS | {("1",): "one: changed"}
    article.execute("drop table article_embedding")
    article.execute("select embed.disable('article', drop_vectors => true)")


@pytest.mark.parametrize("swept", [False, True])
def test_truncated_vectors(article: Connection, drain: Drain, swept: bool) -> None:
    article.execute("truncate article_embedding")
    if swept:
        article.execute("select embed.sweep('article')")
    assert drain() == []
    assert assert_current(article, "article") == TEXTS


@pytest.mark.smoke
def test_view_of_the_applications_on_the_vectors(article: Connection, lane: Lane) -> None:
    article.execute("create view mine as select * from article_embedding; drop table article")
    lane.a_minute_later()
    assert lane.drain() == []
    assert article.execute("select count(*) from mine").fetchone() == (3,)
    article.execute("drop table article_embedding cascade")


def test_open_disable_does_not_stop_others(
    article: Connection, drain: Drain, shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is locked until the administrator commits; other sources go on."""
    monkeypatch.setattr(scan, "LONGEST_LOCK", 0.3)
    article.execute("create table note (id integer primary key, body text)")
    article.execute("select embed.enable('note', array['body'])")
    assert drain() == []
    with psycopg.connect(shared_database) as admin:
        admin.execute("select embed.disable('shop.article')")
        article.execute("insert into note values (1, 'one')")
        assert drain() == [f"shop.article: {LOCKED}"]
        assert assert_current(article, "note") == {("1",): "one"}
        admin.rollback()
    assert drain() == []
    assert assert_current(article, "article") == TEXTS


def test_a_locked_table_is_named_with_what_to_do(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    assert drain() == []
    article.execute("update article set body = 'changed' where id = 1")
    with psycopg.connect(shared_database) as other:
        other.execute("lock table shop.article in access exclusive mode")
        assert drain() == [f"shop.article: {LOCKED}"]
        number = source_of(article, "article").id  # embed.status would wait for the table
        kept = "select error from embed.source_state where source = %s"
        assert article.execute(kept, [number]).fetchone() == (LOCKED,)
    wait_until(lambda: drain() == [], what="the advice was followed")
    assert assert_current(article, "article")[("1",)] == "one: changed"


def test_an_error_that_a_dead_worker_left_is_cleared(
    article: Connection, lane: Lane, shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed in embed.status, although another worker embedded every row."""

    def absent(*_: object) -> None:
        raise ModelError("no such folder on this machine")

    assert lane.drain() == []
    lane.lane.step()
    with closing(Lane(shared_database)) as other:
        monkeypatch.setattr(other.registry, "load", absent)
        article.execute("update article set body = 'one' where id = 1")
        assert any("no such folder" in trouble for trouble in other.drain())
    article.execute("update article set body = 'two' where id = 1")
    assert lane.drain() == []
    lane.lane.step()
    found = "select state, error from embed.status where source = 'shop.article'::regclass"
    assert article.execute(found).fetchone() == ("ready", None)


def test_drop_of_the_schema_embed(two_phase: str) -> None:
    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute("create schema shop; set search_path = shop, public")
        connection.execute(TABLE)
        connection.execute(ENABLE)
        connection.execute("update article set body = 'x'")
        connection.execute("drop schema embed cascade")
        connection.execute("update article set body = 'y' where id = 1")
        connection.execute("insert into article (id, title) values (9, 'nine')")
        connection.execute("delete from article where id = 9; truncate article")
