"""The query lane: batches, failures, leases and what is left behind."""

from typing import Any

import pytest
from fix_questions import (
    QuestionRunner,
    question_vector,
)

from worker.database.statements import statement
from worker.errors import ModelError
from worker.queue.source import Connection
from worker.service.questions import QuestionLane


def leave(c: Connection, *texts: str, age: str = "0") -> None:
    for text in texts:
        c.execute(
            "insert into embed.question (id, model, text, asked_at)"
            " values (gen_random_uuid(), embed.default_model(), %s,"
            " clock_timestamp() - %s::interval)",
            [text, age],
        )


def test_one_bad_question_does_not_spoil_its_batch(
    testing_database: str, owner: Connection
) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "good", "<<fail>>", "better", "<<oom>>", "x" * 500)
    assert QuestionLane(runner.load).answer_once(owner, 1) == 5
    rows = owner.execute("select text, embedding, error from embed.question").fetchall()
    for text, embedding, error in rows:
        if text == "<<fail>>":
            assert embedding is None
            assert "<<fail>>" in error
        else:
            assert error is None
            assert embedding.to_list() == pytest.approx(question_vector(text), abs=1e-7)


def test_model_that_cannot_be_loaded_is_an_answer(owner: Connection) -> None:
    def load(_: Connection, name: str) -> Any:
        raise ModelError(f"the folder of {name} is gone")

    leave(owner, "x")
    assert QuestionLane(load).answer_once(owner, 1) == 1
    row = owner.execute("select error from embed.question").fetchone()
    assert row is not None
    assert "is gone" in row[0]


def test_error_that_is_not_ours_tells_no_more_than_its_kind(owner: Connection) -> None:
    def load(_: Connection, name: str) -> Any:
        raise OSError(f"/somewhere/private/{name}")

    leave(owner, "x")
    QuestionLane(load).answer_once(owner, 1)
    assert owner.execute("select error from embed.question").fetchone() == (
        "OSError in the worker",
    )


def test_question_of_a_slow_worker_goes_to_another(
    testing_database: str, owner: Connection
) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "x")

    def claim(worker: int) -> int:
        chosen = {"limit": 8, "lease": 60, "worker": worker, "keep_lock": True}
        return owner.execute(statement("questions_claim"), chosen).rowcount

    def load_slowly(connection: Connection, name: str) -> Any:
        assert claim(2) == 0, "the lease still runs"
        owner.execute("update embed.question set due = clock_timestamp()")
        assert claim(2) == 1
        return runner.load(connection, name)

    assert QuestionLane(load_slowly).answer_once(owner, 1) == 1
    answered = "select embedding is not null from embed.question"
    assert owner.execute(answered).fetchone() == (False,), "it came too late"
    owner.execute("update embed.question set due = clock_timestamp()")
    assert QuestionLane(runner.load).answer_once(owner, 2) == 1
    assert owner.execute(answered).fetchone() == (True,)


def test_requests_of_lost_askers_are_deleted(testing_database: str, owner: Connection) -> None:
    runner = QuestionRunner(testing_database)
    leave(owner, "abandoned", age="3 minutes")
    leave(owner, "recent", age="1 minute")
    QuestionLane(runner.load).answer_once(owner, 1)
    assert owner.execute("select text from embed.question").fetchall() == [("recent",)]
