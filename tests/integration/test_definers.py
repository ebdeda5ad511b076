"""What a definer's function takes from its caller's session by name: nothing that can run.

``application`` is a login that was granted nothing.
"""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from definer_traps import lay, namesakes, prepare_session, was_sprung
from fix_questions import QuestionRunner, ask, question_vector

from embedworker.queue.source import Connection


@pytest.fixture(autouse=True)
def _nobody_gained_rights(owner: Connection, application_role: str) -> Iterator[None]:
    yield
    rights = owner.execute(
        "select rolsuper, rolcreaterole, rolbypassrls from pg_roles where rolname = %s",
        [application_role],
    ).fetchone()
    assert rights == (False, False, False)


def test_a_cursor_of_the_callers_runs_nothing_as_the_definer(
    questions: QuestionRunner, application: Connection, application_role: str
) -> None:
    """The memo of a question was a cursor once, whose name and mark anybody could foresee."""
    application.execute("begin")
    application.execute(
        "create function pg_temp.evil() returns vector language plpgsql as "
        f"$$ begin execute 'alter role {application_role} superuser'; return null; end $$".encode()
    )
    for slot in range(8):
        application.execute(
            f"declare embed_memo_{slot} scroll cursor for "
            "select pg_temp.evil(), null::int[], null::real[]".encode()
        )
    row = application.execute(
        """
        with k as materialized (
            select encode(sha256(convert_to(concat_ws('|', statement_timestamp(), 'query', 'x'), 'UTF8')), 'hex') as mark
        ), s as materialized (
            select set_config('embed.embed_memo_' || (get_byte(decode(left(mark, 2), 'hex'), 0) & 7), mark, true) as v from k
        )
        select embed.query('x' || left(v, 0)) from s
        """  # noqa: E501 - as it was found
    ).fetchone()
    application.execute("commit")
    assert row is not None
    assert row[0].to_list() == pytest.approx(question_vector("x"), abs=1e-7)
    assert questions.encoded == 1


@pytest.mark.usefixtures("questions")
def test_the_memo_of_a_question_can_neither_be_read_nor_written(
    application: Connection, owner: Connection
) -> None:
    """A function of the application's that asks could otherwise be given another answer."""
    application.execute("begin")
    ask(application, "x")
    shown = application.execute("show all").fetchall()
    shown += application.execute("select name, setting from pg_settings").fetchall()
    assert not [name for name, *_ in shown if "memo_" in name]
    application.execute("commit")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        application.execute("select value from embed.memo_secret")
    (secret,) = owner.execute("select value from embed.memo_secret").fetchone() or ("",)
    assert len(secret) == 32
    owner.execute("begin")
    ask(owner, "x")
    held = owner.execute(
        "select count(current_setting('embed.memo_' || %s::text || '_' || to_hex(slot), true)) "
        "from generate_series(0, 15) as slot",
        [secret],
    ).fetchone()
    assert held == (1,), "this is where it is kept"
    owner.execute("commit")


# Every function of ours that runs with its owner's rights, and how its callers reach it. Before you
# add one: which names does it take from its caller's session? Cursors, prepared statements,
# temporary objects, settings, operators, functions named without a schema, advisory locks.
CALLS = {
    "embed._question(text,text)": "select (embed._question('y'::text, null::text)).embedding",
    "embed.default_model()": "select embed.default_model()",
    "embed._question_counts()": "select waiting from embed._question_counts()",
    "embed.reranker()": "select embed.reranker()",
    "embed._rerank(text,text[])": "select embed._rerank('x'::text, array['one'])",
    "embed._loopback(text,text,text,interval,text[])": (
        "select (embed._loopback("
        "'z'::text, 'testing:hash'::text, 'query'::text, '5s'::interval, null::text[])).embedding"
    ),
    "embed._loopback_check()": "select embed._loopback_check()",
    "embed._loopback_check_primary()": "select embed._loopback_check_primary()",
    "embed._loopback_renew()": "select problem from embed._loopback_renew()",
    "embed.ask(uuid,text,text,text,text[],oid)": (
        "select embed.ask(pg_catalog.gen_random_uuid(), "
        "'testing:hash'::text, 'x'::text, 'query'::text, null::text[], null::oid)"
    ),
    "embed.await(uuid,interval,boolean)": (
        "select * from embed.await(pg_catalog.gen_random_uuid(), '1ms'::interval, true)"
    ),
    "embed._search_plan(regtype,text,integer,boolean,jsonb)": (
        "select relation from embed._search_plan("
        "'public.article'::regtype, null::text, 5, false, '{{\"id\": 1}}'::jsonb)"
    ),
    "embed._open_schema(regrole)": "select embed._open_schema('embed_admin')",
    "embed._close_schema()": "set constraints embed.close_schema immediate",
    "embed._is_standby(integer)": "select embed._is_standby({})",
    "embed._twin(integer)": "select embed._twin({})",
    "embed._name_of_vectors(integer)": "select embed._name_of_vectors({})",
    "embed._relation_of(integer)": "select embed._relation_of({})",
    "embed._numbered_relation_of(integer)": "select embed._numbered_relation_of({})",
    "embed._renew_token(integer)": "select embed._renew_token({})",
    "embed._centered(vector,text)": (
        "select embed._centered('[1,2]'::public.vector, 'testing:hash'::text)"
    ),
    "embed._model_of(regclass)": "select embed._model_of('public.article'::regclass)",
    "embed._count_degraded()": "select embed._count_degraded()",
    "embed._passage_columns_sql(regtype,text)": (
        "select embed._passage_columns_sql('public.article'::regtype, null::text)"
    ),
    "embed._keys_shown(regtype,text)": (
        "select * from embed._keys_shown('public.article'::regtype, null::text)"
    ),
    "embed._log_search(regclass,text,jsonb,text)": (
        "select embed._log_search("
        "'public.article'::regclass, 'x'::text, '[[\"1\"]]'::jsonb, null::text)"
    ),
    "embed._chosen(uuid,text[])": (
        "select embed._chosen(pg_catalog.gen_random_uuid(), array['1']::text[])"
    ),
    "embed._learn()": "select embed._learn()",
    "embed._text_columns()": "select * from embed._text_columns()",
    "embed.source_N_insert()": "insert into article (id, body) values (7, 'seven')",
    "embed.source_N_update()": "update article set body = 'acht' where id = 7",
    "embed.source_N_delete()": "delete from article where id = 7",
    "embed.source_N_truncate()": "truncate article",
    "embed.source_N_row()": "insert into part (id, body) values (7, 'seven')",
    "embed.source_N_refresh()": "select embed.source_{}_refresh()",
    "embed.source_N_compact()": "select embed.source_{}_compact()",
    "embed.source_N_words(text,integer[],sparsevec,integer)": (
        "select embed.source_{}_words("
        "'x'::text, array[7]::integer[], '{{7:1}}/16777216'::public.sparsevec, 5::integer)"
    ),
}

DEFINERS = """
select regexp_replace(format('%s.%s(%s)', n.nspname, p.proname,
    (select string_agg(format_type(t, null), ',' order by place)
     from unnest(p.proargtypes) with ordinality as a (t, place))), 'source_[0-9]+_', 'source_N_')
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'embed' and p.prosecdef
and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
"""


@pytest.fixture
def sources(owner: Connection, application_role: str, testing_database: str) -> int:
    """article, captured by statement, and part, by row; the application may write both."""
    owner.execute(
        f"""
        create table article (id int primary key, body text);
        create table part (id int primary key, body text) partition by range (id);
        create table parts partition of part default;
        insert into article values (1, 'one');
        grant select, insert, update, delete, truncate on article, part to {application_role};
        select embed.enable('article', array['body'], filter => 'id > 0');
        select embed.enable('part', array['body']);
        do $$
        declare f regprocedure;
        begin
            for f in select oid from pg_proc
                where pronamespace = 'embed'::regnamespace and prosecdef and prorettype <> 'trigger'::regtype
            loop
                execute format('grant execute on function %s to {application_role}', f);
            end loop;
        end $$;
        """.encode()  # noqa: E501
    )
    (number,) = owner.execute("select id from embed.source where name = 'article'").fetchone() or (
        0,
    )
    with QuestionRunner(testing_database):
        # So that they are answered without a worker.
        for text in "xyz":
            ask(owner, text)
    owner.execute(
        "update embed.source_state set fingerprint = "
        "(select fingerprint from embed.question_cache limit 1) where source = %s",
        [number],
    )
    return int(number)


def test_every_definer_is_looked_at(owner: Connection, sources: int) -> None:
    del sources
    found = {signature for (signature,) in owner.execute(DEFINERS.encode())}
    unknown = found - set(CALLS)
    assert not unknown, f"look at what they take from the caller's session: {unknown}"
    assert set(CALLS) == found


def call_all(connection: Connection, source: int) -> dict[str, Any]:
    """What each definer's function gave, or its error."""
    results: dict[str, Any] = {}
    for signature, call in CALLS.items():
        connection.execute("savepoint before")
        try:
            cursor = connection.execute(call.format(source).encode(), prepare=False)
            results[signature] = cursor.fetchall() if cursor.description else None
            connection.execute("release before", prepare=False)
        except psycopg.Error as error:
            results[signature] = error
            connection.execute("rollback to before", prepare=False)
    return results


def assert_right(results: dict[str, Any]) -> None:
    errors = {name: x for name, x in results.items() if isinstance(x, psycopg.Error)}
    assert errors == {}
    for signature, text in (
        ("embed._question(text,text)", "y"),
        ("embed._loopback(text,text,text,interval,text[])", "z"),
    ):
        ((vector,),) = results[signature]
        assert vector.to_list() == pytest.approx(question_vector(text), abs=1e-7)
    assert results["embed._loopback_check()"] == [(None,)]
    assert results["embed._search_plan(regtype,text,integer,boolean,jsonb)"] == [
        ("public.article",)
    ]


def test_definers_take_nothing_from_a_session_that_is_full_of_traps(
    owner: Connection, application: Connection, sources: int
) -> None:
    lay(owner)
    application.execute("set embed.rerank_timeout = '50ms'; set client_min_messages = error")
    prepare_session(application)
    results = call_all(application, sources)
    application.execute("rollback", prepare=False)
    assert_right(results)
    assert not was_sprung(owner)


def test_definers_call_no_namesake_that_an_administrator_makes(
    owner: Connection, application: Connection, application_role: str, sources: int
) -> None:
    """A member of embed_admin could once create functions in our schema that fit a call better."""
    lay(owner)
    owner.execute(f"grant embed_admin to {application_role}".encode())
    owner.execute("grant create on schema embed to embed_admin")
    for namesake in list(namesakes(owner)):
        application.execute(namesake.encode())
    refresh = f"select embed.source_{sources}_refresh()".encode()
    for change in (
        "alter table article add column more text",
        "alter table article rename body to text",
        "alter table article rename text to body",
    ):
        owner.execute(change.encode())
        application.execute(refresh)
    application.execute("begin; set local embed.rerank_timeout = '50ms'")
    results = call_all(application, sources)
    application.execute("commit")
    assert not was_sprung(owner)
    assert_right(results)
