"""A lane looks at a table soon after its rows changed, however seldom it has looked before."""

from contextlib import closing
from types import SimpleNamespace

import pytest
from fix_drain import Lane

from worker.database.connect import connect
from worker.queue import looks as module
from worker.queue.looks import FIRST


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
        looks = {"rows held": lane._counts, "index": lane._indexer.looks}
        looks |= {"queue": lane._compactor.looks}
        pauses = dict.fromkeys(looks, FIRST) | {"rows held": lane._settings.lease / 3}
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
