"""Advice that the product gives, followed to the letter: afterwards it works."""

import re
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from fix_database import _numbers
from fix_drain import Connection, Lane, assert_current, source_of
from psycopg.conninfo import make_conninfo

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL


@pytest.fixture
def landlord(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a database whose owner is no superuser, who has set it up and runs the worker."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    name = f"landlord{next(_numbers)}"
    with psycopg.connect(server.url(), autocommit=True) as superuser:
        superuser.execute(f"create role {name} login password 'made up'".encode())
        superuser.execute(f"create database {name} owner {name}".encode())
        with psycopg.connect(server.url(name), autocommit=True) as c:
            c.execute("create extension vector")
        url = make_conninfo(server.url(name), user=name, password="made up")
        migrate(url, model=TESTING_MODEL)
        yield url
        superuser.execute(f"drop database {name} with (force)".encode())
        superuser.execute(f"drop owned by {name}; drop role {name}".encode())


@pytest.mark.parametrize("into_column", [None, "vec"])
def test_the_policy_for_forced_row_security(landlord: str, into_column: str | None) -> None:
    with connect(landlord) as connection, closing(Lane(landlord)) as lane:
        connection.execute(
            "create table article (id integer primary key, body text, vec vector(384));"
            "insert into article (id, body) values (1, 'one'), (2, 'two');"
        )
        connection.execute(
            "select embed.enable('article', array['body'], into_column => %s)", [into_column]
        )
        assert lane.drain() == []
        connection.execute(
            "create policy own on article using (id = 1);"
            "alter table article enable row level security, force row level security"
        )
        lane.a_minute_later()
        (trouble,) = lane.drain()
        (policy,) = re.findall(r"as the owner: (create policy .*?\(true\))", trouble)
        connection.execute(policy.encode())
        connection.execute("update article set body = 'changed'")
        lane.a_minute_later()
        assert lane.drain() == []
        assert assert_current(connection, "article")[("1",)] == "changed"


TABLES = """
create table article (id integer primary key, title text, body text, views integer);
insert into article values (1, 'one', 'first', 5);
select embed.enable('article', array['body']);
"""


def findings(connection: Connection) -> list[tuple[str, str, str, str | None]]:
    return connection.execute(
        "select subject, \"check\", state, advice from embed.doctor() where subject like 'shop%'"
    ).fetchall()


# What is done to an enabled table, the check that sees it, and whether a worker has to look after.
ADVICE = {
    "alter table article disable trigger user": "triggers",
    "select embed.pause('article')": "queue",
    "update embed.queue_{id} set due = 'infinity'": "dead rows",
    "drop table article_embedding": "table",
    "alter table article drop column body": "table",
    "alter table article alter column body type bytea using null": "table",
    "alter table article_embedding drop column terms": "table",
}


@pytest.mark.parametrize("done", ADVICE)
def test_advice_of_the_doctor_that_is_followed_helps(
    app: Connection, lane: Lane, done: str
) -> None:
    """Its statements are run as they stand there; "enable it again" is the call of before."""
    check = ADVICE[done]
    app.execute(TABLES)
    assert lane.drain() == []
    number = source_of(app, "article").id
    if "queue" in done:
        app.execute("insert into article values (2, 'two', 'second', 7)")
        app.execute(
            f"insert into embed.queue_{number} (k1, seq, priority, error)"
            f" values (2, nextval('embed.seq'), 0, 'made up');"
            f"delete from embed.inbox_{number}".encode()
        )
    app.execute(done.replace("{id}", str(number)).encode())
    finding = 'select state, advice from embed.doctor() where subject = %s and "check" = %s'
    state, advice = app.execute(finding, ["shop.article", check]).fetchone() or ("", "")
    assert state in ("problem", "warning")
    statements = re.findall(
        r"(?:alter table|select embed\.|embed\.disable)[^;]*?[;)](?=[ ,.;]|$)", advice
    )
    for said in statements:
        call = said.rstrip(";")
        app.execute(f"{'select ' if call.startswith('embed.') else ''}{call}".encode())
    if "enable it again" in advice or "embed.enable" in advice:
        columns = app.execute(
            "select array_agg(attname::text) from pg_attribute where attrelid = 'article'::regclass"
            " and attname in ('title', 'body') and atttypid = 'text'::regtype and not attisdropped"
        ).fetchone()
        app.execute("select embed.enable('article', %s)", list(columns or ()))
    assert statements, advice
    lane.a_minute_later()
    assert lane.drain() == []
    after = app.execute(finding, ["shop.article", check]).fetchone()
    assert after == ("ok", None), findings(app)
