"""Names with percent signs, quotes and braces: none is taken for a format, a pattern or a hole."""

from dataclasses import replace

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Drain, assert_current, make_dead, source_of
from psycopg import sql

NAME = '100% "odd" {x} %s %1$s %(y)s \\1 & _'
OTHER = NAME.replace("odd", "0dd")  # equal to the other as a pattern of LIKE with underscores


@pytest.fixture
def odd(app: Connection) -> Connection:
    for name in (NAME, OTHER):
        parts = {"table": sql.Identifier(name), "column": sql.Identifier(name + "T")}
        app.execute(
            sql.SQL("create table {table} (id integer primary key, {column} text)").format(**parts)
        )
        app.execute(
            "select embed.enable(%s, array[%s], name => %s)",
            [quoted(app, name), name + "T", f"source of {name}"],
        )
    return app


def quoted(connection: Connection, name: str) -> str:
    return sql.Identifier("shop", name).as_string(connection)


def write(connection: Connection, *texts: str, name: str = NAME) -> None:
    for number, text in enumerate(texts, 1):
        connection.execute(
            sql.SQL("insert into {} values ({}, {})").format(sql.Identifier(name), number, text)
        )


def test_the_whole_way_of_a_row(odd: Connection, drain: Drain) -> None:
    write(odd, "one", "two", "<<fail>>")
    write(odd, "another", name=OTHER)
    drain()
    make_dead(odd, quoted(odd, NAME))
    source = f"source of {NAME}"
    seen = odd.execute(
        "select embedded, pending, dead, error from embed.status where name = %s", [source]
    ).fetchone()
    assert seen == (2, 0, 1, None)
    exact = odd.execute(
        "select embedded, pending, dead, error from embed.status_exact(name => %s)", [source]
    ).fetchone()
    assert exact == seen
    failed = odd.execute("select name, source::text from embed.failure").fetchall()
    assert failed == [(source, sql.Identifier(NAME).as_string(odd))]
    checks = odd.execute('select "check", state, detail from embed.doctor()').fetchall()
    named = [check for check in checks if "{x} %s %1$s" in str(check)]
    assert named, checks
    assert all("format" not in str(check) for check in named)
    assert odd.execute("select embed.retry(%s)", [quoted(odd, NAME)]).fetchone() == (1,)
    odd.execute("select * from embed.sweep(%s)", [quoted(odd, NAME)])
    drain()
    assert assert_current(odd, quoted(odd, OTHER)) == {("1",): "another"}
    find = "select score from embed.search(null::{}, (select embedding from {} where id = 1), 5)"
    table, vectors = sql.Identifier(NAME), sql.SQL(source_of(odd, quoted(odd, NAME)).vectors or "")
    assert len(odd.execute(sql.SQL(find).format(table, vectors)).fetchall()) == 2


def test_what_is_said_names_them_as_they_are(odd: Connection) -> None:
    said: list[str] = []
    odd.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
    table, function = sql.Identifier("shop", "other " + NAME), sql.Identifier("shop", "f" + NAME)
    odd.execute(
        sql.SQL(
            "create table {0} (id integer primary key, body text, v vector(384));"
            "create function {1}() returns trigger language plpgsql as 'begin return new; end';"
            "create trigger {2} before update on {0} for each row execute function {1}()"
        ).format(table, function, sql.Identifier(NAME))
    )
    relation = table.as_string(odd)
    odd.execute("select embed.enable(%s, array['body'], into_column => 'v')", [relation])
    (notice,) = said
    assert sql.Identifier(NAME).as_string(odd) in notice
    refused = [
        "select embed.disable(%s, name => %s)",
        "select embed.enable(%s, array[%s])",
        "select embed.enable(%s, array['body'], model => %s)",
        "select embed.retry(%s, %s)",
        "select * from embed.sweep(%s, %s)",
    ]
    for call in refused:
        with pytest.raises(psycopg.Error) as caught:
            odd.execute(call.encode(), [relation, "not " + NAME])
        assert caught.value.sqlstate not in {"42601", "22023"}, call
        assert NAME.replace("\\", "") in str(caught.value).replace("\\", "").replace('""', '"'), (
            call
        )
    odd.execute("select embed.disable(%s, drop_vectors => true)", [relation])


def test_the_extension_in_a_schema_with_a_percent_sign(odd: Connection) -> None:
    """The statements are sent with parameters: a single percent sign would be one of them."""
    source = replace(source_of(odd, quoted(odd, NAME)), vector_schema="100%s")
    written = source.render("queue_complete")
    assert b'"100%%s"' in written
    assert b'"100%s"' not in written
