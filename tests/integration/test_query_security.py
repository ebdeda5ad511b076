"""Who may see what of a question, and what the kept connection can be used for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fix_questions import (
    QuestionRunner,
    ask,
    grant_dblink,
    question_vector,
    refused,
    waiting,
)
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.migrate import migrate
from embedworker.queue.source import Connection

SECRET = "비밀 질문 4711"


@pytest.mark.usefixtures("questions")
@pytest.mark.smoke
def test_dblink_installed_for_us_is_nobody_elses(application: Connection) -> None:
    ask(application, "x")
    refused(
        application, "42501", "select * from embed.dblink('embedworker', 'select 1') as t (x int)"
    )
    refused(application, "42501", "select embed.dblink_get_connections()")


@pytest.mark.parametrize(
    "attack",
    [
        "select rolpassword from pg_authid",
        "select text from embed.question",
        "select embedding::text from embed.question_cache",
        "select value from embed.setting",
        "select umoptions::text from pg_user_mapping",
        "select embed._vector('x', null, 'query')::text",
        "select pg_read_file('PG_VERSION')",
        "copy (select 1) to program 'true'",
        "set role {owner}",
        "set session authorization {owner}",
        "create table embed.mine (x int)",
        "create role mine",
        "alter role current_user superuser",
        "alter role {owner} password 'x'",
        "delete from embed.question",
        "insert into embed.worker_session (id) values (1)",
    ],
)
@pytest.mark.usefixtures("questions")
def test_kept_connection_can_do_nothing_but_ask(
    owner: Connection, application: Connection, attack: str
) -> None:
    grant_dblink(owner)
    ask(application, "x")
    query = attack.format(owner=owner.info.user)
    if query.startswith("select"):
        call = "select * from embed.dblink('embedworker', %s) as t (x text)"
    else:
        call = "select embed.dblink_exec('embedworker', %s)"
    refused(application, "42501", call, query)
    assert ask(application, "still") == pytest.approx(question_vector("still"), abs=1e-7)


@pytest.mark.usefixtures("questions")
@pytest.mark.smoke
def test_settings_of_the_role_of_the_loopback_read_no_questions(
    owner: Connection, application: Connection, application_role: str
) -> None:
    """Types of another search_path would: their checks see every value, as a spy."""
    grant_dblink(owner)
    ask(application, "x")
    owner.execute(f"create schema evil authorization {application_role}".encode())
    try:
        application.execute(
            "create table evil.log (t pg_catalog.text); grant usage on schema evil to public;"
            "grant insert on evil.log to public;"
            "create function evil.spy(v pg_catalog.text) returns pg_catalog.bool"
            " language plpgsql as"
            " $$ begin insert into evil.log values (v); return true; end $$;"
            "create domain evil.text as pg_catalog.text check (evil.spy(value))"
        )
        application.execute(
            "select embed.dblink_exec("
            "'embedworker', 'alter role current_user set search_path = evil, pg_catalog')"
        )
        with connect(owner.info.dsn + f" password={owner.info.password}") as victim:
            assert ask(victim, SECRET) == pytest.approx(question_vector(SECRET), abs=1e-7)
        assert application.execute("select t from evil.log").fetchall() == []
    finally:
        owner.execute("drop schema evil cascade")
    configured = "select setconfig from pg_db_role_setting s join pg_roles r on r.oid = s.setrole"
    configured += " where r.rolname = embed._loopback_role()"
    assert owner.execute(configured.encode()).fetchall() != []
    assert migrate(owner.info.dsn + f" password={owner.info.password}") == []
    assert owner.execute(configured.encode()).fetchall() == []


@pytest.mark.slow
def test_others_questions_cannot_be_read(
    questions: QuestionRunner,
    owner: Connection,
    application: Connection,
    connection: Connection,
) -> None:
    grant_dblink(owner)
    ask(application, "x")
    questions.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, owner, SECRET)
        wait_until(lambda: waiting(connection) == 1)
        ids = [str(i) for (i,) in connection.execute("select id from embed.question")]
        for through in ["%s", "select * from embed.dblink('embedworker', %s) as t (x text)"]:
            look = "select string_agg(query, '|') from pg_stat_activity where usename like 'embed%'"
            rows = (
                application.execute(look)
                if through == "%s"
                else application.execute(through, [look])
            ).fetchall()
            shown = str(rows)
            assert SECRET not in shown
            assert ids[0] not in shown
        for table in ["question", "question_cache", "setting", "worker_session", "fingerprint"]:
            refused(application, "42501", f"select * from embed.{table}")
        for call in [
            "select embed.ask(gen_random_uuid(), 'm', 'x', 'query')",
            "select embed.await(gen_random_uuid(), '1s')",
            "select embed._vector('x', null, 'query')",
        ]:
            refused(application, "42501", call)
        questions.gate.set()
        answer.result(10)


def test_what_others_ask_is_hidden_while_it_is_sent(
    questions: QuestionRunner, owner: Connection, connection: Connection
) -> None:
    """The request itself, not only the wait: held up by a lock, it is seen as it was sent."""
    connection.execute("begin; lock table embed.question in access exclusive mode")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, owner, SECRET)
        with connect(questions.url) as other:
            held = wait_until(
                lambda: other.execute(
                    "select query from pg_stat_activity where wait_event_type = 'Lock'"
                    " and application_name = 'embedworker question'"
                ).fetchall()
            )
        connection.execute("rollback")
        answer.result(10)
    assert all(not query.strip() for (query,) in held), held


@pytest.mark.usefixtures("questions")
@pytest.mark.smoke
def test_password_of_the_loopback_is_hidden(owner: Connection, application: Connection) -> None:
    mine = "select umoptions::text from pg_user_mappings where srvname = 'embed_loopback'"
    assert "password" in str(owner.execute(mine).fetchall())
    assert application.execute(mine).fetchall() == [(None,)]
    refused(application, "42501", "select umoptions from pg_user_mapping")
    grant_dblink(owner)
    refused(application, "42704", "select embed.dblink_connect('mine', 'embed_loopback')")
    ask(application, "x")
    seen = application.execute(
        "select * from embed.dblink('embedworker', %s) as t (x text)", [mine]
    ).fetchall()
    assert seen == [(None,)]


@pytest.mark.smoke
def test_loopback_role_has_nothing_but_two_functions(owner: Connection) -> None:
    role = owner.execute(
        "select rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,"
        " rolbypassrls, rolconnlimit > 0, exists (select from pg_auth_members where member = r.oid)"
        " from pg_roles r where rolname = embed._loopback_role()"
    ).fetchone()
    assert role == (False, False, False, False, True, False, False, True, False)
    granted = owner.execute(
        "select string_agg(proname, ' ' order by proname) from pg_proc p, aclexplode(p.proacl) a"
        " where a.grantee = embed._loopback_role()::regrole"
    ).fetchone()
    assert granted == ("ask await",)
