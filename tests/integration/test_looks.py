"""A lane looks at a table soon after its rows changed, however seldom it has looked before."""

from contextlib import closing
from types import SimpleNamespace

import pytest
from fix_drain import Lane

from embedworker.database.connect import connect
from embedworker.queue import interval as module
from embedworker.queue.interval import FIRST
from embedworker.settings import Settings

LEASE = Settings.model_fields["lease"].default


def test_rows_bring_the_next_look_nearer(
    testing_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with connect(testing_database) as connection, closing(Lane(testing_database)) as worker:
        connection.execute("create table article (id int primary key, body text)")
        connection.execute("select embed.enable('article', array['body'])")
        ((source,),) = connection.execute(
            "select id from embed.source where relation = 'article'::regclass"
        ).fetchall()
        lane = worker.lane
        looks = {chore.label: kept.interval for chore, kept in lane.maintenance.chores}
        looks["rows held"] = lane.returns.interval
        assert looks.keys() == {"index", "compact", "rows held"}
        pauses = dict.fromkeys(looks, FIRST) | {"rows held": LEASE / 3}
        for _ in range(4):
            clock.now += 10 * FIRST
            assert worker.drain() == []
        for what, pause in pauses.items():
            clock.now += pause
            assert not looks[what].due(source), what
            clock.now -= pause
        connection.execute("insert into article values (1, '글')")
        assert worker.drain() == []
        for what, pause in pauses.items():
            clock.now += pause
            assert looks[what].due(source), what
            clock.now -= pause
