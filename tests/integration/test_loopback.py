"""Set up the loopback of embed.query, repeat it, and find out why it does not work."""

from itertools import count
from typing import Any

import pytest
from fix_questions import (
    QuestionRunner,
    ask,
    question_vector,
    refused,
)
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback, take_down_loopback
from embedworker.queue.source import Connection

_numbers = count(1)


@pytest.mark.smoke
def test_set_up_again_changes_the_password_and_keeps_working(
    questions: QuestionRunner, owner: Connection
) -> None:
    ask(owner, "first")
    before = owner.execute("select umoptions::text from pg_user_mappings").fetchall()
    assert set_up_loopback(owner) == []
    assert owner.execute("select umoptions::text from pg_user_mappings").fetchall() != before
    assert ask(owner, "kept") == pytest.approx(question_vector("kept"), abs=1e-7)
    with connect(questions.url) as fresh:
        assert ask(fresh, "fresh") == pytest.approx(question_vector("fresh"), abs=1e-7)


@pytest.mark.usefixtures("questions")
@pytest.mark.smoke
def test_given_host_that_fails_is_said_and_another_used(owner: Connection) -> None:
    (remark,) = set_up_loopback(owner, host="host.invalid")
    assert "host.invalid" in remark
    assert "127.0.0.1" in remark
    assert ask(owner, "x") == pytest.approx(question_vector("x"), abs=1e-7)
    assert set_up_loopback(owner, host="localhost") == []
    assert owner.execute(
        "select 'host=localhost' = any (srvoptions) from pg_foreign_server"
    ).fetchone() == (True,)


@pytest.mark.smoke
def test_no_host_works(owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedworker.database import loopback

    monkeypatch.setattr(loopback, "_hosts", lambda *_: ["host.invalid"])
    (remark,) = set_up_loopback(owner)
    assert "EMBEDWORKER_LOOPBACK_HOST" in remark
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "EMBEDWORKER_LOOPBACK_HOST" in said.message_hint
    monkeypatch.undo()
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")


@pytest.mark.smoke
def test_password_changed_by_somebody(owner: Connection) -> None:
    role = owner.execute("select embed._loopback_role()").fetchone()
    assert role is not None
    owner.execute(sql.SQL("alter role {} password 'other'").format(sql.Identifier(role[0])))
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "embedworker migrate" in said.message_hint
    assert "password authentication failed" in said.message_detail


def test_too_many_sessions(owner: Connection) -> None:
    role = owner.execute("select embed._loopback_role()").fetchone()
    assert role is not None
    owner.execute(sql.SQL("alter role {} connection limit 0").format(sql.Identifier(role[0])))
    assert "max_connections" in refused(owner, "EW007", "select embed.query('x')").message_hint


def test_asking_while_the_same_transaction_locks_the_questions(owner: Connection) -> None:
    owner.execute(
        "insert into embed.worker_session (id, host, pid, lanes, backend, lock_held)"
        " values (1, 'test', 0, '{questions}', 0, false)"
    )
    owner.execute("begin; lock table embed.question in access exclusive mode")
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "lock timeout" in said.message_detail
    assert "embed.question" in said.message_hint
    owner.execute("rollback")


def test_taken_down(owner: Connection) -> None:
    role = owner.execute("select embed._loopback_role()").fetchone()
    take_down_loopback(owner)
    assert owner.execute(
        "select to_regrole(%s), (select count(*) from pg_foreign_server)", role
    ).fetchone() == (None, 0)
    take_down_loopback(owner)
    assert set_up_loopback(owner) == []


def test_dblink_is_gone(owner: Connection) -> None:
    owner.execute("drop extension dblink cascade")
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "embedworker migrate" in said.message_hint
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")


@pytest.mark.usefixtures("questions")
def test_dblink_in_another_schema_is_used_and_left_as_it_is(
    owner: Connection, application: Connection
) -> None:
    owner.execute('drop extension dblink cascade; create schema "Ext 1"')
    owner.execute('create extension dblink schema "Ext 1"')
    assert set_up_loopback(owner) == []
    assert ask(application, "x") == pytest.approx(question_vector("x"), abs=1e-7)
    assert owner.execute(
        "select has_function_privilege('public', '\"Ext 1\".dblink(text, text)', 'execute')"
    ).fetchone() == (True,)


def test_role_that_may_not_install_dblink(
    owner: Connection, application: Connection, application_role: str
) -> None:
    owner.execute("drop extension dblink cascade")
    owner.execute(
        sql.SQL("alter table embed.setting owner to {}").format(sql.Identifier(application_role))
    )
    (remark,) = set_up_loopback(application)
    assert "create extension dblink" in remark
    assert (
        "create extension dblink" in refused(owner, "EW007", "select embed.query('x')").message_hint
    )


def drop_with_its_roles(owner: Connection, name: str) -> None:
    """Drop a database, the role that its questions came by, and its owner."""
    asks = owner.execute(
        "select 'embed_loopback_' || oid from pg_database where datname = %s", [name]
    ).fetchone()[0]
    owner.execute(f"drop database {name} with (force)")
    owner.execute(f"drop role if exists {asks}")
    owner.execute(f"drop role {name}")


def test_role_that_may_not_create_roles(owner: Connection, server: Any) -> None:
    """The owner of a database who is nothing else: no crash, a remark that says what to grant."""
    from embedworker.database.migrate import migrate

    name = f"landlord{next(_numbers)}"
    owner.execute(f"create role {name} login password 'made up'")
    owner.execute(f"create database {name} owner {name}")
    try:
        with connect(server.url(name), vectors=False) as c:
            c.execute("create extension vector; create extension dblink")
        url = make_conninfo(server.url(name), user=name, password="made up")
        (remark,) = migrate(url)
        assert "createrole" in remark
        with connect(url) as c:
            assert "createrole" in refused(c, "EW007", "select embed.query('x')").message_hint
        owner.execute(f"alter role {name} createrole")
        with connect(server.url(name)) as c:
            c.execute(f"grant usage on foreign data wrapper dblink_fdw to {name}")
        assert migrate(url) == []
        owner.execute(f"alter role {name} nocreaterole")
        assert migrate(url) == [], "what works is left alone"
        with connect(url) as c:
            c.execute("set embed.query_timeout = '100ms'")
            refused(c, "EW001", "select embed.query('x')")
    finally:
        drop_with_its_roles(owner, name)


def test_a_superuser_runs_migrate_once_in_somebody_s_database(
    owner: Connection, server: Any
) -> None:
    """As the remark says; all of it then belongs to the owner, whose questions find their way."""
    from embedworker.database.migrate import migrate

    name = f"landlord{next(_numbers)}"
    owner.execute(f"create role {name} login password 'made up'")
    owner.execute(f"create database {name} owner {name}")
    url = make_conninfo(server.url(name), user=name, password="made up")
    strangers = (
        "select p.oid::regprocedure::text from pg_proc p"
        " where p.pronamespace = 'embed'::regnamespace and p.proowner::regrole::text <> %(name)s"
        " and p.proname not like 'dblink%%'"
        " union all select c.oid::regclass::text from pg_class c"
        " where c.relnamespace = 'embed'::regnamespace and c.relowner::regrole::text <> %(name)s"
        " and c.relkind <> 'c'"
        " union all select srvname from pg_foreign_server where srvowner::regrole::text <> %(name)s"
    )
    try:
        with connect(server.url(name), vectors=False) as c:
            c.execute("create extension vector")
        (remark,) = migrate(url)
        assert "as a superuser run `create extension dblink`" in remark
        assert migrate(server.url(name)) == []
        with connect(server.url(name)) as c:
            assert c.execute(strangers, {"name": name}).fetchall() == []
        with connect(url) as c:
            c.execute("set embed.query_timeout = '100ms'")
            refused(c, "EW001", "select embed.query('x')")
        assert migrate(url) == [], "what works is left alone"
        with connect(url) as c:
            refused(c, "EW001", "select embed.query('x')")
    finally:
        drop_with_its_roles(owner, name)


def test_copied_database_does_not_ask_the_original(owner: Connection) -> None:
    owner.execute("update embed.setting set value = '1' where name = 'loopback'")
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "copy" in said.message_hint
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")
