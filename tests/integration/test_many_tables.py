"""Many tables of which few have work: those that have none take no time from it."""

import logging
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane, source_of
from psycopg import sql

from embedworker.queue.claim import fresh, move
from embedworker.queue.source import Source
from embedworker.queue.statistics import Statistics
from embedworker.service import intake, pace, scan, table_checks, walk
from embedworker.service.scan import FRESH_LOOK, FRESH_SHARE, LONGEST_PAUSE, QueueScan
from embedworker.service.table_checks import TableChecks

TABLES = 8


@pytest.fixture
def many(app: Connection, lane: Lane) -> Connection:
    for number in range(TABLES):
        app.execute(
            f"create table t{number} (id integer primary key, content text);"
            f"select embed.enable('t{number}', array['content'])".encode()
        )
    assert lane.drain() == []
    return app


def test_only_tables_with_news_are_visited_between_two_batches(
    many: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    many.execute("insert into t0 select n, '글 ' || n from generate_series(1, 600) n")
    lane.wake.set()
    lane.lane.step()
    assert lane.lane.claimed.any_of(source_of(many, "t0").id), "the backfill is under way"
    visited: list[str] = []

    def noted(connection: Connection, source: Source, **options: object) -> object:
        visited.append(source.name)
        return move(connection, source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(intake, "move", noted)
    many.execute("insert into t3 values (1, '새 글')")
    lane.wake.set()
    lane.lane._intake.take_fresh()
    assert visited == ["t3"]
    assert lane.drain() == []
    assert many.execute("select count(*) from t3_embedding").fetchone() == (1,)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sources whose tables are checked from now on, in this order."""
    seen: list[int] = []
    check = TableChecks._check

    def noted(self: TableChecks, number: int, label: object) -> None:
        seen.append(number)
        check(self, number, label)

    monkeypatch.setattr(TableChecks, "_check", noted)
    return seen


def test_a_table_that_is_enabled_has_no_other_checked_anew(
    many: Connection, lane: Lane, checked: list[int]
) -> None:
    many.execute(
        "create table later (id integer primary key, content text);"
        "select embed.enable('later', array['content'])"
    )
    lane.lane.look()
    assert set(checked) == {source_of(many, "later").id}
    many.execute("select embed.disable('later')")
    checked.clear()
    lane.lane.look()
    assert checked == []
    assert "later" not in {source.name for source in lane.registry.all}
    lane.a_minute_later()
    assert lane.drain() == []
    assert len(set(checked)) >= TABLES


def test_the_tables_are_checked_a_few_at_each_look(
    many: Connection, lane: Lane, checked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of 300 in one go kept a new row waiting for seconds, once a minute."""
    monkeypatch.setattr(table_checks, "STRETCH", 0.0)
    many.execute("alter table t5 rename to renamed")
    lane.a_minute_later()
    count = len(lane.registry.all)
    for number in range(count):
        lane.lane.look()
        assert len(checked) == number + 1
        assert lane.registry.tables.checked is (number + 1 == count)
    assert sorted(checked) == sorted(source.id for source in lane.registry.all)
    assert "shop.renamed" in {source.relation for source in lane.registry.all}
    lane.lane.look()
    assert len(checked) == count


@pytest.mark.usefixtures("many")
def test_what_is_done_for_idle_tables_gives_way_to_a_change(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[int] = []
    step = Statistics.step

    def noted(self: Statistics, source: Source) -> bool:
        visited.append(source.id)
        return step(self, source)

    monkeypatch.setattr(Statistics, "step", noted)
    numbers = [source.id for source in lane.registry.active()]
    lane.wake.set()
    for number in numbers[:-1]:
        assert lane.lane.maintenance.step(), "there is more"
        assert visited[-1] == number
    lane.wake.clear()
    assert not lane.lane.maintenance.step()
    assert visited == numbers
    monkeypatch.setattr(walk, "STRETCH", 0.0)
    visited.clear()
    assert lane.lane.maintenance.step()
    assert visited == numbers[:1]


def test_rows_of_a_large_table_are_claimed_without_looks_at_the_others(
    many: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at 300 tables took as long as a window of one."""
    looks: list[object] = []
    poll = scan.poll

    def noted(*arguments: Any) -> object:
        looks.append(arguments)
        return poll(*arguments)

    monkeypatch.setattr(scan, "poll", noted)
    monkeypatch.setattr(scan, "LOOK_SHARE", 1e-9)
    many.execute("insert into t0 select n, '글 ' || n from generate_series(1, 500) n")
    lane.lane.step()
    lane.lane._refill()
    lane.lane._refill()
    assert len(lane.lane.claimed) == 500
    assert len(looks) == 1
    lane.lane._refill()
    lane.lane._refill()
    assert len(looks) == 2, "nothing more was found, so the next look came at once"
    assert lane.drain() == []


def test_a_table_that_is_done_is_not_said_again_and_again(
    many: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work on another table is one long piece of work, which goes on."""
    monkeypatch.setattr(pace, "INTERVAL", 0.0)
    many.execute("insert into t1 values (1, '글')")
    many.execute("insert into t0 select n, '글 ' || n from generate_series(1, 1200) n")
    with caplog.at_level(logging.INFO, "embedworker.progress"):
        assert lane.drain() == []
    said = [line.getMessage().partition(":")[0] for line in caplog.records]
    assert said.count("shop.t0") > 3
    assert said.count("shop.t1") <= 2


def test_a_table_whose_inbox_cannot_be_seen(many: Connection, lane: Lane) -> None:
    """One that somebody drops does not hold the look up; one that is gone is reported."""
    held, gone, well = (source_of(many, f"t{number}") for number in range(3))
    many.execute("insert into t2 values (1, '새 글')")
    cursors = lane.lane._scan.cursors
    drop = sql.SQL("drop table {} cascade")
    with psycopg.connect(lane.url) as other:
        other.execute(drop.format(sql.Identifier("embed", f"inbox_{held.id}")))
        assert fresh(lane.connection, [held, well], cursors) == [well]
        other.rollback()
        inbox = sql.Identifier("embed", f"inbox_{gone.id}")
        other.execute(sql.SQL("alter table {} rename to away").format(inbox))
        other.commit()
        assert fresh(lane.connection, [held, gone, well], cursors) == [gone, well]
        back = sql.SQL("alter table embed.away rename to {}")
        other.execute(back.format(sql.Identifier(f"inbox_{gone.id}")))


def test_a_look_for_fresh_rows_leaves_a_paused_table_out(many: Connection, lane: Lane) -> None:
    """The worker may not have read yet that it is paused."""
    source = source_of(many, "t1")
    many.execute("select embed.pause('t1'); insert into t1 values (1, '새 글')")
    cursors = lane.lane._scan.cursors
    assert fresh(lane.connection, [source], cursors) == []
    many.execute("select embed.resume('t1')")
    assert fresh(lane.connection, [source], cursors) == [source]


@pytest.mark.parametrize("took", [0.001, 0.01, 60.0])
def test_looks_for_news_take_a_bounded_share_of_the_time(
    took: float, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(scan, "time", SimpleNamespace(monotonic=lambda: clock.now))
    looks = QueueScan(lane.connection)

    def slow(*_: object) -> list[Source]:
        clock.now += took
        return []

    monkeypatch.setattr(scan, "fresh", slow)
    assert looks.fresh_due(woken=True)
    with looks.fresh([]):
        pass
    pause = min(took / FRESH_SHARE, LONGEST_PAUSE)
    clock.now += pause - 0.001
    assert not looks.fresh_due(woken=True)
    clock.now += 0.002
    assert looks.fresh_due(woken=True)
    assert looks.fresh_due(woken=False) is (pause >= FRESH_LOOK)
