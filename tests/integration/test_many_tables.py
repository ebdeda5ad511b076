"""Many tables of which few have work: those that have none take no time from it."""

import logging
from types import SimpleNamespace

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane, source_of
from psycopg import sql

from embedworker.queue.claim import fresh, move
from embedworker.queue.source import Source
from embedworker.service import intake, pace, scan
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


def test_a_table_that_is_enabled_has_no_other_checked_anew(
    many: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    check = TableChecks.check

    def noted(self: TableChecks, number: int, label: object) -> bool:
        checked.append(number)
        return check(self, number, label)

    monkeypatch.setattr(TableChecks, "check", noted)
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
    lane.lane.look()
    assert len(set(checked)) >= TABLES


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
