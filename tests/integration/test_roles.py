"""embed_worker, embed_admin, embed_monitor, embed_search: what a member can do, and what not.

Three logins on one database: ``owner`` enables a table of its own and is no superuser, ``worker``
owns nothing, ``stranger`` has no rights at all. The application writes as a fourth.
"""

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from fix_cli import Cli
from fix_database import _new_database as new_database
from fix_drain import Lane, assert_current, source_of
from fix_roles import PASSWORD, as_login, database_with_logins
from psycopg import errors
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.database.migrate import migrate
from embedworker.database.statements import statement
from embedworker.errors import AccessDenied, NoWorker
from embedworker.model.catalog import TESTING_MODEL
from embedworker.queue import compact
from embedworker.queue.compact import Compactor
from embedworker.queue.source import Connection
from embedworker.search.client import Client
from embedworker.service.counting import count

LOGINS = {
    "owner": "embed_admin",
    "other": "embed_admin",
    "worker": "embed_worker",
    "monitor": "embed_monitor",
    "operator": "pg_monitor",
    "stranger": None,
    "clerk": None,
}


@pytest.fixture(scope="module")
def url(server: Cluster, template: str) -> Iterator[str]:
    with database_with_logins(server, template, LOGINS) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create schema shop authorization t_owner")
        yield url


@pytest.fixture
def owner(url: str) -> Iterator[Connection]:
    """A table with a column that is nobody's business, enabled by its owner."""
    with connect(as_login(url, "owner")) as connection:
        connection.execute(
            """
            create table shop.person (id int primary key, bio text, public boolean, salary int);
            insert into shop.person values (1, 'one', true, 10), (2, 'two', true, 20);
            grant usage on schema shop to t_clerk;
            grant select, insert, update, delete on shop.person to t_clerk;
            """
        )
        connection.execute("select embed.enable('shop.person', array['bio'], filter => 'public')")
        yield connection
        connection.execute("drop table if exists shop.person cascade")
        with psycopg.connect(url, autocommit=True) as superuser:
            superuser.execute("select embed._refresh(id) from embed.source")


@pytest.fixture
def lane(url: str, owner: Connection) -> Iterator[Lane]:
    assert source_of(owner, "shop.person").fingerprint is None
    with closing(Lane(as_login(url, "worker"))) as lane:
        assert lane.drain() == []
        yield lane


def refused(connection: Connection, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_worker_that_owns_nothing_does_everything(url: str, owner: Connection, lane: Lane) -> None:
    assert assert_current(owner, "shop.person") == {("1",): "one", ("2",): "two"}
    with connect(as_login(url, "worker")) as monitor:
        backlog = monitor.execute(statement("observer_backlog")).fetchall()
        assert "shop.person" in [relation for _, relation, *_ in backlog]
        assert monitor.execute(statement("observer_questions")).fetchall() == [(0, 0, 0, 0)]
    with connect(as_login(url, "clerk")) as clerk:
        clerk.execute("insert into shop.person values (3, 'three', true, 5)")
        clerk.execute("update shop.person set bio = 'zwei' where id = 2")
        clerk.execute("delete from shop.person where id = 1")
        clerk.execute("insert into shop.person values (4, 'hidden', false, 5)")
        refused(clerk, "truncate shop.person")
    assert lane.drain() == []
    assert assert_current(owner, "shop.person") == {("2",): "zwei", ("3",): "three"}
    owner.execute("truncate shop.person_embedding")
    owner.execute("select embed.sweep('shop.person')")
    assert lane.drain() == []
    assert assert_current(owner, "shop.person") == {("2",): "zwei", ("3",): "three"}


def test_worker_that_owns_nothing_gives_the_room_of_a_queue_back(
    owner: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(owner, "shop.person")
    queue = f"embed.queue_{source.id}"
    owner.execute(
        f"insert into {queue} (k1, seq) select n, n from generate_series(1001, 6000) n".encode()
    )
    owner.execute(f"delete from {queue} where k1 < 5990".encode())
    owner.execute("select pg_stat_force_next_flush()")
    owner.execute(f"vacuum {queue}".encode())
    size = "select pg_total_relation_size(%s)"
    (before,) = owner.execute(size, [queue]).fetchone() or (0,)
    assert not Compactor().run_if_due(lane.connection, source), "it is not large"
    monkeypatch.setattr(compact, "LARGE", 100_000)
    assert Compactor().run_if_due(lane.connection, source)
    assert (owner.execute(size, [queue]).fetchone() or (0,))[0] < before / 3
    assert owner.execute(f"select count(*) from {queue}".encode()).fetchone() == (11,)


def test_worker_follows_changes_of_a_table_that_it_does_not_own(
    owner: Connection, lane: Lane
) -> None:
    owner.execute("alter table shop.person rename bio to about")
    owner.execute("alter table shop.person rename to people")
    owner.execute("update shop.people set about = 'uno' where id = 1")
    lane.a_minute_later()
    assert lane.drain() == []
    assert assert_current(owner, "shop.people") == {("1",): "uno", ("2",): "two"}
    owner.execute("drop table shop.people")
    lane.a_minute_later()
    assert lane.drain() == []
    assert owner.execute("select to_regclass('shop.person_embedding')").fetchone() == (None,)
    left = "select from embed.source where name = 'person'"
    assert owner.execute(left).fetchall() == []


def test_worker_writes_a_vector_into_a_column_and_no_other(
    url: str, owner: Connection, lane: Lane
) -> None:
    owner.execute("alter table shop.person add v vector(384)")
    owner.execute(
        "select embed.enable('shop.person', array['bio'], name => 'c', into_column => 'v')"
    )
    lane.a_minute_later()
    assert lane.drain() == []
    assert assert_current(owner, "shop.person", "c") == {("1",): "one", ("2",): "two"}
    with connect(as_login(url, "worker")) as worker:
        worker.execute("update shop.person set v = v")
        refused(worker, "update shop.person set bio = 'mine'")
        refused(worker, "update shop.person set salary = 0")


def test_worker_reads_only_what_is_embedded(url: str, owner: Connection) -> None:
    owner.execute("create table shop.secret (id int primary key, body text)")
    with connect(as_login(url, "worker")) as worker:
        assert worker.execute("select id, bio, public from shop.person").fetchall()
        for attempt in (
            "select salary from shop.person",
            "select * from shop.person",
            "select from shop.secret",
            "delete from shop.person",
            "insert into shop.person values (9)",
            "alter table shop.person_embedding add x int",
            "drop table shop.person_embedding",
            "create table embed.mine (x int)",
            "create table shop.mine (x int)",
            "insert into embed.source (name) values ('x')",
            "update embed.model set query_prefix = 'x'",
            "select * from pg_authid",
            "select embed.enable('shop.secret', array['body'])",
            "select embed._loopback('x', 'm', 'query', '1s')",
        ):
            refused(worker, attempt)
    owner.execute("drop table shop.secret")


@pytest.mark.usefixtures("lane")
def test_owner_sees_to_own_tables_only(url: str, owner: Connection) -> None:
    with connect(as_login(url, "clerk")) as clerk:
        refused(clerk, "select embed.disable('shop.person')")
        refused(clerk, "select embed.pause('shop.person')")
        refused(clerk, "select * from embed.source")
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute("create table public.others (id int primary key, body text)")
        refused(owner, "select embed.enable('public.others', array['body'])")
        superuser.execute("drop table public.others")
    for attempt in (
        "select * from embed.question",
        "select * from embed.question_cache",
        "delete from embed.worker_session",
        "drop table embed.source",
        "select embed.restrict_questions()",
    ):
        refused(owner, attempt)
    owner.execute("select embed.pause('shop.person')")
    owner.execute("select embed.resume('shop.person')")
    status = owner.execute("select state, rows from embed.status where name = 'person'").fetchone()
    assert status is not None
    assert status[1] == 2
    owner.execute("select embed.disable('shop.person', drop_vectors => true)")


@pytest.mark.usefixtures("lane")
def test_stranger_sees_nothing_but_may_ask(url: str, owner: Connection) -> None:
    number = source_of(owner, "shop.person").id
    with connect(as_login(url, "stranger")) as stranger:
        for attempt in (
            "select * from embed.status",
            "select * from embed.failure",
            "select * from embed.worker",
            "select * from embed.question",
            "select * from embed.question_cache",
            "select * from shop.person_embedding",
            f"select * from embed.inbox_{number}",
            f"select * from embed.queue_{number}",
            f"select embed.source_{number}_refresh()",
            f"select embed.source_{number}_compact()",
            "select embed.ask(gen_random_uuid(), 'm', 'q', 'query')",
            "select setval('embed.seq', 1)",
            "select embed._make_roles()",
            "select embed.limit_questions(1)",
            "select * from embed.question_limit",
            "delete from embed.question_allowance",
        ):
            refused(stranger, attempt)


@pytest.mark.usefixtures("lane", "owner")
def test_who_looks_may_use_the_command_line(url: str) -> None:
    cli = Cli(as_login(url, "monitor"))
    assert "shop.person" in cli.ok("status")
    (person,) = [s for s in cli.json("status")["sources"] if s["source"] == "shop.person"]
    assert (person["rows"], person["embedded"], person["coverage"]) == (2, 2, 1)


def test_who_looks_sees_the_counts_of_the_owner(url: str, owner: Connection, lane: Lane) -> None:
    """While rows wait, each counts as one without a vector: to see more it would read keys."""
    counts = (
        "select rows, embedded, pending, stale, dead, removing, coverage from embed.status"
        " where name = 'person'"
    )
    estimated = "select estimated from embed.status where name = 'person'"
    assert count(lane.connection, source_of(owner, "shop.person"))
    with connect(as_login(url, "monitor")) as monitor:

        def same() -> tuple[int, ...]:
            seen = monitor.execute(counts).fetchone()
            assert seen == owner.execute(counts).fetchone()
            assert seen is not None
            return seen

        assert same()[:3] == (2, 2, 0)
        assert monitor.execute(estimated).fetchone() == (False,)
        owner.execute(
            "insert into shop.person select n, 'more', true, 1 from generate_series(3, 8) n"
        )
        assert same()[:3] == (8, 2, 6)
        assert monitor.execute(estimated).fetchone() == (True,)
        assert lane.drain() == []
        assert same()[:3] == (8, 8, 0)
        owner.execute("update shop.person set bio = 'less' where id = 8")
        assert monitor.execute(counts).fetchone() == (9, 8, 1, 0, 0, 0, pytest.approx(0.8888))


@pytest.mark.usefixtures("owner")
def test_who_searches_too_early_learns_what_keeps_the_worker(url: str) -> None:
    """The error may quote a row, so that only those see it who see embed.status."""
    with connect(url) as superuser:
        superuser.execute(
            "insert into embed.worker_session (id, host, pid, lanes, backend, lock_held)"
            " values (1, 'test', 0, '{passages}', 0, false)"
        )
        superuser.execute(
            "update embed.source_state set error = 'the model is not here', error_at = now()"
        )
        try:
            for login, said in {
                "owner": "embed.status says of shop.person: the model is not here",
                "clerk": "The view embed.status has an error of such a table.",
            }.items():
                with Client(as_login(url, login)) as client, pytest.raises(NoWorker) as caught:
                    client.search("shop.person", "x")
                found = str(caught.value)
                assert "Connected workers that embed rows: 1, the newest for " in found
                assert "Models loaded: none yet." in found
                assert said.rstrip(".") in found
                assert ("is not here" in found) == (login == "owner")
                if login == "clerk":
                    with (
                        Client(as_login(url, login)) as client,
                        pytest.raises(AccessDenied, match="grant embed_monitor to t_clerk"),
                    ):
                        client.sources()
        finally:
            superuser.execute("delete from embed.worker_session")
            superuser.execute("update embed.source_state set error = null")


@pytest.mark.usefixtures("lane")
def test_the_doctor_of_a_reader_says_what_it_needs_and_no_problem(url: str) -> None:
    """A right that a reader lacks is nothing that is broken."""
    seen = Cli(as_login(url, "stranger")).json("doctor")
    assert {f["state"] for f in seen} <= {"ok", "skipped", "warning"}, seen
    (missing,) = [f for f in seen if f["check"] == "embed.doctor()"]
    assert missing["state"] == "skipped"
    assert missing["advice"] == "Have a superuser run: grant embed_monitor to t_stranger;"


@pytest.mark.usefixtures("lane")
def test_the_doctor_asks_for_no_policy_for_who_only_looks(url: str, owner: Connection) -> None:
    """Its advice was to let a reader past row security."""
    owner.execute("alter table shop.person enable row level security")
    with connect(as_login(url, "monitor")) as monitor:
        seen = monitor.execute("select detail from embed.doctor() where detail ~ 'row security'")
        assert seen.fetchall() == []


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize("login", ["monitor", "operator", "other"])
def test_who_looks_sees_how_it_goes_and_no_text(url: str, owner: Connection, login: str) -> None:
    """``operator`` is a member of pg_monitor, ``other`` administers tables of its own."""
    number = source_of(owner, "shop.person").id
    owner.execute(
        f"insert into embed.queue_{number} (k1, seq, attempts, due, error) "
        "values (77, 1, 5, 'infinity', 'the text was: salary')".encode()
    )
    owner.execute("update shop.person set bio = 'uno' where id = 1")
    own = owner.execute("select key, error from embed.failure").fetchall()
    assert own == [({"id": 77}, "the text was: salary")]
    with connect(as_login(url, login)) as connection:
        status = connection.execute(
            "select state, rows, pending, dead, coverage, error from embed.status "
            "where name = 'person'"
        ).fetchall()
        assert status == [("embedding", 4, 1, 1, 0.5, None)]
        failure = connection.execute("select key, attempts, error, dead from embed.failure")
        ((key, attempts, error, dead),) = failure.fetchall()
        assert (key, attempts, dead) == (None, 5, True)
        assert "salary" not in error
        assert connection.execute("select count(*) from embed.worker").fetchone() == (1,)
        looks = connection.execute("select subject, state, detail from embed.doctor()").fetchall()
        assert {"database", "shop.person"} <= {subject for subject, *_ in looks}
        assert not [look for look in looks if "permission denied" in (look[2] or "")]
        backlog = connection.execute(statement("observer_backlog")).fetchall()
        assert [
            waiting for name, waiting in ((b[1], b[5]) for b in backlog) if name == "shop.person"
        ] == [1]
        if login != "other":
            assert connection.execute(statement("observer_questions")).fetchall() == [(0, 0, 0, 0)]
        for attempt in (
            f"select k1 from embed.queue_{number}",
            f"select error from embed.queue_{number}",
            f"select k1 from embed.inbox_{number}",
            f"delete from embed.queue_{number}",
            "select bio from shop.person",
            "select id from shop.person_embedding",
            "select text from embed.question",
            "select hash from embed.question_cache",
            "select value from embed.memo_secret",
            "update embed.source set paused = true",
        ):
            refused(connection, attempt)


def test_questions_can_be_left_to_members(url: str) -> None:
    asks = "select embed.query('x')"
    with (
        connect(url) as superuser,
        connect(as_login(url, "stranger")) as stranger,
    ):
        set_up_loopback(superuser)
        stranger.execute("set embed.query_timeout = '1ms'")
        with pytest.raises(psycopg.Error) as nobody_answers:
            stranger.execute(asks)
        assert nobody_answers.value.sqlstate == "EW001"
        superuser.execute("select embed.restrict_questions()")
        refused(stranger, asks)
        refused(stranger, "select embed.similarity('a', 'b')")
        superuser.execute("grant embed_search to t_stranger")
        with pytest.raises(psycopg.Error) as nobody_answers:
            stranger.execute(asks)
        assert nobody_answers.value.sqlstate == "EW001"
        superuser.execute("revoke embed_search from t_stranger")
        superuser.execute("select embed.restrict_questions(false)")


def test_questions_are_limited_by_administrators(url: str) -> None:
    with connect(as_login(url, "owner")) as owner, connect(as_login(url, "worker")) as worker:
        limits = "select role::text, a_minute from embed.question_limit"
        owner.execute("select embed.limit_questions(7, 't_stranger'), embed.limit_questions(9)")
        assert sorted(owner.execute(limits).fetchall()) == [("-", 9), ("t_stranger", 7)]
        owner.execute("select embed.limit_questions(null)")
        assert owner.execute(limits).fetchall() == [("t_stranger", 7)]
        refused(worker, "select embed.limit_questions(1)")
        owner.execute("delete from embed.question_limit")


def test_rows_hidden_from_the_worker_are_not_taken_for_deleted(
    owner: Connection, lane: Lane
) -> None:
    """A row that row security hides looks like one that is gone."""
    owner.execute("alter table shop.person enable row level security")
    owner.execute("create policy own on shop.person to t_clerk using (true)")
    owner.execute("update shop.person set bio = 'uno' where id = 1")
    lane.a_minute_later()
    (trouble,) = lane.drain()
    assert "row security of shop.person hides rows from the role t_worker of the worker" in trouble
    assert (
        "create policy embed_worker on shop.person for select to t_worker using (true)" in trouble
    )
    assert owner.execute("select count(*) from shop.person_embedding").fetchone() == (2,)
    owner.execute(
        "create policy embed_worker on shop.person for select to embed_worker using (true)"
    )

    def done() -> bool:
        lane.a_minute_later()
        return lane.drain() == []

    wait_until(done)
    owner.execute(
        "drop policy own on shop.person"
    )  # and so the owner, who is not subject, reads on
    assert assert_current(owner, "shop.person") == {("1",): "uno", ("2",): "two"}
    owner.execute("create policy first on shop.person as restrictive using (id = 1)")
    lane.a_minute_later()
    (trouble,) = lane.drain()
    assert "hides rows" in trouble


@pytest.mark.usefixtures("template")
def test_migrate_by_a_role_that_may_not_create_roles(server: Cluster) -> None:
    """Says what is missing and does the rest. The cluster has them all here: one is renamed."""
    with new_database(server, "template1") as url, psycopg.connect(url, autocommit=True) as owner:
        owner.execute("create extension vector")
        owner.execute(f"create role t_plain login password '{PASSWORD}'")
        owner.execute(f"grant create on database {owner.info.dbname} to t_plain")
        owner.execute("alter role embed_search rename to embed_search_hidden")
        try:
            plain = make_conninfo(url, user="t_plain", password=PASSWORD)
            remarks = " ".join(migrate(plain, model=TESTING_MODEL))
        finally:
            owner.execute("alter role embed_search_hidden rename to embed_search")
            owner.execute("drop owned by t_plain cascade; drop role t_plain")
    assert "'t_plain' may not create roles, so there is no embed_search;" in remarks
    assert "create role embed_search;" in remarks
