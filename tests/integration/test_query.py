"""embed.query: a question's vector from inside SQL, and who may see what of it."""

import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import psycopg
import pytest
from fix_questions import QuestionRunner, question_vector
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from worker.database.connect import connect
from worker.database.loopback import set_up_loopback
from worker.database.statements import statement
from worker.errors import ModelError
from worker.queue.source import Connection
from worker.service import questions as lane
from worker.service.questions import QuestionLane

SECRET = "비밀 질문 4711"
_numbers = count(1)


def ask(c: psycopg.Connection[Any], text: str | None, **named: str) -> list[float]:
    arguments = ", ".join(f"{name} => %({name})s" for name in named)
    call = f"select embed.query(%(text)s{', ' if named else ''}{arguments})"
    row = c.execute(call, {"text": text, **named}).fetchone()
    assert row is not None
    return [float(x) for x in row[0].to_list()]


def refused(c: psycopg.Connection[Any], state: str, statement: str, *values: Any) -> Any:
    """Run what must fail with ``state``; return the error's fields. Every one of ours has a hint."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        c.execute(statement, values)
    assert caught.value.sqlstate == state, caught.value
    if state.startswith("EW"):
        assert caught.value.diag.message_hint
    return caught.value.diag


def loopback_backends(c: psycopg.Connection[Any]) -> list[int]:
    rows = c.execute(
        "select pid from pg_stat_activity where datname = current_database()"
        " and application_name = 'embedworker question'"
    ).fetchall()
    return [pid for (pid,) in rows]


@pytest.fixture
def role(testing_database: str) -> Iterator[str]:
    """A role of an application, which was granted nothing at all."""
    name = f"application{next(_numbers)}"
    quoted = sql.Identifier(name)
    with connect(testing_database) as c:
        c.execute(sql.SQL("create role {} login password 'made up'").format(quoted))
    yield name
    with connect(testing_database) as c:
        c.execute(sql.SQL("drop owned by {0} cascade").format(quoted))
        c.execute(sql.SQL("drop role {}").format(quoted))


@pytest.fixture
def application(testing_database: str, role: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(make_conninfo(testing_database, user=role, password="made up")) as c:
        yield c


@pytest.fixture
def owner(testing_database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(testing_database) as c:
        yield c


@pytest.fixture
def articles(owner: psycopg.Connection[Any]) -> Callable[[int], None]:
    """Make a table ``article`` of so many rows; the row 7 is the answer to 'x'."""

    def make(rows: int) -> None:
        owner.execute("create table article (id integer primary key, embedding vector(384))")
        owner.execute("select setseed(0.5)")
        owner.execute(
            "insert into article select r, (select array_agg(random() - 0.5) from"
            " generate_series(1, 384) where r is not null)::vector from generate_series(1, %s) r",
            [rows],
        )
        owner.execute(
            "update article set embedding = %s::real[]::vector where id = 7",
            [question_vector("x")],
        )
        owner.execute("grant select on article to public")

    return make


NEAREST = "select id from article order by embedding <=> embed.query('x') limit 3"


# The vector


@pytest.mark.parametrize(
    "text", ["잃어버린 여권", "lost passport", "query: typed", "passage: typed", "'; \\ \" %s {1}"]
)
def test_prefix_is_added_once(
    questions: QuestionRunner, owner: psycopg.Connection[Any], text: str
) -> None:
    assert ask(owner, text) == pytest.approx(question_vector(text), abs=1e-7)


def test_decomposed_korean_is_the_same_question(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    decomposed = unicodedata.normalize("NFD", "한국어")
    assert decomposed != "한국어"
    assert ask(owner, decomposed) == pytest.approx(question_vector("한국어"), abs=1e-7)


def test_passage_role_has_the_other_prefix_and_is_not_mistaken_for_a_question(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    both = owner.execute(
        "select embed._vector('x', null, 'passage'), embed._vector('x', null, 'query')"
    ).fetchone()
    assert both is not None
    assert both[1].to_list() == pytest.approx(question_vector("x"), abs=1e-7)
    assert both[0] != both[1]
    again = owner.execute("select embed._vector('x', null, 'passage')").fetchone()
    assert again == (both[0],)


# Where it works


def test_in_a_transaction_of_any_kind(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    for number, kind in enumerate(
        [
            "",
            "isolation level repeatable read read only",
            "isolation level serializable read only deferrable",
            "isolation level serializable",
        ]
    ):
        owner.execute(f"begin {kind}")
        owner.execute("select count(*) from embed.question_cache")  # the snapshot is taken here
        text = f"transaction {number}"
        assert ask(owner, text) == pytest.approx(question_vector(text), abs=1e-7)
        assert ask(owner, text) == pytest.approx(question_vector(text), abs=1e-7)
        owner.execute("commit")
    assert questions.encoded == 4, "an old snapshot must not send the same question twice"


def test_once_in_a_scan_of_a_whole_table(
    questions: QuestionRunner, owner: psycopg.Connection[Any], articles: Callable[[int], None]
) -> None:
    articles(500)
    assert owner.execute(NEAREST).fetchone() == (7,)
    assert questions.encoded == 1


def test_several_questions_in_one_statement(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    rows = owner.execute(
        "select t, embed.query(t) from generate_series(1, 60) g, lateral (select 'q' || g % 20) x(t)"
    ).fetchall()
    assert len(rows) == 60
    for text, vector in rows:
        assert vector.to_list() == pytest.approx(question_vector(text), abs=1e-7)


def test_memo_survives_close_all_and_a_rolled_back_savepoint(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("begin")
    for disturbance in ["close all", "savepoint s", "rollback to s", "close all"]:
        owner.execute(disturbance)
        pair = owner.execute("select embed.query('a'), embed.query('b'), embed.query('a')")
        a, b, again = pair.fetchone() or ()
        assert a.to_list() == again.to_list() == pytest.approx(question_vector("a"), abs=1e-7)
        assert b.to_list() == pytest.approx(question_vector("b"), abs=1e-7)
    owner.execute("commit")
    assert owner.execute("select count(*) from pg_cursors").fetchone() == (0,)


def test_index_is_used(
    questions: QuestionRunner, owner: psycopg.Connection[Any], articles: Callable[[int], None]
) -> None:
    articles(10_000)
    owner.execute("create index nearest on article using hnsw (embedding vector_cosine_ops)")
    owner.execute("analyze article")
    for kind in ["", "isolation level repeatable read read only"]:
        owner.execute(f"begin {kind}")
        plan = "\n".join(line for (line,) in owner.execute(f"explain {NEAREST}"))
        assert "Index Scan using nearest" in plan, plan
        assert owner.execute(NEAREST).fetchone() == (7,)
        owner.execute("commit")
    assert questions.encoded == 1


def test_role_with_no_rights_may_ask(
    questions: QuestionRunner,
    application: psycopg.Connection[Any],
    articles: Callable[[int], None],
) -> None:
    articles(50)
    assert application.execute(NEAREST).fetchone() == (7,)


def test_hostile_search_path(
    questions: QuestionRunner, owner: psycopg.Connection[Any], role: str
) -> None:
    owner.execute("create schema evil; grant usage on schema evil to public")
    for signature, returns in [
        ("length(text)", "integer"),
        ("starts_with(text, text)", "boolean"),
        ("sha256(bytea)", "bytea"),
        ("pg_sleep(double precision)", "void"),
        ("dblink_connect(text, text)", "text"),
        ("concat_ws(text, variadic \"any\")", "text"),
    ]:
        if "any" not in signature:
            owner.execute(
                f"create function evil.{signature} returns {returns} language plpgsql as"
                " $$ begin raise 'lured into the schema evil'; end $$"
            )
    owner.execute(
        "create function evil.same(text, text) returns boolean language plpgsql as"
        " $$ begin raise 'lured into the schema evil'; end $$;"
        " create operator evil.= (function = evil.same, leftarg = text, rightarg = text)"
    )
    url = make_conninfo(questions.url, user=role, password="made up")
    with connect(url) as application:
        application.execute("create temp table setting (name text, value text)")
        application.execute("create temp table question_cache (x text)")
        application.execute("set search_path = evil, pg_temp, pg_catalog, public")
        assert ask(application, "x") == pytest.approx(question_vector("x"), abs=1e-7)


def test_many_sessions_at_once(questions: QuestionRunner, server: Any) -> None:
    sessions = 40  # each with a second connection, within the server's hundred
    ready = threading.Barrier(sessions, timeout=30)

    def one(number: int) -> None:
        with connect(questions.url) as c:
            ready.wait()
            for turn in range(3):
                text = f"session {number % 25} turn {turn}"
                assert ask(c, text) == pytest.approx(question_vector(text), abs=1e-7)
            ready.wait()

    with ThreadPoolExecutor(sessions) as pool:
        list(pool.map(one, range(sessions)))


# When something breaks


def test_connection_lost_between_two_questions(
    questions: QuestionRunner, owner: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    ask(owner, "first")
    (pid,) = loopback_backends(connection)
    connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
    assert ask(owner, "second") == pytest.approx(question_vector("second"), abs=1e-7)
    assert loopback_backends(connection) not in ([], [pid])


def test_connection_lost_while_waiting(
    questions: QuestionRunner, owner: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    questions.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, owner, "waiting")
        (pid,) = wait_until(lambda: loopback_backends(connection))
        wait_until(lambda: waiting(connection) == 1)
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
        wait_until(lambda: loopback_backends(connection) not in ([], [pid]))
        questions.gate.set()
        assert answer.result(10) == pytest.approx(question_vector("waiting"), abs=1e-7)
    assert waiting(connection) == 0


def waiting(c: psycopg.Connection[Any]) -> int:
    row = c.execute("select count(*) from embed.question").fetchone()
    assert row is not None
    return int(row[0])


def test_statement_cancelled_while_waiting(
    questions: QuestionRunner, owner: psycopg.Connection[Any], connection: psycopg.Connection[Any]
) -> None:
    ask(owner, "first")
    questions.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, owner, "cancelled")
        wait_until(lambda: waiting(connection) == 1)
        owner.cancel_safe()
        with pytest.raises(errors.QueryCanceled):
            answer.result(2)
    questions.gate.set()
    assert ask(owner, "next") == pytest.approx(question_vector("next"), abs=1e-7)


def test_statement_timeout_ends_the_wait(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    questions.gate.clear()
    owner.execute("set statement_timeout = '300ms'")
    refused(owner, "57014", "select embed.query('late')")
    owner.execute("set statement_timeout = 0")
    questions.gate.set()
    assert ask(owner, "next") == pytest.approx(question_vector("next"), abs=1e-7)


@pytest.mark.parametrize(
    "disturbance",
    [
        "select embed.dblink_exec('embedworker', 'begin isolation level repeatable read')",
        "select embed.dblink_send_query('embedworker', 'select pg_sleep(60)')",
        "select embed.dblink_disconnect('embedworker')",
        "select embed.dblink_exec('embedworker', 'set statement_timeout = 1')",
    ],
)
def test_disturbed_connection_heals(
    questions: QuestionRunner, owner: psycopg.Connection[Any], disturbance: str
) -> None:
    ask(owner, "first")
    owner.execute("set embed.query_timeout = '1s'")
    owner.execute(disturbance)
    try:
        ask(owner, "second")
    except psycopg.DatabaseError as error:
        assert error.sqlstate == "EW001", error  # a transaction was open on it: nothing arrives
    assert ask(owner, "third") == pytest.approx(question_vector("third"), abs=1e-7)


# Errors


def test_nobody_answers(testing_database: str, owner: psycopg.Connection[Any]) -> None:
    owner.execute("set embed.query_timeout = '200ms'")
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "200ms" in said.message_primary
    assert "No worker is connected" in said.message_detail
    assert "embedworker run" in said.message_hint
    assert waiting(owner) == 0, "a request nobody waits for must not stay"


def test_worker_is_there_but_does_not_answer(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    questions.gate.clear()
    owner.execute("set embed.query_timeout = '0.2'")
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "1 worker is connected" in said.message_detail
    owner.execute("update embed.worker_session set lock_held = false, seen_at = now() - '1h'::interval")
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "No worker is connected" in said.message_detail


@pytest.mark.parametrize("text", [None, "", "  \n\t", "\u3000\u200b"])
def test_nothing_to_ask(owner: psycopg.Connection[Any], text: str | None) -> None:
    said = refused(owner, "EW003", "select embed.query(%s)", text)
    assert ("null" if text is None else "blank") in said.message_primary


def test_length_is_bounded(questions: QuestionRunner, owner: psycopg.Connection[Any]) -> None:
    longest = "가" * 100_000
    assert len(ask(owner, longest)) == 384
    said = refused(owner, "EW003", "select embed.query(%s)", longest + "가")
    assert "100001" in said.message_primary
    refused(owner, "EW003", "select embed.ask(gen_random_uuid(), 'm', %s, 'query')", longest + "가")


def test_unknown_model(owner: psycopg.Connection[Any]) -> None:
    said = refused(owner, "EW003", "select embed.query('x', model => 'no/such')")
    assert "no/such" in said.message_primary


@pytest.mark.parametrize("value", ["soon", "-1s", "0", "2min", "1e99 years"])
def test_wrong_timeout(owner: psycopg.Connection[Any], value: str) -> None:
    owner.execute("select set_config('embed.query_timeout', %s, false)", [value])
    assert value in refused(owner, "EW003", "select embed.query('x')").message_primary


def test_question_that_cannot_be_embedded(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    said = refused(owner, "EW008", "select embed.query('a <<fail>> b')")
    assert "<<fail>>" in said.message_primary
    assert ask(owner, "next") == pytest.approx(question_vector("next"), abs=1e-7)


# The cache


def test_cache_serves_every_session_without_a_worker(
    testing_database: str, owner: psycopg.Connection[Any], application: psycopg.Connection[Any]
) -> None:
    with QuestionRunner(testing_database) as runner:
        ask(owner, "asked before")
        assert runner.encoded == 1
    assert ask(application, "asked before") == pytest.approx(
        question_vector("asked before"), abs=1e-7
    )
    application.execute("set embed.query_timeout = '200ms'")
    refused(application, "EW001", "select embed.query('asked never')")


def test_cache_forgets_with_a_new_fingerprint(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    ask(owner, "x")
    owner.execute(
        "insert into embed.fingerprint (digest, model, revision, query_prefix, passage_prefix,"
        " pooling, dimensions, max_tokens) select digest || '2', model, '2', query_prefix,"
        " passage_prefix, pooling, dimensions, max_tokens from embed.fingerprint"
    )
    ask(owner, "x")
    assert questions.encoded == 2


def test_cache_is_bounded(
    questions: QuestionRunner, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "CACHE_KEEP", 5)
    monkeypatch.setattr(lane, "CACHE_STEP", 4)
    for number in range(13):
        ask(owner, f"question {number}")
    wait_until(
        lambda: owner.execute("select count(*) between 5 and 8 from embed.question_cache").fetchone()
        == (True,)
    )
    kept = owner.execute(
        "select count(*) from embed.question_cache where hash = embed.text_hash('question 12')"
    ).fetchone()
    assert kept == (1,)


# The lane


def leave(c: psycopg.Connection[Any], *texts: str, age: str = "0") -> None:
    for text in texts:
        c.execute(
            "insert into embed.question (id, model, text, asked_at)"
            " values (gen_random_uuid(), embed.default_model(), %s,"
            " clock_timestamp() - %s::interval)",
            [text, age],
        )


def test_one_bad_question_does_not_spoil_its_batch(
    testing_database: str, owner: psycopg.Connection[Any]
) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "good", "<<fail>>", "better", "<<oom>>", "x" * 500)
    assert QuestionLane(runner._load).answer_once(owner, 1) == 5
    rows = owner.execute("select text, embedding, error from embed.question").fetchall()
    for text, embedding, error in rows:
        if text == "<<fail>>":
            assert embedding is None
            assert "<<fail>>" in error
        else:
            assert error is None
            assert embedding.to_list() == pytest.approx(question_vector(text), abs=1e-7)


def test_model_that_cannot_be_loaded_is_an_answer(
    testing_database: str, owner: psycopg.Connection[Any]
) -> None:
    def load(_: Connection, name: str) -> Any:
        raise ModelError(f"the folder of {name} is gone")

    leave(owner, "x")
    assert QuestionLane(load).answer_once(owner, 1) == 1
    row = owner.execute("select error from embed.question").fetchone()
    assert row is not None
    assert "is gone" in row[0]


def test_error_that_is_not_ours_tells_no_more_than_its_kind(
    testing_database: str, owner: psycopg.Connection[Any]
) -> None:
    def load(_: Connection, name: str) -> Any:
        raise OSError(f"/somewhere/private/{name}")

    leave(owner, "x")
    QuestionLane(load).answer_once(owner, 1)
    assert owner.execute("select error from embed.question").fetchone() == (
        "OSError in the worker",
    )


def test_question_of_a_dead_worker_is_answered_by_another(
    testing_database: str, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "x")
    monkeypatch.setattr(lane, "LEASE", 0.2)
    claimed = owner.execute(
        statement("questions_claim"), {"limit": 8, "lease": 0.2, "worker": 1}
    ).fetchall()
    assert len(claimed) == 1
    heir = QuestionLane(runner._load)
    assert heir.answer_once(owner, 2) == 0
    wait_until(lambda: heir.answer_once(owner, 2) == 1)
    late = {
        "ids": [claimed[0][0]],
        "hashes": [b"0" * 16],
        "vectors": [[0.0] * 384],
        "fingerprint": 1,
        "keep": False,
        "worker": 1,
    }
    import numpy as np

    late["vectors"] = [np.zeros(384, np.float32)]
    assert owner.execute(statement("questions_answer"), late).rowcount == 0


def test_requests_of_lost_askers_are_deleted(
    testing_database: str, owner: psycopg.Connection[Any]
) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "abandoned", age="3 minutes")
    leave(owner, "recent", age="1 minute")
    QuestionLane(runner._load).answer_once(owner, 1)
    assert owner.execute("select text from embed.question").fetchall() == [("recent",)]


# Who may see what


def grant_dblink(owner: psycopg.Connection[Any]) -> None:
    """As in a database where dblink was there before us: everybody may use it."""
    owner.execute("grant execute on all functions in schema embed to public")
    owner.execute(
        "revoke execute on function embed._vector(text, text, text),"
        " embed.ask(uuid, text, text, text), embed.await(uuid, interval, boolean) from public"
    )
    owner.execute("revoke execute on function embed.dblink_connect_u(text) from public")
    owner.execute("revoke execute on function embed.dblink_connect_u(text, text) from public")


def test_dblink_installed_for_us_is_nobody_elses(
    questions: QuestionRunner, application: psycopg.Connection[Any]
) -> None:
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
def test_kept_connection_can_do_nothing_but_ask(
    questions: QuestionRunner,
    owner: psycopg.Connection[Any],
    application: psycopg.Connection[Any],
    attack: str,
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


def test_others_questions_cannot_be_read(
    questions: QuestionRunner,
    owner: psycopg.Connection[Any],
    application: psycopg.Connection[Any],
    connection: psycopg.Connection[Any],
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
    questions: QuestionRunner, owner: psycopg.Connection[Any], connection: psycopg.Connection[Any]
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


def test_password_of_the_loopback_is_hidden(
    questions: QuestionRunner, owner: psycopg.Connection[Any], application: psycopg.Connection[Any]
) -> None:
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


def test_loopback_role_has_nothing_but_two_functions(owner: psycopg.Connection[Any]) -> None:
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


# Setting it up


def test_set_up_again_changes_the_password_and_keeps_working(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    ask(owner, "first")
    before = owner.execute("select umoptions::text from pg_user_mappings").fetchall()
    assert set_up_loopback(owner) == []
    assert owner.execute("select umoptions::text from pg_user_mappings").fetchall() != before
    assert ask(owner, "kept") == pytest.approx(question_vector("kept"), abs=1e-7)
    with connect(questions.url) as fresh:
        assert ask(fresh, "fresh") == pytest.approx(question_vector("fresh"), abs=1e-7)


def test_given_host_that_fails_is_said_and_another_used(
    questions: QuestionRunner, owner: psycopg.Connection[Any]
) -> None:
    (remark,) = set_up_loopback(owner, host="host.invalid")
    assert "host.invalid" in remark
    assert "127.0.0.1" in remark
    assert ask(owner, "x") == pytest.approx(question_vector("x"), abs=1e-7)
    assert set_up_loopback(owner, host="localhost") == []
    assert owner.execute(
        "select 'host=localhost' = any (srvoptions) from pg_foreign_server"
    ).fetchone() == (True,)


def test_no_host_works(
    testing_database: str, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.database import loopback

    monkeypatch.setattr(loopback, "_hosts", lambda *_: ["host.invalid"])
    (remark,) = set_up_loopback(owner)
    assert "EMBEDWORKER_LOOPBACK_HOST" in remark
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "EMBEDWORKER_LOOPBACK_HOST" in said.message_hint
    monkeypatch.undo()
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")


def test_password_changed_by_somebody(owner: psycopg.Connection[Any]) -> None:
    role = owner.execute("select embed._loopback_role()").fetchone()
    assert role is not None
    owner.execute(sql.SQL("alter role {} password 'other'").format(sql.Identifier(role[0])))
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "embedworker migrate" in said.message_hint
    assert "password authentication failed" in said.message_detail


def test_dblink_is_gone(owner: psycopg.Connection[Any]) -> None:
    owner.execute("drop extension dblink cascade")
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "embedworker migrate" in said.message_hint
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")


def test_dblink_in_another_schema_is_used_and_left_as_it_is(
    questions: QuestionRunner, owner: psycopg.Connection[Any], application: psycopg.Connection[Any]
) -> None:
    owner.execute('drop extension dblink cascade; create schema "Ext 1"')
    owner.execute('create extension dblink schema "Ext 1"')
    assert set_up_loopback(owner) == []
    assert ask(application, "x") == pytest.approx(question_vector("x"), abs=1e-7)
    assert owner.execute(
        "select has_function_privilege('public', '\"Ext 1\".dblink(text, text)', 'execute')"
    ).fetchone() == (True,)


def test_role_that_may_not_install_dblink(
    owner: psycopg.Connection[Any], application: psycopg.Connection[Any], role: str
) -> None:
    owner.execute("drop extension dblink cascade")
    owner.execute(sql.SQL("grant all on embed.setting to {}").format(sql.Identifier(role)))
    (remark,) = set_up_loopback(application)
    assert "create extension dblink" in remark
    assert "create extension dblink" in refused(owner, "EW007", "select embed.query('x')").message_hint


def test_role_that_may_not_create_roles(owner: psycopg.Connection[Any], server: Any) -> None:
    """The owner of a database who is nothing else: no crash, a remark that says what to grant."""
    from worker.database.migrate import migrate

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
        owner.execute(f"drop database {name} with (force)")
        for (leftover,) in owner.execute(
            "select rolname from pg_roles where rolname like 'embed\\_loopback\\_%%' and"
            " substr(rolname, 16)::oid not in (select oid from pg_database)",
            {},
        ).fetchall():
            owner.execute(f"drop role {leftover}")
        owner.execute(f"drop role {name}")


def test_copied_database_does_not_ask_the_original(
    testing_database: str, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("update embed.setting set value = '1' where name = 'loopback'")
    said = refused(owner, "EW007", "select embed.query('x')")
    assert "copy" in said.message_hint
    assert set_up_loopback(owner) == []
    owner.execute("set embed.query_timeout = '100ms'")
    refused(owner, "EW001", "select embed.query('x')")
