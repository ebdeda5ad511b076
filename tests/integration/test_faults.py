"""An exception that nobody foresaw, at each step of a source's work, stops that source alone."""

import importlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fix_drain import Connection, Lane, assert_current, source_of
from waiting import wait_until

from embedworker.queue.source import Source
from embedworker.queue.statistics import Statistics

INTAKE = "embedworker.service.intake"
READER = "embedworker.service.reader"
RETURNS = "embedworker.service.returns"
SWEEPS = "embedworker.service.sweeps"
WRITER = "embedworker.service.writer"
SECRET = "the text of a row"
# Module and name of what is called at each step. It raises when it is called for the table `bad`.
STEPS = {
    "move": (INTAKE, "move"),
    "claim": (INTAKE, "claim"),
    "retries": (INTAKE, "retries"),
    "read": (READER, "read"),
    "complete": (WRITER, "complete"),
    "release": (RETURNS, "release_held"),
    "forgotten": (RETURNS, "release_rows_of"),
    "request a sweep": (SWEEPS, "request"),
    "begin a sweep": ("embedworker.queue.sweep", "Sweep.begin"),
    "sweep": ("embedworker.queue.sweep", "Sweep.page"),
    "count": ("embedworker.queue.statistics", "load"),
    "index": ("embedworker.service.indexing", "Indexer.run_if_due"),
    "compact": ("embedworker.queue.compact", "Compactor.run_if_due"),
    "load": ("embedworker.service.registry", "Registry.load"),
}


def concerns(value: object, number: int, depth: int = 0) -> bool:
    """Whether an argument is the source with this number, or holds it."""
    if isinstance(value, Source):
        return value.id == number
    if isinstance(value, list | tuple) and depth < 3:
        return any(concerns(item, number, depth + 1) for item in value)
    inner = [getattr(value, name, None) for name in ("source", "_source", "job")]
    return depth < 3 and any(concerns(item, number, depth + 1) for item in inner if item)


def spoil(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, number: int
) -> Callable[[], int]:
    """Have a function raise for one source; returns how to ask how often it has."""
    owner: Any = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    right = getattr(owner, last)
    raised = 0

    def wrong(*arguments: Any, **named: Any) -> Any:
        nonlocal raised
        if any(concerns(value, number) for value in [*arguments, *named.values()]):
            raised += 1
            raise TypeError(SECRET)
        return right(*arguments, **named)

    static = isinstance(owner.__dict__.get(last), staticmethod) if parents else False
    monkeypatch.setattr(owner, last, staticmethod(wrong) if static else wrong)
    return lambda: raised


def table(app: Connection, name: str) -> None:
    app.execute(f"create table {name} (id int primary key, body text)")
    app.execute(f"select embed.enable('shop.{name}', array['body'])")
    app.execute(f"insert into {name} select n, 'text ' || n from generate_series(1, 3) n")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources in trouble are tried again soon, and counts follow one another without a pause."""
    monkeypatch.setattr("embedworker.service.quarantine.LONGEST", 0.2)
    monkeypatch.setattr("embedworker.queue.statistics.PAUSE", 0.0)


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_stops_its_source_alone(
    step: str,
    app: Connection,
    lane: Lane,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("bad", "good"):
        table(app, name)
    lane.lane.statistics._pause = 0.0
    bad = source_of(app, "shop.bad").id
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "embedworker"):
        if step in ("release", "retries"):  # comes after another trouble
            spoil(patch, *STEPS["complete" if step == "release" else "claim"], bad)
        if step == "request a sweep":  # due once a first sweep is over
            assert lane.drain() == []
            lane.lane.sweeps._interval = 0.0
            lane.lane.sweeps._scheduled_at = None
            app.execute("update bad set body = body || '!'")
        raised = spoil(patch, *STEPS[step], bad)

        def good_is_done() -> bool:
            lane.lane.step()
            return raised() > 0 and embedded(app, "good") == 3

        wait_until(good_is_done, 20, f"a fault at {step} of one table, and the rows of the other")
    assert SECRET not in caplog.text.replace("TypeError: " + SECRET, "")
    assert_current(app, "shop.good")

    def bad_is_done() -> bool:
        lane.lane.step()
        return embedded(app, "bad") == 3 and app.execute(
            "select error from embed.source_state where source = %s", [bad]
        ).fetchone() == (None,)

    wait_until(bad_is_done, 20, "the rows of the table whose fault is mended")
    assert_current(app, "shop.bad")


def embedded(app: Connection, name: str) -> int:
    row = app.execute(f"select count(*) from {name}_embedding").fetchone()
    assert row is not None
    return int(row[0])


def test_what_is_stored_of_a_fault(
    app: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status says that it is a fault of the program, and nothing that a row may hold."""
    table(app, "bad")
    source = source_of(app, "shop.bad").id
    spoil(monkeypatch, READER, "read", source)

    def stored() -> str | None:
        lane.lane.step()
        row = app.execute("select error from embed.source_state where source = %s", [source])
        return (row.fetchone() or (None,))[0]

    error = wait_until(stored)
    assert error is not None
    assert error.startswith("TypeError in embedworker. The worker's log has the traceback")
    assert SECRET not in error


def test_a_table_that_is_dropped_before_it_is_counted(app: Connection, lane: Lane) -> None:
    """Its size is null then."""
    table(app, "article")
    assert lane.drain() == []
    source = source_of(app, "shop.article")
    app.execute("drop table article, article_embedding cascade")
    statistics = Statistics(lane.connection, pause=0)
    statistics.ask(source)
    while statistics.step(source):
        pass
