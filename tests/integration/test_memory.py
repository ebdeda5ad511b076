"""The passage lane gives free memory back after its work; how is tests/unit/test_memory.py."""

from contextlib import closing

import pytest
from fix_drain import Lane

from embedworker.database.connect import connect
from embedworker.service import memory
from embedworker.service.memory import Trimmer


def test_after_work_alone(testing_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: trims.append)
    with connect(testing_database) as connection, closing(Lane(testing_database)) as worker:
        connection.execute("create table article (id int primary key, body text)")
        connection.execute("select embed.enable('article', array['body'])")
        worker.lane.maintenance.trimmer = Trimmer(pause=0)
        assert worker.drain() == []
        assert trims == []
        connection.execute("insert into article values (1, '글')")
        assert worker.drain() == []
        assert trims == [0]
