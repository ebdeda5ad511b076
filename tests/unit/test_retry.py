"""Troubles are logged once, and tried again at growing intervals."""

import gc
import logging
import threading
from functools import partial

import psycopg
import pytest

from embedworker.errors import ConfigurationError
from embedworker.service import outages as module
from embedworker.service.outages import REMIND, OutageLog
from embedworker.service.retry import LONGEST, Backoff

log = logging.getLogger("embedworker.test")


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("embedworker"), "propagate", True)
    caplog.set_level(logging.INFO, log.name)
    return caplog


def test_two_troubles_that_alternate_are_said_once_each(said: pytest.LogCaptureFixture) -> None:
    backoff = Backoff(log, "the connection")
    for _ in range(5):
        backoff.say("refused")
        backoff.say(psycopg.OperationalError("reset by peer"))
    assert [record.getMessage() for record in said.records] == [
        "the connection: refused; trying again",
        "the connection: reset by peer; trying again",
    ]
    backoff.success()
    backoff.success()
    backoff.say("refused")
    assert [record.levelname for record in said.records] == [
        "WARNING",
        "WARNING",
        "INFO",
        "WARNING",
    ]


def test_pauses_grow_to_a_limit_and_start_over(said: pytest.LogCaptureFixture) -> None:
    backoff = Backoff(log, "the connection")
    pauses = [backoff.next_pause() for _ in range(20)]
    assert pauses[0] < 0.2
    assert all(0.75 * LONGEST <= pause <= 1.25 * LONGEST for pause in pauses[10:])
    backoff.success()
    assert backoff.next_pause() < 0.2
    assert said.records == []


def test_an_end_is_not_waited_out() -> None:
    stopped = threading.Event()
    stopped.set()
    backoff = Backoff(log, "the connection", longest=1000)
    for _ in range(20):
        backoff.wait("refused", stopped)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_common_trouble_is_said_by_one(
    said: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    troubles = OutageLog()
    first, second = (Backoff(log, what, outages=troubles) for what in ("the first", "the second"))
    stranger = Backoff(log, "a stranger")
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
def lane() -> Backoff:
    """Its listener, which ends with the session of the lane, has said that there was a reset."""
    troubles = OutageLog()
    Backoff(log, "the listener", outages=troubles).say("reset by peer")
    gc.collect()
    return Backoff(log, "the lane", outages=troubles)


def test_one_that_was_silent_speaks_for_one_that_is_gone(
    said: pytest.LogCaptureFixture, lane: Backoff
) -> None:
    lane.say("reset by peer")
    lane.success()
    assert said.messages == ["the lane: works again"]


def test_what_was_said_by_one_that_is_gone_is_news_after_a_success(
    said: pytest.LogCaptureFixture, lane: Backoff
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

    Backoff(log, "the connection").keep_trying(
        attempt, stopped, lost=lambda error: lost.append(str(error))
    )
    assert (outcomes, lost) == ([], ["reset"])


def test_an_error_that_cannot_pass_ends_the_attempts() -> None:
    """A fatal error is raised although its base class would be waited for; so is any other kind."""
    backoff = Backoff(log, "the connection")

    def attempt(error: Exception) -> None:
        raise error

    for error in (ConfigurationError("no such device"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            backoff.keep_trying(
                partial(attempt, error), threading.Event(), fatal=(ConfigurationError,)
            )
