"""How many questions a minute a login role may ask: embed.limit_questions."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import psycopg
import pytest
from fix_questions import QuestionRunner, ask, loopback_backends, question_vector, refused
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedworker.database.connect import connect
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.source import Connection
from embedworker.search.functions import query_vector


def limit(owner: Connection, a_minute: int | None, role: str | None = None) -> None:
    owner.execute("select embed.limit_questions(%s, %s::regrole)", [a_minute, role])


def spent(owner: Connection) -> dict[str, float]:
    """The tokens that are left, as they were when each role asked last."""
    rows = owner.execute("select role::regrole::text, tokens from embed.question_allowance")
    return {role: round(tokens, 1) for role, tokens in rows.fetchall()}


def too_many(c: Connection, text: str) -> str:
    diagnostic = refused(c, "EW009", "select embed.query(%s)", text)
    assert "embed.limit_questions" in diagnostic.message_hint
    return f"{diagnostic.message_primary}. {diagnostic.message_hint}"


@pytest.fixture
def colleague(
    testing_database: str, application_role: str, owner: Connection
) -> Iterator[Connection]:
    """Somebody else, who may become the application's role."""
    name = f"{application_role}_colleague"
    quoted = sql.Identifier(name)
    owner.execute(sql.SQL("create role {} login password 'made up'").format(quoted))
    owner.execute(sql.SQL("grant {} to {}").format(sql.Identifier(application_role), quoted))
    with connect(make_conninfo(testing_database, user=name, password="made up")) as c:
        yield c
    owner.execute(sql.SQL("drop role if exists {}").format(quoted))


def test_a_minutes_worth_at_once_and_then_evenly(
    questions: QuestionRunner, owner: Connection, application: Connection, application_role: str
) -> None:
    limit(owner, 2, application_role)
    ask(application, "one")
    kept = loopback_backends(owner)
    ask(application, "two")
    said = too_many(application, "three")
    assert f"the role {application_role} may ask 2 questions a minute, and has" in said
    found = re.search(r"allowed in (\d+) s", said)
    assert found is not None
    assert 1 <= int(found[1]) <= 30
    assert questions.encoded == 2
    assert owner.execute("select from embed.question").fetchall() == []
    assert loopback_backends(owner) == kept, "a refusal costs no connection"

    ask(application, "two")  # is in the cache, and costs no worker
    ask(owner, "three")
    ask(application, "three")
    too_many(application, "four")
    owner.execute("update embed.question_allowance set at = at - interval '30 s'")
    ask(application, "four")
    too_many(application, "five")
    owner.execute("update embed.question_allowance set at = at - interval '1 hour'")
    ask(application, "five")
    assert spent(owner) == {application_role: 1.0}, "no more than a minute's worth is saved up"


@pytest.mark.usefixtures("questions")
def test_nothing_is_written_where_there_is_no_limit(
    owner: Connection, application: Connection, application_role: str
) -> None:
    limit(owner, 1, application_role)
    ask(owner, "one")
    assert spent(owner) == {}
    limit(owner, None, application_role)
    for text in ("two", "three"):
        ask(application, text)
    assert spent(owner) == {}


@pytest.mark.usefixtures("questions")
def test_the_general_limit_is_for_those_without_their_own(
    owner: Connection, application: Connection, application_role: str, colleague: Connection
) -> None:
    limit(owner, 1)
    ask(application, "a")
    ask(colleague, "b")
    too_many(application, "c")
    too_many(colleague, "c")
    limit(owner, 2, application_role)
    ask(application, "c")
    ask(application, "d")
    too_many(application, "e")
    too_many(colleague, "e")
    limit(owner, None, application_role)
    for text in ("e", "f", "g"):
        ask(application, text)
    too_many(colleague, "h")
    limit(owner, None)
    ask(colleague, "h")
    assert spent(owner) == {}


@pytest.mark.usefixtures("questions")
def test_it_is_who_logged_in_that_counts(
    owner: Connection, application: Connection, application_role: str, colleague: Connection
) -> None:
    limit(owner, 1, application_role)
    ask(application, "one")
    colleague.execute(sql.SQL("set role {}").format(sql.Identifier(application_role)))
    ask(colleague, "two")
    too_many(application, "three")


@pytest.mark.usefixtures("questions")
def test_sessions_of_a_role_share(
    testing_database: str, owner: Connection, application_role: str
) -> None:
    limit(owner, 10, application_role)
    url = make_conninfo(testing_database, user=application_role, password="made up")

    def asked(session: int) -> int:
        answered = 0
        with connect(url) as c:
            for number in range(5):
                try:
                    ask(c, f"{session} {number}")
                except psycopg.Error as error:
                    assert error.sqlstate == "EW009"  # noqa: PT017  (some of them, not all)
                else:
                    answered += 1
        return answered

    started = monotonic()
    with ThreadPoolExecutor(4) as pool:
        answered = sum(pool.map(asked, range(4)))
    assert 10 <= answered <= 11 + (monotonic() - started) / 6


@pytest.mark.usefixtures("questions")
def test_reranking_counts(
    owner: Connection, application: Connection, application_role: str
) -> None:
    said: list[str] = []
    application.add_notice_handler(lambda d: said.append(d.message_primary or ""))
    limit(owner, 2, application_role)
    ask(application, "x")
    application.execute("set embed.rerank_timeout = '1ms'")
    for _ in range(2):
        row = application.execute("select embed._rerank('x', '{a,b}')").fetchone()
        assert row == (None,), "the rows come in the order they had"
    assert "no worker answered within 1ms" in said[0]
    assert "may ask 2 questions a minute, and has" in said[1]


@pytest.mark.usefixtures("questions")
def test_without_dblink_too(owner: Connection) -> None:
    """The Python client's other way, embed.ask itself, for those who may call it."""
    limit(owner, 1)
    composed = query_vector(owner, "one", TESTING_MODEL)
    assert composed.to_list() == pytest.approx(question_vector("one"), abs=1e-7)
    with pytest.raises(psycopg.Error, match="may ask 1 question a minute") as caught:
        query_vector(owner, "two", TESTING_MODEL)
    assert caught.value.sqlstate == "EW009"
    limit(owner, None)


@pytest.mark.usefixtures("questions")
def test_roles_that_are_dropped(owner: Connection, colleague: Connection) -> None:
    (name,) = colleague.execute("select current_user").fetchone() or ("",)
    limit(owner, 1, name)
    ask(colleague, "one")
    owner.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
    ask(colleague, "its session goes on, and has no limit of its own")
    ask(owner, "and so do others")
    limit(owner, 1)
    assert owner.execute("select role::oid from embed.question_limit").fetchall() == [(0,)]
    assert spent(owner) == {}
    ask(colleague, "under the general one now")
    too_many(colleague, "like all who are not named")


def test_wrong_limit(owner: Connection) -> None:
    diagnostic = refused(owner, "EW003", "select embed.limit_questions(0)")
    assert "embed.restrict_questions" in diagnostic.message_hint
