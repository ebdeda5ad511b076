"""A standby that pg_basebackup made: what it answers, and what happens when it is promoted.

The last test promotes it.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from fix_cli import Cli
from fix_drain import Lane
from fix_questions import QuestionRunner, ask, question_vector, refused
from fix_standby import copy_cluster
from fix_worker import Workers
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL
from embedworker.service.doctor import Finding, examine

pytestmark = pytest.mark.slow


class Pair(NamedTuple):
    primary: Cluster
    standby: Cluster


@pytest.fixture(scope="module")
def pair(new_cluster: Callable[..., Cluster]) -> Iterator[Pair]:
    """A primary with an embedded table, which a worker leaves running, and its standby."""
    primary = new_cluster(fsync="off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        migrate(primary.start(), model=TESTING_MODEL)
        with connect(primary.url()) as connection:
            connection.execute(
                "create table article (id integer primary key, body text);"
                "insert into article values (1, 'one'), (2, 'two');"
                "select embed.enable('article', array['body']);"
                "create role t_few login password 'made up' in role embed_worker"
            )
        with closing(Lane(primary.url())) as lane:
            assert lane.drain() == []
            lane.connection.execute("update embed.worker_session set lock_held = true")
            lane.connection.execute("select pg_advisory_lock(1701667429, %s)", [lane.worker.id])
            with QuestionRunner(primary.url(), 4711):
                with connect(primary.url()) as connection:
                    ask(connection, "kept")
                standby = new_cluster(fsync="off")
                copy_cluster(primary, standby)
                yield Pair(primary, standby)


def findings(url: str) -> dict[tuple[str, str], Finding]:
    return {(f.subject, f.check): f for f in examine(url, settings.load())}


def test_the_doctor_on_a_standby(pair: Pair) -> None:
    """Nothing of what works is called a problem, and every check is made or said to be skipped."""
    on_primary, found = findings(pair.primary.url()), findings(pair.standby.url())
    problems = [f for f in found.values() if f.state == "problem"]
    assert problems == [f for f in on_primary.values() if f.state == "problem"] == []
    server = found["database", "server"]
    assert server.state == "warning"
    assert server.detail.endswith(", a standby")
    assert found["workers", "passages"] == on_primary["workers", "passages"]
    assert found["workers", "passages"].detail == "1 alive"
    assert found["workers", "questions"].detail == "1 alive"
    assert found["database", "notifications"].state == "skipped"
    assert found["questions", "embed.query"].state == "skipped"
    assert found["public.article", "queue"] == on_primary["public.article", "queue"]


def test_the_views_on_a_standby(pair: Pair) -> None:
    with connect(pair.primary.url()) as primary, connect(pair.standby.url()) as standby:
        for view in ("embed.status", "embed.failure", "embed.worker"):
            columns = "source, state, rows, embedded" if view == "embed.status" else "*"
            read = f"select {columns} from {view}"
            if view == "embed.worker":
                read = "select id, lanes, lock_held from embed.worker"
            assert standby.execute(read).fetchall() == primary.execute(read).fetchall()
        states = standby.execute("select state from embed.status").fetchall()
        assert set(states) == {("ready",)}


def test_commands_on_a_standby(pair: Pair) -> None:
    cli = Cli(pair.standby.url())
    assert "article" in cli.ok("status")
    assert "name the primary in --database-url" in cli.refused("sweep", "article")
    assert "is on a standby; run this on the primary" in cli.refused("migrate")


def test_searches_on_a_standby(pair: Pair) -> None:
    """By the hint: the vector comes from the primary, or from what was asked there before."""
    search = 'select (s."row").id from embed.search(null::article, {}, k => 1) s'
    with connect(pair.primary.url()) as primary, connect(pair.standby.url()) as standby:
        said = refused(standby, "EW007", "select embed.query('never asked')")
        assert said.message_hint.startswith("Run `embedworker migrate --primary-host HOST`")
        (vector,) = primary.execute("select embed.query('never asked')").fetchone() or ()
        found = standby.execute(search.format("%s::vector"), [vector]).fetchall()
        assert found == primary.execute(search.format("%s::vector"), [vector]).fetchall()
        assert ask(standby, "kept") == pytest.approx(question_vector("kept"), abs=1e-7)
        assert len(standby.execute(search.format("'kept'")).fetchall()) == 1


def test_after_a_failover_questions_lead_to_the_new_server(pair: Pair, tmp_path: Path) -> None:
    """The old one runs still, at the address that is stored: it must not be asked."""
    _, standby = pair
    with connect(standby.url()) as connection:
        connection.execute("select pg_promote()")
        said = refused(connection, "EW007", "select embed.query('never asked before')")
        assert said.message_detail == "another server or database answered"
        assert said.message_hint.startswith("Restart a worker")
        assert findings(standby.url())["questions", "embed.query"].state == "problem"
        workers = Workers(standby.url(), tmp_path)
        try:
            worker = workers.start(
                url=make_conninfo(standby.url(), user="t_few", password="made up"),
                both_lanes=True,
            )
            wait_until(lambda: "leads to this server again" in worker.output(), 60)
            connection.execute("set embed.query_timeout = '30s'")
            new = "never asked before"
            assert ask(connection, new) == pytest.approx(question_vector(new), abs=1e-7)
            assert findings(standby.url())["questions", "embed.query"].state == "ok"
        finally:
            workers.end()
    with psycopg.connect(pair.primary.url()) as old:
        asked = old.execute("select count(*) from embed.question").fetchone()
        assert asked == (0,)
