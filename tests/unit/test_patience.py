"""Troubles are said once, and tried again at growing intervals."""

import gc
import logging
import threading
from functools import partial

import psycopg
import pytest

from embedworker.errors import ConfigurationError
from embedworker.service import patience as module
from embedworker.service.patience import LONGEST, REMIND, Patience, Troubles

log = logging.getLogger("embedworker.test")


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("embedworker"), "propagate", True)
    caplog.set_level(logging.INFO, log.name)
    return caplog


def test_two_troubles_that_alternate_are_said_once_each(said: pytest.LogCaptureFixture) -> None:
    patience = Patience(log, "the connection")
    for _ in range(5):
        patience.say("refused")
        patience.say(psycopg.OperationalError("reset by peer"))
    assert [record.getMessage() for record in said.records] == [
        "the connection: refused; trying again",
        "the connection: reset by peer; trying again",
    ]
    patience.success()
    patience.success()
    patience.say("refused")
    assert [record.levelname for record in said.records] == [
        "WARNING",
        "WARNING",
        "INFO",
        "WARNING",
    ]


def test_pauses_grow_to_a_limit_and_start_over(said: pytest.LogCaptureFixture) -> None:
    patience = Patience(log, "the connection")
    pauses = [patience.next_pause() for _ in range(20)]
    assert pauses[0] < 0.2
    assert all(0.75 * LONGEST <= pause <= 1.25 * LONGEST for pause in pauses[10:])
    patience.success()
    assert patience.next_pause() < 0.2
    assert said.records == []


def test_an_end_is_not_waited_out() -> None:
    stopped = threading.Event()
    stopped.set()
    patience = Patience(log, "the connection", longest=1000)
    for _ in range(20):
        patience.wait("refused", stopped)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_common_trouble_is_said_by_one(
    said: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    troubles = Troubles()
    first, second = (Patience(log, what, troubles=troubles) for what in ("the first", "the second"))
    stranger = Patience(log, "a stranger")
    for each in (first, second, stranger):
        each.say("refused")
    second.say("reset by peer")
    for each in (first, second):
        each.success()
    assert said.messages == [
        "the first: refused; trying again",
        "a stranger: refused; trying again",
        "the second: reset by peer; trying again",
        "the first: works again",
        "the second: works again",
    ]
    said.clear()
    second.say("refused")
    assert said.messages == ["the second: refused; trying again"], "it is over: news again"
    clock[0] += REMIND
    first.say("refused")
    assert len(said.messages) == 1
    clock[0] += 1
    first.say("refused")
    assert len(said.messages) == 2, "it lasts"


@pytest.fixture
def lane() -> Patience:
    """Its listener, which ends with the session of the lane, has said that there was a reset."""
    troubles = Troubles()
    Patience(log, "the listener", troubles=troubles).say("reset by peer")
    gc.collect()
    return Patience(log, "the lane", troubles=troubles)


def test_one_that_was_silent_speaks_for_one_that_is_gone(
    said: pytest.LogCaptureFixture, lane: Patience
) -> None:
    lane.say("reset by peer")
    lane.success()
    assert said.messages == ["the lane: works again"]


def test_what_was_said_by_one_that_is_gone_is_news_after_a_success(
    said: pytest.LogCaptureFixture, lane: Patience
) -> None:
    lane.success()
    lane.say("reset by peer")
    assert said.messages == ["the lane: reset by peer; trying again"]


def test_an_attempt_is_repeated_after_an_error_until_the_end() -> None:
    stopped = threading.Event()
    lost: list[str] = []
    outcomes: list[Exception | None] = [psycopg.OperationalError("reset"), None, None]

    def attempt() -> None:
        outcome = outcomes.pop(0)
        if not outcomes:
            stopped.set()
        if outcome is not None:
            raise outcome

    Patience(log, "the connection").keep_trying(
        attempt, stopped, lost=lambda error: lost.append(str(error))
    )
    assert (outcomes, lost) == ([], ["reset"])


def test_an_error_that_cannot_pass_ends_the_attempts() -> None:
    """A fatal error is raised although its base class would be waited for; so is any other kind."""
    patience = Patience(log, "the connection")

    def attempt(error: Exception) -> None:
        raise error

    for error in (ConfigurationError("no such device"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            patience.keep_trying(
                partial(attempt, error), threading.Event(), fatal=(ConfigurationError,)
            )
