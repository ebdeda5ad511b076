"""embed.enable and its reverse: what is refused and how, what may be changed, who may do it."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, assert_current, captured, drain_url, source_of
from waiting import wait_until

ROWS = """
create table article (id integer primary key, title text, body text, n integer,
    live boolean default true, small vector(3), place vector(384));
insert into article (id, title, body)
select i, 'title ' || i, 'body ' || i from generate_series(1, 5) i;
"""
ENABLE = "select embed.enable('article', array['body'])"


@pytest.fixture
def article(app: Connection) -> Connection:
    app.execute(ROWS)
    return app


REFUSED: dict[str, tuple[str, str, str, str]] = {
    "view": ("create view v as select 1", "'v', array['x']", "EW003", "is not a table"),
    "materialised view": (
        "create materialized view v as select 'a' x",
        "'v', array['x']",
        "EW003",
        "is not a table",
    ),
    "view with a filter": (
        "create view v as select 1 as x",
        "'v', array['x'], filter => 'x > 0'",
        "EW003",
        "is not a table",
    ),
    "temporary table": (
        "create temporary table t (id integer primary key, body text)",
        "'t', array['body']",
        "EW003",
        "temporary",
    ),
    "catalog": ("", "'pg_class', array['relname']", "EW003", "belongs to the system"),
    "ours": ("", "'embed.source', array['name']", "EW003", "belongs to the system"),
    "no columns": ("", "'article', '{}'", "EW003", "no columns were given"),
    "null for columns": ("", "'article', null", "EW003", "no columns were given"),
    "no such column": ("", "'article', array['text']", "42703", "no column text"),
    "null among columns": ("", "'article', array['body', null]", "42703", "no column"),
    "system column": ("", "'article', array['ctid']", "42703", "no column ctid"),
    "dropped column": (
        "alter table article add gone text; alter table article drop gone",
        "'article', array['gone']",
        "42703",
        "no column gone",
    ),
    "other case": ("", "'article', array['Body']", "42703", 'no column "Body"'),
    "not a text": ("", "'article', array['n']", "EW003", "of type integer, expected a text type"),
    "blank name": ("", "'article', array['body'], name => ' '", "EW003", "name is blank"),
    "null for chunk": ("", "'article', array['body'], chunk => null", "EW003", "chunk is null"),
    "twice": ("", "'article', array['body', 'body']", "EW003", "named twice"),
    "unknown model": (
        "",
        "'article', array['body'], model => 'x/y'",
        "EW003",
        "'x/y' is not known",
    ),
    "no key": (
        "create table t (id integer, body text)",
        "'t', array['body']",
        "EW003",
        "no usable key",
    ),
    "nullable key": (
        "create table t (id integer unique, body text)",
        "'t', array['body']",
        "EW003",
        "no usable key",
    ),
    "partial key": (
        "create table t (id integer not null, body text);"
        " create unique index on t (id) where id > 0",
        "'t', array['body']",
        "EW003",
        "no usable key",
    ),
    "expression key": (
        "create table t (id text not null, body text); create unique index on t (lower(id))",
        "'t', array['body']",
        "EW003",
        "no usable key",
    ),
    "deferrable key": (
        "create table t (id integer primary key deferrable, body text)",
        "'t', array['body']",
        "EW003",
        "no usable key",
    ),
    "other key": ("", "'article', array['body'], key => array['title']", "EW003", "no usable key"),
    "array key": (
        "create table t (id integer[] primary key, body text)",
        "'t', array['body']",
        "EW003",
        "array type",
    ),
    "taken name of a key": (
        "create table t (chunk integer primary key, body text)",
        "'t', array['body']",
        "EW003",
        "name of a column of its vector table",
    ),
    "no place": (
        "",
        "'article', array['body'], into_column => 'x'",
        "EW003",
        "no nullable column x",
    ),
    "place of another type": (
        "",
        "'article', array['body'], into_column => 'body'",
        "EW003",
        "no nullable column body",
    ),
    "place that is not null": (
        "alter table article add p vector(384) not null default array_fill(0, array[384])::vector",
        "'article', array['body'], into_column => 'p'",
        "EW003",
        "no nullable column p",
    ),
    "place of other dimensions": (
        "",
        "'article', array['body'], into_column => 'small'",
        "EW005",
        "has 3 dimensions, but model testing:hash makes 384",
    ),
    "filter that is none": ("", "'article', array['body'], filter => 'where x'", "EW003", "filter"),
    "filter on no column": (
        "",
        "'article', array['body'], filter => 'nothing'",
        "EW003",
        'column "nothing" does not exist',
    ),
    "filter of another type": (
        "",
        "'article', array['body'], filter => 'n'",
        "EW003",
        "must be type boolean",
    ),
    "filter with an aggregate": (
        "",
        "'article', array['body'], filter => 'count(*) > 1'",
        "EW003",
        "aggregate functions are not allowed",
    ),
    "filter with another table": (
        "create table t (id integer)",
        "'article', array['body'], filter => 'exists (select from t where t.id = n)'",
        "EW003",
        "asks more than the row",
    ),
    "filter that breaks out": (
        "create table t (n integer)",
        "'article', array['body'], filter => 'live) union select from t where (true'",
        "EW003",
        "each UNION query must have the same number of columns",
    ),
    "filter that goes on": (
        "create table t (n integer)",
        "'article', array['body'], filter => 'live); drop table t; select (true'",
        "EW003",
        "filter",
    ),
    "filter without a column": (
        "",
        "'article', array['body'], filter => 'true'",
        "EW003",
        "names no column",
    ),
    "filter of the whole row": (
        "",
        "'article', array['body'], filter => 'live and article is not null'",
        "EW003",
        "names no column",
    ),
    "filter that depends on the time": (
        "alter table article add published_at timestamptz",
        "'article', array['body'], filter => 'published_at <= now()'",
        "EW003",
        "can change though its row does not",
    ),
    "filter that depends on the day": (
        "alter table article add day date",
        "'article', array['body'], filter => 'day < current_date'",
        "EW003",
        "can change though its row does not",
    ),
    "filter that depends on a setting": (
        "",
        "'article', array['body'], filter => $$body = current_setting('app.owner', true)$$",
        "EW003",
        "can change though its row does not",
    ),
    "filter that depends on who asks": (
        "",
        "'article', array['body'], filter => 'body = current_user'",
        "EW003",
        "can change though its row does not",
    ),
    "filter by chance": (
        "",
        "'article', array['body'], filter => 'n > random()'",
        "EW003",
        "can change though its row does not",
    ),
    "filter by a function that may change": (
        "create function f(n integer) returns boolean language sql as 'select true'",
        "'article', array['body'], filter => 'f(n)'",
        "EW003",
        "can change though its row does not",
    ),
    "filter by an operator that may change": (
        "create function f(integer, integer) returns boolean language sql as 'select true';"
        " create operator <<<< (leftarg = integer, rightarg = integer, function = f)",
        "'article', array['body'], filter => 'n <<<< 3'",
        "EW003",
        "can change though its row does not",
    ),
    "filter by a cast that depends on a setting": (
        "alter table article add at timestamptz",
        "'article', array['body'], filter => 'at::date > ''2026-01-01'''",
        "EW003",
        "can change though its row does not",
    ),
    "filter by text that depends on a setting": (
        "alter table article add at timestamptz",
        "'article', array['body'], filter => 'at::text > ''2026'''",
        "EW003",
        "can change though its row does not",
    ),
    "filter by a system column": (
        "",
        "'article', array['body'], filter => 'live and xmin is not null'",
        "EW003",
        "can change though its row does not",
    ),
    "table in the way": (
        "create table article_embedding (id integer)",
        "'article', array['body']",
        "42P07",
        "is not a vector table",
    ),
    "view in the way": (
        "select embed.enable('article', array['body']); select embed.disable('article');"
        " alter table article_embedding rename to x;"
        " create view article_embedding as select * from x",
        "'article', array['body']",
        "42P07",
        "is not a vector table",
    ),
    "vectors without their key": (
        "select embed.enable('article', array['body']); select embed.disable('article');"
        " alter table article_embedding drop constraint article_embedding_pkey",
        "'article', array['body']",
        "42P07",
        "is not a vector table",
    ),
    "vectors of another key": (
        "select embed.enable('article', array['body']); select embed.disable('article', false);"
        " alter table article alter id type bigint",
        "'article', array['body']",
        "42P07",
        "is not a vector table",
    ),
    "vectors of other dimensions": (
        "select embed.enable('article', array['body']); select embed.disable('article');"
        " alter table article_embedding alter embedding type vector(3)",
        "'article', array['body']",
        "EW005",
        "have 3 dimensions, but the model makes 384",
    ),
    "vectors of another source": (
        "create table t (id integer primary key, body text);"
        " select embed.enable('article', array['body'])",
        "'t', array['body'], name => 'article'",
        "42P07",
        "holds the vectors of another source",
    ),
    "other place": (
        ENABLE,
        "'article', array['body'], into_column => 'place'",
        "EW003",
        "already, with another place",
    ),
    "other key than before": (
        ENABLE
        + "; alter table article add code integer not null unique generated always as identity",
        "'article', array['body'], key => array['code']",
        "EW003",
        "already, with another key",
    ),
    "other chunk": (
        ENABLE,
        "'article', array['body'], chunk => false",
        "EW003",
        "already, with chunk => t",
    ),
    "model of other dimensions": (
        ENABLE + "; select embed.add_model('wide', 1024)",
        "'article', array['body'], model => 'wide'",
        "EW005",
        "have 384 dimensions, but model wide makes 1024",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(article: Connection, case: str) -> None:
    before, arguments, code, said = REFUSED[case]
    article.execute(before)
    with pytest.raises(psycopg.DatabaseError) as error:
        article.execute(f"select embed.enable({arguments})")
    assert error.value.sqlstate == code
    assert said in (error.value.diag.message_primary or "")
    assert error.value.diag.message_hint, "no HINT"
    # Whatever was refused has left nothing behind, and the table can be written.
    article.execute("insert into article (id, body) values (99, 'x')")
    assert article.execute("select to_regclass('pg_temp.embed_probe')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("null, 384", "name of the model is blank"),
        ("' ', 384", "name of the model is blank"),
        ("'wide', 0", "dimensions is 0, expected 1 to 16000"),
        ("'wide', null", "dimensions is null, expected 1 to 16000"),
        ("'wide', 384, max_tokens => 0", "max_tokens is 0, expected 1 or more"),
        ("'wide', 384, query_prefix => null", "a prefix is null"),
        ("'wide', 384, pooling => 'average'", "pooling 'average' is not known"),
    ],
)
def test_add_model_refused(article: Connection, arguments: str, said: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match=said) as error:
        article.execute(f"select embed.add_model({arguments})")
    assert error.value.sqlstate == "EW003"
    assert error.value.diag.message_hint, "no HINT"


def test_a_model_that_is_used_changes_its_endpoint_alone(article: Connection) -> None:
    """Two workers, one of which had loaded it before, embedded the table in turn for ever."""
    article.execute("select embed.add_model('one', 384, 512, 'q: ', 'p: ')")
    article.execute("select embed.add_model('one', 384, 512, 'q: ', 'passage: ')")
    article.execute(ENABLE.replace(")", ", model => 'one')"))
    for change in ("384, 512, 'q: ', 'p: '", "2, 512, 'q: ', 'passage: '", "384"):
        with pytest.raises(psycopg.DatabaseError, match="'one' is used by article") as error:
            article.execute(f"select embed.add_model('one', {change})".encode())
        assert error.value.sqlstate == "EW003"
    article.execute(
        "select embed.add_model('one', 384, 512, 'q: ', 'passage: ', endpoint => 'http://gpu:80/v1')"
    )
    found = "select passage_prefix, endpoint from embed.model where name = 'one'"
    assert article.execute(found).fetchone() == ("passage: ", "http://gpu:80/v1")


def test_a_default_model_is_not_changed_under_an_open_enable(
    article: Connection, shared_database: str
) -> None:
    """The table would have had vectors of other dimensions than its model."""
    article.execute("select embed.add_model('wide', 1024)")
    with psycopg.connect(shared_database) as other:
        other.execute(f"set search_path = shop, public; {ENABLE}".encode())
        article.execute("set lock_timeout = '100ms'")
        for call in "use_model('wide')", "add_model('wide', 2)":
            with pytest.raises(psycopg.errors.LockNotAvailable):
                article.execute(f"select embed.{call}".encode())
        other.commit()
    with pytest.raises(psycopg.DatabaseError, match="other dimensions"):
        article.execute("select embed.use_model('wide')")


@pytest.mark.parametrize(
    "call",
    [
        "disable('article')",
        "pause('article')",
        "resume('article')",
        "sweep('article')",
        "retry('article')",
    ],
)
def test_not_enabled(article: Connection, call: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match="article is not enabled") as error:
        article.execute(f"select embed.{call}")
    assert error.value.sqlstate == "EW002"
    assert error.value.diag.message_hint


def test_use_model_of_other_dimensions(article: Connection) -> None:
    article.execute(ENABLE)
    article.execute("select embed.add_model('wide', 1024)")
    with pytest.raises(psycopg.DatabaseError, match="other dimensions") as error:
        article.execute("select embed.use_model('wide')")
    assert error.value.sqlstate == "EW005"
    with pytest.raises(psycopg.DatabaseError, match="not known") as error:
        article.execute("select embed.use_model('unheard of')")
    assert error.value.sqlstate == "EW003"


def everything_of(app: Connection, source: int) -> Any:
    """Whatever a call that changes nothing must leave as it is."""
    return app.execute(
        "select (select s::text from embed.source s where s.id = %(source)s),"
        " (select array_agg(t.oid order by t.oid) from pg_trigger t where t.tgname ~ %(mine)s),"
        " (select array_agg((p.oid, p.xmin)::text order by p.oid)"
        " from pg_proc p where p.proname ~ %(ours)s),"
        " (select count(*) from embed.sweep_request where source = %(source)s)",
        {"source": source, "mine": f"^embed_{source}_", "ours": f"^source_{source}_"},
    ).fetchone()


@pytest.mark.parametrize(
    "arguments",
    [
        "'article', array['body']",
        "'article', array['title', 'body'], template => '{title}: {body}',"
        " filter => 'live and n is null'",
        "'article', array['body'], name => 'other', key => array['id'], chunk => false",
        "'article', array['body'], into_column => 'place'",
        "'article', array['body'], model => 'testing:hash'",
    ],
)
def test_again_changes_nothing(article: Connection, drain: Drain, arguments: str) -> None:
    (first,) = article.execute(f"select embed.enable({arguments})::text").fetchone() or ()
    assert drain() == []
    (source,) = article.execute(
        "select id from embed.source where relation = 'article'::regclass"
    ).fetchone() or (0,)
    before = everything_of(article, source)
    (second,) = article.execute(f"select embed.enable({arguments})::text").fetchone() or ()
    assert first == second
    assert everything_of(article, source) == before


CHANGES = {
    "columns": ("array['title']", "title 1", ""),
    "more columns": ("array['title', 'body']", "title 1\nbody 1", ""),
    "template": ("array['body'], template => '<{body}>'", "<body 1>", ""),
    "filter": ("array['body'], filter => 'live and id < 3'", "body 1", ""),
    "no filter": ("array['body']", "body 1", ", filter => 'id > 2'"),
    "other filter": ("array['body'], filter => 'id < 2'", "body 1", ", filter => 'id > 2'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_reconfigure(article: Connection, drain: Drain, change: str) -> None:
    arguments, first, before = CHANGES[change]
    article.execute(f"select embed.enable('article', array['body']{before})")
    assert drain() == []
    assert_current(article, "article")
    article.execute(f"select embed.enable('article', {arguments})")
    assert drain() == []
    assert assert_current(article, "article")[("1",)] == first
    # And the triggers know it, too.
    article.execute(
        "update article set title = 'new', body = 'new', live = not live, n = 1 where id = 1"
    )
    assert captured(article, "article") == [("1",)]
    assert drain() == []
    assert_current(article, "article")


def test_other_columns_are_no_longer_watched(article: Connection, drain: Drain) -> None:
    article.execute("select embed.enable('article', array['title'], filter => 'live')")
    article.execute("select embed.enable('article', array['body'])")
    assert drain() == []
    article.execute("update article set title = 'x', live = false")
    assert captured(article, "article") == []


def test_model_of_the_same_dimensions(article: Connection, lane: Lane) -> None:
    """Vectors of two models are never mixed: those of the first are made anew (S55)."""
    article.execute(ENABLE)
    assert lane.drain() == []
    first = source_of(article, "article").fingerprint
    article.execute("select embed.add_model('/no/such/folder', 384)")
    article.execute("select embed.enable('article', array['body'], model => '/no/such/folder')")
    (trouble,) = lane.drain()
    assert "/no/such/folder" in trouble
    article.execute("select embed.enable('article', array['body'], model => 'testing:hash')")
    assert lane.drain() == []
    assert source_of(article, "article").fingerprint == first
    assert len(assert_current(article, "article")) == 5


def test_a_model_that_comes_later(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be opened when the worker starts, and is tried again without anybody's doing."""
    monkeypatch.delenv("EMBEDWORKER_ALLOW_TESTING_MODEL")
    article.execute(ENABLE)
    assert any("is for tests only" in trouble for trouble in lane.drain())
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    wait_until(lambda: lane.drain() == [], 20)
    assert len(assert_current(article, "article")) == 5


def test_filter(article: Connection, drain: Drain) -> None:
    """Rows come and go with it; its functions and operators are the caller's, whoever reads."""
    article.execute(
        """
        create schema more;
        create function more.small(integer) returns boolean
            language sql immutable as 'select $1 < 3';
        set search_path = shop, more, public;
        select embed.enable('article', array['body'], filter => 'small(id) and "live" is true');
        set search_path = shop, public;
        """
    )
    try:
        assert drain() == []
        assert set(assert_current(article, "article")) == {("1",), ("2",)}
        article.execute("update article set live = false where id = 1")
        article.execute("insert into article (id, body) values (0, 'zero'), (9, 'nine')")
        assert drain() == []
        assert set(assert_current(article, "article")) == {("0",), ("2",)}
        article.execute("update article set live = true where id = 1")
        assert drain() == []
        assert set(assert_current(article, "article")) == {("0",), ("1",), ("2",)}
        article.execute("update article set live = null where id = 1")
        assert drain() == []
        assert set(assert_current(article, "article")) == {("0",), ("2",)}
    finally:
        article.execute("select embed.disable('article'); drop schema more cascade")


def test_filter_that_depends_on_the_time(article: Connection, drain: Drain) -> None:
    """What the hint says works: a column that a job keeps."""
    article.execute("alter table article add published_at timestamptz default '2000-01-01'")
    with pytest.raises(psycopg.DatabaseError) as error:
        article.execute(
            "select embed.enable('article', array['body'], filter => 'published_at <= now()')"
        )
    assert error.value.diag.message_detail == "Not immutable: now()."
    assert "add a boolean column, have a job update it" in (error.value.diag.message_hint or "")
    job = "update article set shown = published_at <= now() where shown <> (published_at <= now())"
    article.execute("alter table article add shown boolean not null default false")
    article.execute(job)
    article.execute("select embed.enable('article', array['body'], filter => 'shown')")
    assert drain() == []
    assert len(assert_current(article, "article")) == 5
    article.execute("update article set published_at = 'infinity' where id = 1")
    article.execute(job)
    assert drain() == []
    assert len(assert_current(article, "article")) == 4


def test_filter_means_the_same_to_every_session(article: Connection, drain: Drain) -> None:
    """The one that enables writes dates its own way."""
    article.execute("alter table article add day date")
    article.execute(
        "update article set day = case id when 1 then '2026-02-01' else '2026-01-15' end::date"
    )
    article.execute("set datestyle = 'SQL, DMY'")
    try:
        article.execute(
            "select embed.enable('article', array['body'], filter => 'day >= ''01/02/2026''')"
        )
    finally:
        article.execute("reset datestyle")
    assert drain() == []
    assert set(assert_current(article, "article")) == {("1",)}


@pytest.mark.parametrize("kind", ["json", "jsonb", "point", "integer[]"])
def test_filter_over_a_column_of_any_type(article: Connection, drain: Drain, kind: str) -> None:
    """Some types have no equality; that must not make the application's update fail."""
    first, second = {
        "json": ('{"a": 1}', '{"a": 2}'),
        "jsonb": ('{"a": 1}', '{"a": 2}'),
        "point": ("(1,2)", "(3,4)"),
        "integer[]": ("{1}", "{2}"),
    }[kind]
    article.execute(f"alter table article add more {kind}")
    article.execute(f"update article set more = '{first}'")
    condition = f"more = '{first}'" if kind == "integer[]" else f"more::text = '{first}'"
    article.execute("select embed.enable('article', array['body'], filter => %s)", [condition])
    assert drain() == []
    assert len(assert_current(article, "article")) == 5
    article.execute(f"update article set more = '{second}' where id = 1; update article set n = 1")
    assert captured(article, "article") == [("1",)]
    assert drain() == []
    assert len(assert_current(article, "article")) == 4


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ('(person."{3}" AND (person."{12}" > 1))', '("{3}" AND ("{12}" > 1))'),
        ('("A ""b"" c"."{3}" = 1)', '("{3}" = 1)'),
        ("(t.\"{3}\" <> 'it''s t.\"{3}\"'::text)", "(\"{3}\" <> 'it''s t.\"{3}\"'::text)"),
        ('("it\'s".f(t."{3}") = \'a\')', '("it\'s".f("{3}") = \'a\')'),
        (
            '(person.xmin IS NOT NULL AND shop.xmin_of("{3}"))',
            '(xmin IS NOT NULL AND shop.xmin_of("{3}"))',
        ),
        ('((t."{3}").part > shop.two())', '(("{3}").part > shop.two())'),
        ('("{3}" ~ E\'\\\\\'::text AND "{4}")', '("{3}" ~ E\'\\\\\'::text AND "{4}")'),
    ],
)
def test_filter_is_stored_without_the_name_of_its_table(
    app: Connection, stored: str, expected: str
) -> None:
    assert app.execute("select embed._unqualified(%s)", [stored]).fetchone() == (expected,)


def test_filter_does_not_run_as_a_statement(article: Connection) -> None:
    article.execute("create table t (n integer)")
    with pytest.raises(psycopg.DatabaseError):
        article.execute(
            "select embed.enable('article', array['body'],"
            " filter => 'live); drop table t; select (true')"
        )
    article.execute("select * from t")


def made_at(app: Connection) -> dict[int, Any]:
    return dict(
        app.execute("select id, embedded_at from article_embedding where chunk = 0").fetchall()
    )


@pytest.mark.parametrize(
    ("dimensions", "more", "storage"),
    [(384, "", "m"), (1024, "", "e"), (1024, ", storage => 'halfvec'", "m")],
)
def test_short_vectors_are_kept_inside_their_rows(
    article: Connection, dimensions: int, more: str, storage: str
) -> None:
    article.execute("select embed.add_model('some/model', %s, 512, '', '')", [dimensions])
    article.execute(
        f"select embed.enable('article', '{{title}}', model => 'some/model'{more})".encode()
    )
    assert article.execute(
        "select attstorage::text from pg_attribute"
        " where attrelid = 'article_embedding'::regclass and attname = 'embedding'"
    ).fetchall() == [(storage,)]


def test_a_table_keeps_its_model(article: Connection, drain: Drain) -> None:
    """An application that enables its tables at each start took a change of the model back."""
    article.execute("select embed.add_model('testing:small', 64, 8192, 'query: ', 'passage: ')")
    article.execute(ENABLE)
    drain()
    article.execute("select embed.begin_switch('article', 'testing:small')")
    model = "select model, dimensions from embed.source where name = 'article'"
    article.execute(ENABLE)  # in the middle
    drain()
    article.execute("select embed.cut_over('article'); select embed.end_switch('article')")
    article.execute(ENABLE)
    assert article.execute(model.encode()).fetchall() == [("testing:small", 64)]
    assert article.execute("select from embed.sweep_request").fetchall() == []
    with pytest.raises(psycopg.Error, match="have 64 dimensions, but model testing:hash makes 384"):
        article.execute(ENABLE.replace(")", ", model => 'testing:hash')").encode())


def test_adoption(article: Connection, drain: Drain) -> None:
    """Disabled and enabled again: only what changed meanwhile is embedded again (S5)."""
    article.execute(ENABLE)
    assert drain() == []
    before = made_at(article)
    article.execute("select embed.disable('article')")
    article.execute("update article set body = 'changed' where id = 1")
    article.execute("delete from article where id = 2")
    article.execute("insert into article (id, body) values (6, 'body 6')")
    assert drain() == []
    assert len(made_at(article)) == 5
    article.execute(ENABLE)
    assert drain() == []
    assert len(assert_current(article, "article")) == 5
    after = made_at(article)
    assert {key for key in after if after[key] == before.get(key)} == {3, 4, 5}
    assert set(after) == {1, 3, 4, 5, 6}


def test_vectors_of_somebody_else_are_not_adopted(article: Connection) -> None:
    """Their owner's triggers would run as the worker, and row security does not hold for him."""
    article.execute(ENABLE)
    article.execute("select embed.disable('article')")
    article.execute("create role of_another_team")
    try:
        article.execute("alter table article_embedding owner to of_another_team")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="somebody else"):
            article.execute(ENABLE)
        article.execute("alter table article_embedding owner to current_user")
        article.execute(ENABLE)
    finally:
        article.execute("reassign owned by of_another_team to current_user")
        article.execute("drop owned by of_another_team; drop role of_another_team")


@pytest.mark.parametrize(
    ("setting", "value"), [("standard_conforming_strings", "off"), ("extra_float_digits", "-15")]
)
def test_settings_of_the_database_that_change_what_is_written(
    article: Connection, shared_database: str, setting: str, value: str
) -> None:
    """Keys went astray with rounded numbers, and templates lost their columns, without an error."""
    article.execute("create table measured (at float8 primary key, title text)")
    article.execute("insert into measured values (0.1::float8 + 0.2, 'one'), (1e22 / 3, 'two')")
    article.execute(
        "select embed.enable('measured', array['title'], template => 'Measured: {title}')"
    )
    row = article.execute("select quote_ident(current_database())").fetchone()
    assert row is not None
    article.execute(f"alter database {row[0]} set {setting} = {value}")
    try:
        assert drain_url(shared_database) == []
    finally:
        article.execute(f"alter database {row[0]} reset {setting}")
    assert article.execute(
        "select m.title from measured m join measured_embedding e using (at) order by title"
    ).fetchall() == [("one",), ("two",)]
    assert article.execute("select count(distinct hash) from measured_embedding").fetchone() == (2,)


def test_a_session_that_reads_backslashes_in_strings(article: Connection, drain: Drain) -> None:
    """Every question failed with an error of a regular expression, and filters lost columns."""
    article.execute("select embed.enable('article', array['title'], filter => 'id > 1')")
    drain()
    article.execute("set standard_conforming_strings = off")
    try:
        found = article.execute(
            b"select (s.\"row\").id from embed.search(null::article, 'title two') s"
        ).fetchall()
        problems = article.execute(
            "select detail from embed.doctor() where subject = 'shop.article' and state = 'problem'"
        ).fetchall()
    finally:
        article.execute("reset standard_conforming_strings")
    assert (2,) in found
    assert (1,) not in found
    assert problems == []


def test_the_error_of_an_earlier_worker(article: Connection, drain: Drain) -> None:
    """What it failed at was mended before another came: the table is not in trouble for ever."""
    article.execute(ENABLE)
    article.execute(
        "update embed.source_state set error = 'of an earlier worker', error_at = now()"
        " where source in (select id from embed.source where relation = 'article'::regclass)"
    )
    left = "select error from embed.status where error is not null"
    assert article.execute(left).fetchall()
    assert drain() == []
    assert article.execute(left).fetchall() == []


def test_vectors_of_an_earlier_installation(two_phase: str) -> None:
    """The schema was dropped: the number of a fingerprint must not stand for another model then."""
    from embedworker.database.migrate import migrate

    with psycopg.connect(two_phase, autocommit=True) as connection:
        connection.execute("create schema shop; set search_path = shop, public")
        connection.execute(ROWS)
        connection.execute(ENABLE)
        assert drain_url(two_phase) == []
        before = made_at(connection)
        connection.execute("drop schema embed cascade")
        migrate(two_phase, model="testing:hash")
        connection.execute(
            "insert into embed.fingerprint (digest, model, revision, query_prefix, passage_prefix,"
            " pooling, dimensions, max_tokens) values ('another', 'm', '', '', '', 'mean', 384, 1)"
        )
        connection.execute(ENABLE)
        assert drain_url(two_phase) == []
        assert len(assert_current(connection, "article")) == 5
        assert made_at(connection) == before


@pytest.mark.parametrize("drop", [False, True])
def test_disable(article: Connection, drain: Drain, drop: bool) -> None:
    article.execute(ENABLE)
    assert drain() == []
    article.execute("update article set body = 'waits' where id = 1")
    (source,) = article.execute(
        "select id from embed.source where relation = 'article'::regclass"
    ).fetchone() or (0,)
    article.execute("select embed.disable('article', drop_vectors => %s)", [drop])
    article.execute("update article set body = 'x'; truncate article")
    assert drain() == []
    assert article.execute("select to_regclass('article_embedding') is null").fetchone() == (drop,)
    left = article.execute(
        "select relname::text from pg_class where relname ~ %s"
        " union all select proname::text from pg_proc where proname ~ %s",
        [f"^(inbox|queue|state)_{source}$", f"^source_{source}_"],
    ).fetchall()
    assert left == []


@pytest.mark.parametrize("drop", [False, True])
def test_disable_of_a_column(article: Connection, drain: Drain, drop: bool) -> None:
    article.execute("select embed.enable('article', array['body'], into_column => 'place')")
    assert drain() == []
    article.execute("select embed.disable('article', drop_vectors => %s)", [drop])
    empty = article.execute("select bool_and(place is null) from article").fetchone()
    assert empty == (drop,)


def test_disable_one_of_two(article: Connection) -> None:
    article.execute(ENABLE)
    article.execute("select embed.enable('article', array['title'], name => 'titles')")
    with pytest.raises(psycopg.DatabaseError, match="not enabled under the name 'x'"):
        article.execute("select embed.disable('article', name => 'x')")
    article.execute("select embed.disable('article', name => 'titles')")
    names = "select name from embed.source where relation = 'article'::regclass"
    assert article.execute(names).fetchall() == [("article",)]
    article.execute("select embed.disable('article')")
    assert article.execute(names).fetchall() == []


def test_pause(article: Connection, lane: Lane) -> None:
    article.execute(ENABLE)
    assert lane.drain() == []
    article.execute("select embed.pause('article')")
    article.execute("update article set body = 'changed' where id = 1")
    assert lane.drain() == []
    assert captured(article, "article") == [("1",)]
    article.execute("select embed.resume('article')")
    assert lane.drain() == []
    assert assert_current(article, "article")[("1",)] == "changed"


RIGHTS = """
grant usage on schema embed to owner;
grant execute on function embed._open_schema(regrole) to owner;
grant select, insert, update, delete
    on embed._own_source, embed.source_state, embed.sweep_request to owner;
grant select on embed.source, embed.model, embed.setting, embed.fingerprint to owner;
grant select, delete on embed.lexical_term to owner;
grant usage on sequence embed.seq to owner;
"""


def as_owner(app: Connection, rights: str) -> Callable[[str], None]:
    app.execute("drop role if exists owner")
    app.execute(
        "create role owner; grant usage, create on schema shop to owner;"
        "alter table article owner to owner;" + rights
    )

    def run(statement: str) -> None:
        app.execute("set role owner")
        try:
            app.execute(statement)
        finally:
            app.execute("reset role")

    return run


def test_owner_without_superuser(article: Connection, drain: Drain) -> None:
    """The owner of the table, with no more rights than these on ours."""
    run = as_owner(article, RIGHTS)
    try:
        run("select embed.enable('article', array['body'], filter => 'live')")
        assert drain() == []
        run("update article set body = 'changed' where id = 1")
        run("alter table article rename body to text")
        run("update article set text = 'renamed' where id = 2")
        assert drain() == []
        assert assert_current(article, "article")[("2",)] == "renamed"
        run("truncate article")
        assert drain() == []
        assert assert_current(article, "article") == {}
        run("select embed.sweep('article'); select embed.retry('article')")
        run("select embed.pause('article'); select embed.resume('article')")
        run("select embed.disable('article', drop_vectors => true)")
    finally:
        article.execute(
            "drop table if exists article cascade; drop owned by owner; drop role owner"
        )


def test_without_rights(article: Connection) -> None:
    run = as_owner(article, "")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run(ENABLE)
    finally:
        article.execute("drop owned by owner cascade; drop role owner")


def test_somebody_elses_table(article: Connection) -> None:
    article.execute("create table theirs (id integer primary key, body text)")
    run = as_owner(article, RIGHTS + "grant select on theirs to owner")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run("select embed.enable('theirs', array['body'])")
    finally:
        article.execute("drop owned by owner cascade; drop role owner")
