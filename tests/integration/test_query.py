"""embed.query: a question's vector from inside SQL."""

import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_questions import (
    QuestionRunner,
    ask,
    question_vector,
    refused,
    waiting,
)
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import NoWorker
from embedworker.model.catalog import TESTING_MODEL
from embedworker.normalization import normalized
from embedworker.queue.source import Connection
from embedworker.search.functions import query_vector
from embedworker.service import questions as lane


@pytest.fixture
def articles(owner: Connection) -> Callable[[int], None]:
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
@pytest.mark.usefixtures("questions")
def test_prefix_is_added_once(owner: Connection, text: str) -> None:
    assert ask(owner, text) == pytest.approx(question_vector(text), abs=1e-7)


def test_decomposed_korean_is_the_same_question(
    questions: QuestionRunner, owner: Connection
) -> None:
    decomposed = unicodedata.normalize("NFD", "한국어")
    assert decomposed != "한국어"
    for text in [decomposed, "한국어"]:
        assert ask(owner, text) == pytest.approx(question_vector("한국어"), abs=1e-7)
    assert questions.encoded == 1


@pytest.mark.usefixtures("questions")
def test_a_run_of_marks_is_a_question_like_another(owner: Connection) -> None:
    """Unbroken, it would be a minute in normalize(), which cannot be cancelled."""
    text = "x" + "\u0301\u0323" * 45_000
    broken = normalized("NFC", text)
    assert broken.count("\u034f") == 2999
    assert ask(owner, text) == ask(owner, broken)


@pytest.mark.usefixtures("questions")
def test_passage_role_has_the_other_prefix_and_is_not_mistaken_for_a_question(
    owner: Connection,
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


def test_in_a_transaction_of_any_kind(questions: QuestionRunner, owner: Connection) -> None:
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
    questions: QuestionRunner, owner: Connection, articles: Callable[[int], None]
) -> None:
    articles(500)
    owner.execute("set track_functions = 'pl'")
    owner.execute("begin")
    assert owner.execute(NEAREST).fetchone() == (7,)
    calls = owner.execute(
        "select funcname, calls from pg_stat_xact_user_functions where schemaname = 'embed'"
    ).fetchall()
    owner.execute("commit")
    assert dict(calls)["query"] == 500
    assert dict(calls)["_loopback"] == 1
    assert questions.encoded == 1


@pytest.mark.usefixtures("questions")
def test_settings_of_the_database_do_not_reach_the_road(owner: Connection) -> None:
    for setting in [
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "statement_timeout = '1ms'",
    ]:
        owner.execute(
            "do $$ begin execute format('alter database %I set "
            + setting.replace("'", "''")
            + "', current_database()); end $$"
        )
    assert ask(owner, "x") == pytest.approx(question_vector("x"), abs=1e-7)
    seen = owner.execute(
        "select * from embed.dblink('embedworker', 'show transaction_isolation') as t (x text)"
    ).fetchone()
    assert seen == ("read committed",)


@pytest.mark.usefixtures("questions")
def test_several_questions_in_one_statement(owner: Connection) -> None:
    rows = owner.execute(
        "select t, embed.query(t) from generate_series(1, 60) g,"
        " lateral (select 'q' || g % 20) x(t)"
    ).fetchall()
    assert len(rows) == 60
    for text, vector in rows:
        assert vector.to_list() == pytest.approx(question_vector(text), abs=1e-7)


@pytest.mark.usefixtures("questions")
def test_memo_survives_discarded_settings_and_a_rolled_back_savepoint(owner: Connection) -> None:
    owner.execute("begin")
    for disturbance in ["close all", "savepoint s", "rollback to s", "reset all"]:
        owner.execute(disturbance)
        pair = owner.execute("select embed.query('a'), embed.query('b'), embed.query('a')")
        a, b, again = pair.fetchone() or ()
        assert a.to_list() == again.to_list() == pytest.approx(question_vector("a"), abs=1e-7)
        assert b.to_list() == pytest.approx(question_vector("b"), abs=1e-7)
    owner.execute("commit")
    assert owner.execute("select count(*) from pg_cursors").fetchone() == (0,)


def test_index_is_used(
    questions: QuestionRunner, owner: Connection, articles: Callable[[int], None]
) -> None:
    articles(10_000)
    owner.execute(
        "create index nearest on article using hnsw (embedding vector_cosine_ops)"
        " with (m = 16, ef_construction = 64)"
    )
    owner.execute("analyze article")
    # With smaller ones the index missed the nearest, now and then: its levels are drawn by chance.
    owner.execute("set hnsw.ef_search = 400")
    for kind in ["", "isolation level repeatable read read only"]:
        owner.execute(f"begin {kind}")
        plan = "\n".join(line for (line,) in owner.execute(f"explain {NEAREST}"))
        assert "Index Scan using nearest" in plan, plan
        assert owner.execute(NEAREST).fetchone() == (7,)
        owner.execute("commit")
    assert questions.encoded == 1


@pytest.mark.parametrize(
    "form",
    [
        "select id from article order by embedding <=> (select embed.query('x')) limit 3",
        "with q as materialized (select embed.query('x') as v)"
        " select id from article order by embedding <=> (select v from q) limit 3",
        "select id from article order by embedding <=> embed.query(%(question)s) limit 3",
        "select a.id from article a where id > 0 order by embedding <=> embed.query('x') limit 3",
    ],
    ids=["subquery", "common table expression", "parameter", "condition"],
)
@pytest.mark.usefixtures("questions")
@pytest.mark.slow
def test_index_is_used_in_other_forms(
    owner: Connection, articles: Callable[[int], None], form: str
) -> None:
    articles(2_000)
    owner.execute(
        "create index nearest on article using hnsw (embedding vector_cosine_ops)"
        " with (m = 16, ef_construction = 64)"
    )
    owner.execute("analyze article")
    # With smaller ones the index missed the nearest, now and then: its levels are drawn by chance.
    owner.execute("set hnsw.ef_search = 400")
    owner.execute("set enable_seqscan = off; set enable_sort = off")  # it is a small table
    named = {"question": "x"}
    plan = "\n".join(line for (line,) in owner.execute(f"explain {form}".encode(), named))
    assert "Index Scan using nearest" in plan, plan
    assert owner.execute(form.encode(), named).fetchone() == (7,)


@pytest.mark.usefixtures("questions")
def test_role_with_no_rights_may_ask(
    application: Connection, articles: Callable[[int], None]
) -> None:
    articles(50)
    assert application.execute(NEAREST).fetchone() == (7,)


def test_hostile_search_path(
    questions: QuestionRunner, owner: Connection, application_role: str
) -> None:
    owner.execute("create schema evil; grant usage on schema evil to public")
    for signature, returns in [
        ("length(text)", "integer"),
        ("starts_with(text, text)", "boolean"),
        ("sha256(bytea)", "bytea"),
        ("pg_sleep(double precision)", "void"),
        ("dblink_connect(text, text)", "text"),
        ('concat_ws(text, variadic "any")', "text"),
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
    url = make_conninfo(questions.url, user=application_role, password="made up")
    with connect(url) as application:
        application.execute("create temp table setting (name text, value text)")
        application.execute("create temp table question_cache (x text)")
        application.execute("set search_path = evil, pg_temp, pg_catalog, public")
        assert ask(application, "x") == pytest.approx(question_vector("x"), abs=1e-7)


def test_many_sessions_at_once(questions: QuestionRunner) -> None:
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


# Errors


def test_nobody_answers(owner: Connection) -> None:
    """Said at once: whoever waits for the time-out is missing in a pool of sessions."""
    owner.execute("set embed.query_timeout = '1min'; set embed.worker_grace = '50ms'")
    owner.execute("set statement_timeout = '20s'")
    for call in ("embed.query('anyone?')", "embed.similarity('anyone?', 'someone?')"):
        said = refused(owner, "EW001", f"select {call}")
        assert "no worker that answers questions is connected" in said.message_primary
        assert "No worker is connected" in said.message_detail
        assert "embedworker run" in said.message_hint
        assert waiting(owner) == 0, "a request nobody waits for must not stay"


def test_a_worker_that_is_back_within_the_grace_answers(
    testing_database: str, owner: Connection
) -> None:
    """As the hint says; also an asker whose snapshot is older than the worker."""
    for begin in ("begin", "begin isolation level repeatable read; select from embed.worker"):
        owner.execute("rollback")
        text = f"back after {begin}"
        with ThreadPoolExecutor(1) as pool:
            owner.execute("set embed.worker_grace = '50ms'")
            hint = refused(owner, "EW001", "select embed.query('anyone?')").message_hint
            owner.execute(hint[hint.index("set embed.worker_grace") :].rstrip("."))
            owner.execute(begin)
            answer = pool.submit(ask, owner, text)
            with connect(testing_database) as other:
                wait_until(lambda: active_on_the_loopback(other))
                with QuestionRunner(testing_database):
                    assert answer.result(10) == pytest.approx(question_vector(text), abs=1e-7)


def active_on_the_loopback(c: Connection) -> bool:
    """Whether an asker is there, and its request is not: it waits for a worker."""
    row = c.execute(
        "select from pg_stat_activity where state = 'active' and wait_event = 'PgSleep'"
        " and application_name = 'embedworker question' and datname = current_database()"
    ).fetchone()
    return row is not None and waiting(c) == 0


def test_the_last_worker_goes_while_it_is_asked(
    questions: QuestionRunner, owner: Connection, connection: Connection
) -> None:
    """By embed.query, and by the Python client's own statement without dblink."""
    questions.gate.clear()
    owner.execute("set embed.query_timeout = '1min'; set embed.worker_grace = '50ms'")
    ways = (
        lambda: owner.execute("select embed.query('anyone?')"),
        lambda: query_vector(owner, "anyone?", TESTING_MODEL, timeout=60),
    )
    with ThreadPoolExecutor(1) as pool:
        for way in ways:
            connection.execute("update embed.worker_session set lanes = '{questions}'")
            asked = pool.submit(way)
            wait_until(lambda: waiting(connection) == 1)
            connection.execute("update embed.worker_session set lanes = '{passages}'")
            with pytest.raises(
                (psycopg.DatabaseError, NoWorker), match="no worker that answers questions"
            ):
                asked.result(10)
            assert waiting(owner) == 0


def test_worker_is_there_but_does_not_answer(questions: QuestionRunner, owner: Connection) -> None:
    questions.gate.clear()
    owner.execute("set embed.query_timeout = '0.2'")
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "no worker answered the question within 0.2" in said.message_primary
    assert "Connected workers that answer questions: 1, the newest for " in said.message_detail
    assert "Models loaded: none yet." in said.message_detail
    owner.execute(
        "update embed.worker_session set lock_held = false, seen_at = now() - '1h'::interval"
    )
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "No worker is connected" in said.message_detail
    owner.execute("update embed.worker_session set seen_at = now(), lanes = '{passages}'")
    said = refused(owner, "EW001", "select embed.query('anyone?')")
    assert "no worker that answers questions" in said.message_primary
    assert said.message_detail == "Workers are connected, but none to answer questions."


@pytest.mark.parametrize("text", [None, "", "  \n\t", "\u3000\u200b"])
def test_nothing_to_ask(owner: Connection, text: str | None) -> None:
    said = refused(owner, "EW003", "select embed.query(%s)", text)
    assert ("null" if text is None else "blank") in said.message_primary


@pytest.mark.usefixtures("questions")
def test_length_is_bounded(owner: Connection) -> None:
    longest = "가" * 100_000
    assert len(ask(owner, longest)) == 384
    said = refused(owner, "EW003", "select embed.query(%s)", longest + "가")
    assert "100001" in said.message_primary
    refused(owner, "EW003", "select embed.ask(gen_random_uuid(), 'm', %s, 'query')", longest + "가")


def test_unknown_model(owner: Connection) -> None:
    said = refused(owner, "EW003", "select embed.query('x', model => 'no/such')")
    assert "no/such" in said.message_primary


def test_model_that_nothing_uses(owner: Connection) -> None:
    """Whoever asks with it would have every worker load it."""
    other = "intfloat/multilingual-e5-base"
    said = refused(owner, "EW003", "select embed.query('x', model => %s)", other)
    assert f"'{other}' is in use nowhere here; expected 'testing:hash'" in said.message_primary
    owner.execute("create table note (id integer primary key, body text)")
    owner.execute("select embed.enable('note', array['body'], model => %s)", [other])
    owner.execute("set embed.query_timeout = '200ms'")
    refused(owner, "EW001", "select embed.query('x', model => %s)", other)


@pytest.mark.parametrize("setting", ["embed.query_timeout", "embed.worker_grace"])
@pytest.mark.parametrize("value", ["soon", "-1s", "0", "2min", "1e99 years"])
def test_wrong_timeout(owner: Connection, setting: str, value: str) -> None:
    owner.execute("select set_config(%s, %s, false)", [setting, value])
    said = refused(owner, "EW003", "select embed.query('x')").message_primary
    assert f"{setting} is '{value}'" in said


@pytest.mark.usefixtures("questions")
def test_question_that_cannot_be_embedded(owner: Connection) -> None:
    said = refused(owner, "EW008", "select embed.query('a <<fail>> b')")
    assert "<<fail>>" in said.message_primary
    assert ask(owner, "next") == pytest.approx(question_vector("next"), abs=1e-7)


# The cache


def test_cache_serves_every_session_without_a_worker(
    testing_database: str, owner: Connection, application: Connection
) -> None:
    with QuestionRunner(testing_database) as runner:
        ask(owner, "asked before")
        assert runner.encoded == 1
    assert ask(application, "asked before") == pytest.approx(
        question_vector("asked before"), abs=1e-7
    )
    application.execute("set embed.query_timeout = '200ms'")
    refused(application, "EW001", "select embed.query('asked never')")


def test_cache_forgets_with_a_new_fingerprint(questions: QuestionRunner, owner: Connection) -> None:
    ask(owner, "x")
    owner.execute(
        "insert into embed.fingerprint (digest, model, revision, query_prefix, passage_prefix,"
        " pooling, dimensions, max_tokens) select digest || '2', model, '2', query_prefix,"
        " passage_prefix, pooling, dimensions, max_tokens from embed.fingerprint"
    )
    ask(owner, "x")
    assert questions.encoded == 2


@pytest.mark.usefixtures("questions")
def test_cache_is_bounded(owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "CACHE_KEEP", 5)
    monkeypatch.setattr(lane, "CACHE_STEP", 4)
    for number in range(13):
        ask(owner, f"question {number}")
    wait_until(
        lambda: (
            owner.execute("select count(*) between 5 and 8 from embed.question_cache").fetchone()
            == (True,)
        )
    )
    kept = owner.execute(
        "select count(*) from embed.question_cache where hash = embed.text_hash('question 12')"
    ).fetchone()
    assert kept == (1,)


def hits(c: Connection) -> int:
    c.execute("select pg_stat_force_next_flush()")
    (_, _, hits, _) = fetch_one(c.execute(statement("observer_questions")))
    return int(hits)


def test_hits_are_what_was_answered_from_the_cache(
    testing_database: str, owner: Connection
) -> None:
    """The count of an index that nothing else may go by, however small or large the table is."""
    with QuestionRunner(testing_database):
        ask(owner, "asked")
    assert hits(owner) == 0
    for _ in range(3):
        ask(owner, "asked")
    assert hits(owner) == 3
    owner.execute("begin read only; select embed.query('asked'); rollback")
    assert hits(owner) == 4
    owner.execute(
        "create table article as select n as id, embed.query('asked') as embedding"
        " from generate_series(1, 100) n"
    )
    owner.execute("select * from article order by embedding <=> embed.query('asked') limit 3")
    assert hits(owner) == 6, "once a statement"

    more = 3000
    owner.execute(
        "insert into embed.question_cache (fingerprint, hash, embedding, terms, shares)"
        " select fingerprint, embed.text_hash(n::text), embedding, terms, shares"
        " from embed.question_cache, generate_series(1, %s) n",
        [more],
    )
    for analyzed in (False, True):
        before = hits(owner)
        if analyzed:
            owner.execute("vacuum analyze embed.question_cache")
        owner.execute(
            "select embed._answer_questions(array_agg(gen_random_uuid()), array_agg(c.hash),"
            " array_agg(c.embedding), array_agg(c.terms::text), array_agg(c.shares::text),"
            " array_agg(c.lost), c.fingerprint, true, 1, array_agg(false))"
            " from (select * from embed.question_cache order by cached_at limit 50) c"
            " group by c.fingerprint"
        )
        owner.execute(statement("evaluate_forget"), {"question": "7"})
        owner.execute(statement("questions_evict"), {"keep": more - 100, "limit": 30})
        assert hits(owner) == before
    (kept,) = owner.execute("select count(*) from embed.question_cache").fetchone() or (0,)
    assert kept == more + 1 - 1 - 2 * 30
