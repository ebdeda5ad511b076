"""embed.query when connections break, statements are cancelled, or somebody interferes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fix_questions import (
    QuestionRunner,
    ask,
    loopback_backends,
    question_vector,
    refused,
    waiting,
)
from psycopg import errors
from waiting import wait_until

from embedworker.queue.source import Connection


@pytest.mark.usefixtures("questions")
def test_connection_lost_between_two_questions(owner: Connection, connection: Connection) -> None:
    ask(owner, "first")
    (pid,) = loopback_backends(connection)
    connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
    assert ask(owner, "second") == pytest.approx(question_vector("second"), abs=1e-7)
    assert loopback_backends(connection) not in ([], [pid])


def test_connection_lost_while_waiting(
    questions: QuestionRunner, owner: Connection, connection: Connection
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


def test_statement_cancelled_while_waiting(
    questions: QuestionRunner, owner: Connection, connection: Connection
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


def test_statement_timeout_ends_the_wait(questions: QuestionRunner, owner: Connection) -> None:
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
@pytest.mark.usefixtures("questions")
def test_disturbed_connection_heals(owner: Connection, disturbance: str) -> None:
    ask(owner, "first")
    owner.execute("set embed.query_timeout = '1s'")
    owner.execute("set statement_timeout = '5s'")
    owner.execute(disturbance)
    assert ask(owner, "second") == pytest.approx(question_vector("second"), abs=1e-7)
    assert ask(owner, "third") == pytest.approx(question_vector("third"), abs=1e-7)
