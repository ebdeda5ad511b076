"""What ``worker`` exports: a worker in a process of the application's, and clients."""

import asyncio
import doctest
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import _new_database as new_database
from waiting import wait_until

import worker as package
from worker import AsyncClient, Client, Hit, Worker
from worker.database.cluster import Cluster
from worker.database.connect import connect
from worker.database.loopback import set_up_loopback
from worker.errors import ConfigurationError, ServerUnavailable
from worker.settings import Settings, load

Connection = psycopg.Connection[Any]

READY = 60.0  # seconds on a machine that does much else


@pytest.fixture(scope="module")
def url(server: Cluster, hash_template: str) -> Iterator[str]:
    """A database with one document, which embeds with the encoder of the tests."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as made:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with connect(made) as connection:
            set_up_loopback(connection)
            connection.execute(
                "insert into embed.document (title, content) values ('Washing machine', 'F-05')"
            )
        assert Worker(made, lanes=["passages"]).run_once() == []
        yield made


@pytest.fixture
def settings() -> Settings:
    return load(poll_max=0.2, index_after_rows=10**9, device="cpu")


@pytest.fixture
def table(url: str) -> Iterator[Connection]:
    with connect(url) as connection:
        connection.execute("create table article (id int primary key, body text)")
        connection.execute("select embed.enable('article', array['body'])")
        yield connection
        connection.execute("select embed.disable('article', drop_vectors => true)")
        connection.execute("drop table article")


def embedded(connection: Connection) -> bool:
    row = connection.execute(
        "select pending = 0 and embedded = rows from embed.status where name = 'article'"
    ).fetchone()
    return row == (True,)


def test_the_examples_of_the_module(url: str) -> None:
    ran = doctest.testmod(package, extraglobs={"url": url}, raise_on_error=False)
    assert ran == (0, ran.attempted)
    assert ran.attempted > 0


def test_a_worker_inside(url: str, table: Connection, settings: Settings) -> None:
    before = set(threading.enumerate())
    table.execute("insert into article values (1, 'one'), (2, 'two')")
    with Worker(url, settings) as worker:
        assert worker.wait_ready(READY)
        wait_until(lambda: embedded(table), READY, "the vectors")
        with Client(url, timeout=30) as client:
            hits = client.search("article", "one", 2)
            assert [type(hit) for hit in hits] == [Hit, Hit]
            assert sorted(hit.row["body"] for hit in hits) == ["one", "two"]
            assert len(client.query("one").to_list()) == 384
    assert set(threading.enumerate()) <= before
    assert table.execute("select from embed.worker_session").fetchall() == []
    assert not worker.wait_ready(0)


def test_asynchronously(url: str, table: Connection, settings: Settings) -> None:
    table.execute("insert into article values (1, 'one'), (2, 'two')")

    async def both() -> None:
        async with Worker(url, settings) as worker, AsyncClient(url, timeout=30) as client:
            assert await asyncio.to_thread(worker.wait_ready, READY)
            await asyncio.to_thread(wait_until, lambda: embedded(table), READY, "the vectors")
            vector, *found = await asyncio.gather(
                client.query("one"), *(client.search("article", f"{n}", 1) for n in range(5))
            )
            assert len(vector.to_list()) == 384
            assert [len(hits) for hits in found] == [1] * 5

    asyncio.run(both())
    assert table.execute("select from embed.worker_session").fetchall() == []


def test_a_cancelled_question_leaves_the_client_usable(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url, timeout=30) as client:
            assert len(await client.search("embed.document", "known", 1)) == 1
            with connect(url) as blocker, blocker.transaction():
                blocker.execute("lock table embed.document")
                asked = asyncio.create_task(client.search("embed.document", "known", 1))
                await asyncio.to_thread(wait_until, lambda: _waiting(url), READY, "the question")
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            assert len(await client.search("embed.document", "known", 1)) == 1

    with Worker(url) as worker:
        assert worker.wait_ready(READY)
        asyncio.run(ask())


def _waiting(url: str) -> bool:
    with connect(url) as connection:
        return bool(
            connection.execute(
                "select from pg_stat_activity where application_name = 'embedworker client'"
                " and wait_event_type = 'Lock'"
            ).fetchall()
        )


def test_a_lost_connection_is_made_again(url: str, table: Connection) -> None:
    def cut() -> None:
        table.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = 'embedworker client' and datname = current_database()"
        )

    async def ask() -> None:
        async with AsyncClient(url, timeout=30) as client:
            first = await client.query("x")
            cut()
            assert await client.query("x") == first

    with Worker(url, lanes=["questions"]) as worker, Client(url, timeout=30) as client:
        assert worker.wait_ready(READY)
        first = client.query("x")
        cut()
        assert client.query("x") == first
        client.close()
        assert client.query("x") == first
        asyncio.run(ask())


def test_without_dblink_the_client_asks_over_its_own_connection(
    server: Cluster, hash_template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    with new_database(server, hash_template) as made:
        with connect(made) as connection:
            connection.execute("drop extension dblink cascade")
            connection.execute("insert into embed.document (content) values ('text')")
        with Worker(made) as worker, Client(made, timeout=30) as client, connect(made) as c:
            assert worker.wait_ready(READY)
            first = client.query("one")
            assert len(first.to_list()) == 384
            wait_until(lambda: c.execute("select from embed.document_embedding").fetchall(), READY)
            (hit,) = client.search("embed.document", "another one")
            assert (hit.row["content"], hit.bm25) == ("text", None)

            async def ask() -> Any:
                async with AsyncClient(made, timeout=30) as asynchronous:
                    return await asynchronous.query("one")

            assert asyncio.run(ask()) == first


def test_errors_of_the_server_pass_through(url: str) -> None:
    with Client(url) as client, pytest.raises(psycopg.DatabaseError) as caught:
        client.search("article_that_is_not_there", "x")
    assert caught.value.sqlstate == "42P01"


def test_no_database_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for kind in (Client, AsyncClient, Worker):
        with pytest.raises(ConfigurationError, match="set DATABASE_URL"):
            kind()
    monkeypatch.setenv("DATABASE_URL", url)
    with Client() as client:
        assert "***" in repr(client)
    with Client("postgresql://127.0.0.1:1/none") as client, pytest.raises(ServerUnavailable):
        client.query("x")


def test_a_worker_waits_for_a_schema_that_is_missing(bare_database: str) -> None:
    with connect(bare_database, vectors=False) as connection:
        connection.execute("create extension vector")
    with Worker(bare_database) as worker:
        assert not worker.wait_ready(0.2)


def test_a_setting_that_makes_work_impossible_is_raised_at_the_end() -> None:
    with (
        pytest.raises(ConfigurationError, match="is not a PostgreSQL address"),
        Worker("mysql://x/y") as worker,
    ):
        assert not worker.wait_ready(READY)


def test_an_error_of_the_block_is_the_one_that_is_raised(url: str) -> None:
    with pytest.raises(ZeroDivisionError), Worker("mysql://x/y"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Worker(url, lanes=["questions"]):
        raise ZeroDivisionError


def test_a_model_that_hangs_does_not_end_the_application(
    url: str,
    table: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("EMBEDWORKER_TESTING_GATE", str(gate))
    table.execute("insert into article values (1, '<<hang>>')")
    chosen = load(batch_timeout=0.5, lease=1, poll_max=0.2, device="cpu")
    number = table.execute("select id from embed.source where name = 'article'").fetchone()
    assert number is not None
    run_out = f"select from embed.queue_{number[0]} where claimed_by is not null and due < now()"
    with Worker(url, chosen, lanes=["passages"]):
        try:
            wait_until(
                lambda: table.execute(run_out.encode()).fetchall(), READY, "the end of the lease"
            )
        finally:
            gate.touch()
    assert "its rows go to other workers" in caplog.text


def test_importing_is_cheap() -> None:
    code = (
        "import sys, worker; assert 'psycopg' not in sys.modules; from worker import Client;"
        "assert 'torch' not in sys.modules and 'sqlalchemy' not in sys.modules;"
        "from worker import Worker; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Werker'"):
        getattr(package, "Werker")  # noqa: B009 -- as the import statement does
