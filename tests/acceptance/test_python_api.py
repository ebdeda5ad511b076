"""What ``worker`` exports: a worker in a process of the application's, and clients."""

import asyncio
import doctest
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import psycopg.conninfo
import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from waiting import wait_until

import embedworker as package
from embedworker import AsyncClient, Client, Hit, Worker
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.errors import (
    AccessDenied,
    ConfigurationError,
    DimensionMismatch,
    EmbedworkerError,
    NoWorker,
    QuestionRefused,
    ServerUnavailable,
    SourceError,
)
from embedworker.model.catalog import TESTING_MODEL
from embedworker.settings import Settings, load

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


@pytest.mark.smoke
def test_the_examples_of_the_module(url: str) -> None:
    ran = doctest.testmod(package, extraglobs={"url": url}, raise_on_error=False)
    assert ran == (0, ran.attempted)
    assert ran.attempted > 0


@pytest.mark.smoke
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


@pytest.mark.smoke
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


def _waiting(url: str) -> list[Any]:
    with connect(url) as connection:
        return connection.execute(
            "select from pg_stat_activity where application_name = 'embedworker client'"
            " and wait_event_type = 'Lock'"
        ).fetchall()


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


SECRET = "a question that nobody else may read"


@pytest.mark.parametrize(
    ("ask", "kind", "code"),
    [
        (lambda c: c.search("article_that_is_not_there", SECRET), SourceError, "42P01"),
        (lambda c: c.search("not a name", SECRET), SourceError, "42602"),
        (lambda c: c.search("embed.model", SECRET), SourceError, "EW002"),
        (lambda c: c.search("embed.document", SECRET, 0), ConfigurationError, "EW003"),
        (lambda c: c.search("embed.document", SECRET * 9999), ConfigurationError, "EW003"),
        (lambda c: c.query(SECRET, "of no such name"), ConfigurationError, "EW003"),
        (lambda c: c.search("embed.document", [1.0, 2.0]), DimensionMismatch, "EW005"),
        (lambda c: c.search("embed.document", SECRET, lexical=0), NoWorker, "EW001"),
        (lambda c: c.query(SECRET), NoWorker, "EW001"),
        (lambda c: c.similar("embed.document", 4711), ConfigurationError, "EW003"),
        (lambda c: c.search("embed.document", SECRET, "3"), ConfigurationError, None),
        (lambda c: c.search("embed.document", [0.5], rerank=3), ConfigurationError, None),
        (lambda c: c.status("of no such name"), SourceError, None),
    ],
)
def test_errors_have_a_type_and_quote_no_question(
    url: str, ask: Callable[[Client], object], kind: type[EmbedworkerError], code: str | None
) -> None:
    with Client(url, timeout=0.1) as client, pytest.raises(kind) as caught:
        ask(client)
    assert type(caught.value) is kind
    assert caught.value.sqlstate == code
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    if code != "42P01" and code != "42602":
        assert len(str(caught.value)) > 40  # what to do, too


def test_a_table_that_is_not_there_is_told_with_those_like_it(url: str, table: Connection) -> None:
    """Also to a reader, who may not read embed.source."""
    assert table.execute("select to_regclass('article')").fetchone() != (None,)
    table.execute("create role somebody login password 'x'")
    try:
        with Client(psycopg.conninfo.make_conninfo(url, user="somebody", password="x")) as client:
            for wrong in ("articel", "shop.articles"):
                with pytest.raises(SourceError, match=r"did you mean .*article") as caught:
                    client.search(wrong, SECRET)
                assert SECRET not in "".join(traceback.format_exception(caught.value))
            with pytest.raises(SourceError, match=r"can be searched, there are: .*embed\.document"):
                client.similar("qqq", 1)
    finally:
        table.execute("drop role somebody")


def test_a_question_that_the_model_cannot_embed(url: str) -> None:
    with Worker(url, lanes=["questions"]) as worker, Client(url, timeout=30) as client:
        assert worker.wait_ready(READY)
        with pytest.raises(QuestionRefused) as caught:
            client.query(f"{SECRET} <<fail>>")
    assert caught.value.sqlstate == "EW008"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_role_without_rights(url: str, table: Connection) -> None:
    table.execute("insert into article values (1, 'one')")
    assert Worker(url, lanes=["passages"]).run_once() == []
    table.execute("create role nobody_special login password 'x'")
    own = psycopg.conninfo.make_conninfo(url, user="nobody_special", password="x")
    try:
        with Client(own) as client, pytest.raises(AccessDenied) as caught:
            client.similar("article", 1)
        assert caught.value.sqlstate == "42501"
    finally:
        table.execute("drop owned by nobody_special; drop role nobody_special")


def test_by_a_vector_and_like_a_row(url: str, table: Connection) -> None:
    table.execute("insert into article values (1, 'one'), (2, 'two')")
    assert Worker(url, lanes=["passages"]).run_once() == []
    row = table.execute("select embedding from article_embedding where id = 2").fetchone()
    assert row is not None

    async def ask() -> list[Any]:
        async with AsyncClient(url) as client:
            return [
                await client.search("article", row[0], 1),
                await client.similar("article", 1),
                await client.sources(),
                [status["embedded"] for status in await client.status("article")],
            ]

    with Client(url) as client:
        by_vector = client.search("article", row[0], 1)
        assert [hit.key for hit in by_vector] == [{"id": 2}]
        assert client.search("article", row[0].to_list(), 1) == by_vector
        (like,) = client.similar("article", 1)
        assert (like.key, like.bm25, like.reranked) == ({"id": 2}, None, None)
        assert client.similar("article", by_vector[0].key)[0].key == {"id": 1}
        assert client.sources()[-1] == {
            "name": "article",
            "table": "article",
            "columns": ["body"],
            "model": TESTING_MODEL,
        }
        (status,) = client.status("article")
        assert (status["rows"], status["embedded"]) == (2, 2)
        assert {entry["name"] for entry in client.status()} == {"article", "document"}
        assert asyncio.run(ask()) == [by_vector, [like], client.sources(), [2]]


def test_a_key_of_several_columns(url: str) -> None:
    day = date(2026, 1, 2)
    with connect(url) as connection:
        connection.execute(
            "create table entry (day date, no int, body text, primary key (day, no))"
        )
        connection.execute(
            "insert into entry values ('2026-01-02', 1, 'x'), ('2026-01-02', 2, 'y')"
        )
        connection.execute("select embed.enable('entry', array['body'])")
        try:
            assert Worker(url, lanes=["passages"]).run_once() == []
            with Client(url) as client:
                for key in ((day, 1), [day, 1], {"no": 1, "day": day}):
                    assert [hit.key["no"] for hit in client.similar("entry", key)] == [2]
        finally:
            connection.execute("select embed.disable('entry', drop_vectors => true)")
            connection.execute("drop table entry")


def sessions(url: str) -> int:
    with connect(url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity"
            " where application_name = 'embedworker client' and datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_threads_ask_at_the_same_time(url: str) -> None:
    """Questions that a lock holds up are on connections of their own, as many as are allowed."""
    with ThreadPoolExecutor(5) as threads, Client(url, connections=3) as client:
        with connect(url) as blocker, blocker.transaction():
            blocker.execute("lock table embed.document")
            asked = [threads.submit(client.similar, "embed.document", 1) for _ in range(5)]
            wait_until(lambda: len(_waiting(url)) == 3, READY, "three questions")
        assert [each.result(READY) for each in asked] == [[]] * 5
        assert sessions(url) == 3
    wait_until(lambda: sessions(url) == 0, READY, "the end of the connections")


def test_tasks_ask_at_the_same_time(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url, connections=3) as client:
            with connect(url) as blocker, blocker.transaction():
                blocker.execute("lock table embed.document")
                asked = [asyncio.create_task(client.similar("embed.document", 1)) for _ in range(5)]
                await asyncio.to_thread(
                    wait_until, lambda: len(_waiting(url)) == 3, READY, "three questions"
                )
            assert await asyncio.gather(*asked) == [[]] * 5
            assert sessions(url) == 3

    asyncio.run(ask())


FORKED = """
import asyncio, os, sys
from embedworker import AsyncClient, Client

client, asynchronous = Client(sys.argv[1]), AsyncClient(sys.argv[1])

async def names():
    return [source["name"] for source in await asynchronous.sources()]

first = client.sources()
asyncio.run(names())
inherited = [pool._idle[0].pgconn.backend_pid for pool in (client._pool, asynchronous._pool)]
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert client.sources() == first
        assert asyncio.run(names()) == ["document"]
        own = [pool._idle[0].pgconn.backend_pid for pool in (client._pool, asynchronous._pool)]
        assert not set(own) & set(inherited)
        client.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.sources() == first
    assert asyncio.run(names()) == ["document"]
kept = [pool._idle[0].pgconn.backend_pid for pool in (client._pool, asynchronous._pool)]
assert kept == inherited
client.close()
asyncio.run(asynchronous.close())
"""


def test_a_child_that_was_forked_has_connections_of_its_own(url: str) -> None:
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")


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
    # Its lease is over, or a sweep has taken the row from the model.
    free = f"select from embed.queue_{number[0]} where due < now()"
    with Worker(url, chosen, lanes=["passages"]):
        try:
            wait_until(lambda: "its rows go to other workers" in caplog.text, READY)
            wait_until(lambda: table.execute(free.encode()).fetchall(), READY, "a row that is free")
        finally:
            gate.touch()


@pytest.mark.smoke
def test_importing_is_cheap() -> None:
    code = (
        "import sys, embedworker; assert 'psycopg' not in sys.modules;"
        "from embedworker import Client;"
        "assert 'torch' not in sys.modules and 'sqlalchemy' not in sys.modules;"
        "from embedworker import Worker; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Werker'"):
        getattr(package, "Werker")  # noqa: B009 -- as the import statement does
