"""A table that was unlogged when it was enabled, and is logged now: its vectors still are not."""

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from fix_drain import Lane, assert_current, drain_url

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL

FOUND = "select detail, advice from embed.doctor() where subject ~ 'article' and state = 'problem'"


@pytest.mark.slow
@pytest.mark.parametrize("advised", [False, True])
def test_a_crash_empties_the_vectors_and_no_row_is_lost(
    new_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, advised: bool
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    server = new_cluster(fsync="off")
    migrate(server.start(), model=TESTING_MODEL)
    url = server.url()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create unlogged table article (id int primary key, body text)")
        connection.execute("insert into article values (1, 'one'), (2, 'two')")
        connection.execute("select embed.enable('article', array['body'])")
        assert drain_url(url) == []
        assert connection.execute(FOUND).fetchall() == []
        connection.execute("alter table article set logged")
        ((detail, advice),) = connection.execute(FOUND).fetchall()
        assert detail.startswith("a crash of the server empties embed.inbox_")
        assert "public.article_embedding, because unlogged" in detail
        if advised:
            connection.execute(advice.removeprefix("as the owner: "))
            assert connection.execute(FOUND).fetchall() == []
        connection.execute("insert into article values (3, 'waits for a worker')")
        connection.execute("checkpoint")
    server.kill()
    server.start()
    with psycopg.connect(url, autocommit=True) as connection:
        kept = connection.execute("select count(*) from article_embedding").fetchone()
        assert kept == (2 if advised else 0,)
        with closing(Lane(url)) as lane:
            lane.a_minute_later()
            assert lane.drain() == []
        assert len(assert_current(connection, "article")) == 3
