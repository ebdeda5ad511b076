"""The query lane: batches, failures, leases and what is left behind."""

import gc
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fix_questions import (
    QuestionRunner,
    question_vector,
)
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.statements import statement
from embedworker.errors import ModelError
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue.lease import release_questions_of
from embedworker.queue.source import Connection
from embedworker.service.models import Models
from embedworker.service.questions import BATCH, QuestionLane

WAIT = "select embedding, error from embed.await(%s, '10s')"


def leave(c: Connection, *texts: str, age: str = "0", model: str | None = None) -> None:
    for text in texts:
        c.execute(
            "insert into embed.question (id, model, text, asked_at)"
            " values (gen_random_uuid(), coalesce(%s, embed.default_model()), %s,"
            " clock_timestamp() - %s::interval)",
            [model, text, age],
        )


def enable_note(c: Connection, model: Path) -> str:
    """Make a table with a tiny model of its own."""
    c.execute("select embed.add_model(%s, 32, 64, '', '')", [str(model)])
    c.execute("create table note (id integer primary key, body text)")
    c.execute("select embed.enable('note', array['body'], model => %s)", [str(model)])
    return str(model)


def held_up(model: Path) -> Callable[[], None]:
    """Let whoever loads this model wait at its first file; returns what lets it go on."""
    listed, whole = model / "modules.json", model / "whole"
    content = listed.read_text()
    listed.unlink()
    os.mkfifo(listed)

    def opened() -> int | None:
        with suppress(OSError):  # nobody reads yet
            return os.open(listed, os.O_WRONLY | os.O_NONBLOCK)
        return None

    def go_on() -> None:
        pipe = wait_until(opened, 100, "somebody who loads the model")
        whole.write_text(content)
        whole.replace(listed)
        os.write(pipe, content.encode())
        os.close(pipe)

    return go_on


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


def test_model_that_cannot_be_loaded_is_an_answer(
    owner: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def load(_: Connection, name: str) -> Any:
        raise ModelError(f"the folder of {name} is gone")

    leave(owner, "x", "y", "z")
    assert QuestionLane(load).answer_once(owner, 1) == 3
    rows = owner.execute("select error from embed.question").fetchall()
    assert len(rows) == 3
    assert all("is gone" in error for (error,) in rows)
    assert caplog.records == [], "whoever loads it says so, once"


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


def test_questions_do_not_wait_for_the_model_of_others(
    owner: Connection, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was loaded between them: over twenty seconds for a large one, with a time-out of five."""
    monkeypatch.setenv("EMBEDWORKER_DEVICE", "cpu")
    name = enable_note(owner, tiny_model)
    go_on = held_up(tiny_model)
    models = Models(settings.load(), threads=1)
    lane = QuestionLane(models.get_nowait)
    models.get(owner, TESTING_MODEL)
    leave(owner, *["slow"] * BATCH, model=name)
    leave(owner, "quick")
    answered = "select text from embed.question where embedding is not null"
    try:
        assert lane.answer_once(owner, 1) == BATCH
        assert models.loading
        assert lane.put_back == BATCH
        assert lane.answer_once(owner, 1) == 1, "the others are put back, not in the way"
        assert owner.execute(answered).fetchall() == [("quick",)]
        assert not owner.execute(
            "select from embed.question where claimed_by = 1 and text = 'slow'"
        ).rowcount
    finally:
        go_on()

    def all_answered() -> bool:
        lane.answer_once(owner, 1)
        return owner.execute(answered).rowcount == BATCH + 1

    wait_until(all_answered, 30)
    assert not models.loading
    assert owner.execute("select from embed.question where error is not null").rowcount == 0


def test_model_that_is_used_no_more_is_forgotten(owner: Connection, tiny_model: Path) -> None:
    name = enable_note(owner, tiny_model)
    models = Models(settings.load(device="cpu"), threads=1)
    kept = weakref.ref(models.get(owner, name).encoder)
    models.get(owner, TESTING_MODEL)
    gc.collect()
    assert kept() is not None, "a table uses it"
    owner.execute("select embed.disable('note', drop_vectors => true)")
    models.forget_fingerprints()
    models.get(owner, TESTING_MODEL)
    gc.collect()
    assert kept() is None


def test_lock_is_held_while_the_model_runs_and_no_longer(
    testing_database: str, owner: Connection
) -> None:
    """However the question ends: answered, failed, put back. One that is left makes askers wait."""
    runner = QuestionRunner(testing_database)
    locks = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 1"
    held: list[Any] = []

    def fails(*_: object) -> Any:
        raise ModelError("it was made up")

    def noting(outcome: Callable[..., Any]) -> Callable[..., Any]:
        def load(connection: Connection, name: str) -> Any:
            held.append(owner.execute(locks).fetchone())
            return outcome(connection, name)

        return load

    for outcome in (runner.load, fails, lambda *_: None):
        leave(owner, "x", "y")
        with connect(testing_database) as connection:
            assert QuestionLane(noting(outcome)).answer_once(connection, 1) == 2
            assert owner.execute(locks).fetchone() == (0,)
        owner.execute("truncate embed.question")
    assert held == [(2,), (2,), (2,), (1,), (2,)], "of two that failed, each is tried alone"


def test_asker_wakes_when_the_answer_is_committed(testing_database: str, owner: Connection) -> None:
    """By the lock: no look comes between, of which there were a thousand a second."""
    runner = QuestionRunner(testing_database)
    (left,) = owner.execute(
        "insert into embed.question (id, model, text) values (gen_random_uuid(), %s, 'x')"
        " returning id",
        [TESTING_MODEL],
    ).fetchone() or ("",)
    waiting = "select 1 from pg_locks where locktype = 'advisory' and objsubid = 1 and not granted"
    with (
        connect(testing_database) as asker,
        connect(testing_database) as connection,
        ThreadPoolExecutor(1) as other,
    ):

        def load(connection: Connection, name: str) -> Any:
            answer.append(other.submit(asker.execute, WAIT, [left]))
            wait_until(lambda: owner.execute(waiting).fetchone())
            return runner.load(connection, name)

        answer: list[Any] = []
        assert QuestionLane(load).answer_once(connection, 1) == 1
        vector, error = answer[0].result(10).fetchone()
    assert error is None
    assert vector.to_list() == pytest.approx(question_vector("x"), abs=1e-7)
    assert owner.execute("select 1 from embed.question").fetchone() is None


def test_answer_that_is_known_by_the_time_of_the_request(
    testing_database: str, owner: Connection
) -> None:
    """The asker's snapshot was older than the cache; no worker is asked."""
    runner = QuestionRunner(testing_database)
    leave(owner, "x")
    with connect(testing_database) as connection:
        assert QuestionLane(runner.load).answer_once(connection, 1) == 1
    owner.execute("truncate embed.question")
    number = uuid4()
    owner.execute("select embed.ask(%s, %s, 'x', 'query')", [number, TESTING_MODEL])
    vector, error = owner.execute(WAIT, [number]).fetchone() or (None, "nothing")
    assert error is None
    assert vector.to_list() == pytest.approx(question_vector("x"), abs=1e-7)
    assert owner.execute("select 1 from embed.question").fetchone() is None


def test_question_of_a_worker_that_is_gone_is_answered_by_another(
    testing_database: str, owner: Connection
) -> None:
    """At once: its lease lasts as long as an asker waits by default."""
    runner = QuestionRunner(testing_database)
    leave(owner, "x", "y")
    gone = {"limit": 1, "lease": 60, "worker": 9, "keep_lock": False}
    owner.execute(statement("questions_claim"), gone)
    with connect(testing_database) as connection:
        assert QuestionLane(runner.load).answer_once(connection, 1) == 1
        connection.execute("listen embed_question")
        release_questions_of(owner, 9)
        (heard,) = connection.notifies(timeout=10, stop_after=1)
        assert heard.channel == "embed_question"
        assert QuestionLane(runner.load).answer_once(connection, 1) == 1
    assert owner.execute("select count(embedding) from embed.question").fetchone() == (2,)
