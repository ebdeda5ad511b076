"""What a worker does, in this process and to the end, and whether every vector is then right.

app     an open autocommit connection for the part of the application; its tables go into the schema
        ``shop``, which is new for each test and unknown to the worker's search_path
drain   ``drain()`` sweeps, moves, claims, embeds and completes until nothing is due
lane    the same by one worker that goes on living
database_has  ``database_has("work_mem", "1MB")`` sets it for all sessions that come
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from threading import Event
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from psycopg import sql
from waiting import INTERVAL, wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL
from embedworker.model.testing import hash_vector
from embedworker.queue.lease import deregister, register
from embedworker.queue.source import Source, load_sources
from embedworker.service.heartbeat import Progress
from embedworker.service.indexing import Indexer
from embedworker.service.models import Models
from embedworker.service.passages import PassageLane
from embedworker.service.registry import Registry

LONGEST = 100.0  # seconds until work counts as endless; loading torch alone may take a minute

Drain = Callable[[], list[str]]


class Lane:
    """The passage lane of one worker without its threads: whatever it does, it does when told."""

    def __init__(self, url: str) -> None:
        self.url = url
        chosen = settings.load(index_after_rows=10**9, window=200)
        self.connection = connect(
            url, lock_timeout=chosen.lock_timeout, all_rows=True, writing=True
        )
        self.connection.prepare_threshold = None
        self.worker = register(self.connection, lanes=["passages"])
        self.registry = Registry(self.connection, Models(chosen, threads=1))
        self.progress = Progress()
        self.wake = Event()
        self.lane = PassageLane(
            self.connection,
            self.worker,
            self.registry,
            self.progress,
            chosen,
            Indexer(url, after_rows=10**9, memory=0),
            self.wake,
        )

    def a_minute_later(self) -> None:
        """Look at the form of the tables again, as a worker does from time to time."""
        for source in self.registry.all:
            self.registry.tables.soon(source.id)

    def close(self) -> None:
        deregister(self.connection, self.worker.id)
        self.connection.close()

    def drain(self) -> list[str]:
        """Work until nothing is due; return what stands in the way of sources, a sentence each."""
        deadline = time.monotonic() + LONGEST
        idle = 0  # twice: a table that has changed is noticed by one look and swept by the next
        while time.monotonic() < deadline:
            idle = 0 if self.lane.step() else idle + 1
            if idle > 1 and (self.lane.drained or self.lane.troubles()):
                return self.lane.troubles()
            if idle:  # the look behind the cursors may be a second away
                self.wake.wait(INTERVAL)
        raise AssertionError(f"work without end: {self.progress.embedded} texts embedded")


def drain_url(url: str) -> list[str]:
    """Drain with a worker that has just started."""
    with closing(Lane(url)) as lane:
        return lane.drain()


@pytest.fixture(scope="module")
def shared_database(server: Cluster, template: str) -> Iterator[str]:
    """URL of a database for a whole module, which embeds with the encoder of the tests."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, template) as url:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ')", [TESTING_MODEL]
            )
            connection.execute("select embed.use_model(%s)", [TESTING_MODEL])
        yield url


@pytest.fixture
def app(shared_database: str) -> Iterator[Connection]:
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute("create schema shop; set search_path = shop, public")
        try:
            yield connection
        finally:
            connection.rollback()
            connection.execute("reset role; drop schema shop cascade")
            connection.execute("select embed._refresh(id) from embed.source")


@pytest.fixture
def database_has(app: Connection) -> Iterator[Callable[[str, str], None]]:
    """``database_has("work_mem", "1MB")``: all sessions that come have it, until the test ends."""
    name = sql.Identifier(app.info.dbname)

    def alter(setting: str, value: str) -> None:
        app.execute(
            sql.SQL("alter database {} set {} = {}").format(
                name, sql.Identifier(setting), sql.Literal(value)
            )
        )

    yield alter
    app.execute(sql.SQL("alter database {} reset all").format(name))


@pytest.fixture(scope="session")
def second_server(new_cluster: Callable[..., Cluster]) -> Cluster:
    """Another server: it allows prepared transactions and logical replication."""
    cluster = new_cluster(
        fsync="off",
        synchronous_commit="off",
        max_prepared_transactions="4",
        wal_level="logical",
    )
    cluster.start()
    return cluster


@pytest.fixture
def two_phase(second_server: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a migrated database on ``second_server``, for one test."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    with psycopg.connect(second_server.url(), autocommit=True) as connection:
        connection.execute("drop database if exists two_phase with (force)")
        connection.execute("create database two_phase")
    url = second_server.url("two_phase")
    migrate(url, model=TESTING_MODEL)
    return url


@pytest.fixture(scope="module")
def _module_lane(shared_database: str) -> Iterator[Lane]:
    with closing(Lane(shared_database)) as opened:
        yield opened


@pytest.fixture
def drain(_module_lane: Lane) -> Drain:
    def drain() -> list[str]:
        _module_lane.a_minute_later()
        return _module_lane.drain()

    return drain


@pytest.fixture
def lane(shared_database: str) -> Iterator[Lane]:
    """One worker that goes on living, and so may hold what it read of a table before."""
    with closing(Lane(shared_database)) as opened:
        yield opened


def source_of(connection: Connection, relation: str, name: str | None = None) -> Source:
    """The source of a table; ``name`` where it has several: they come in any order."""
    rows = connection.execute(
        "select id from embed.source where relation = %s::regclass and name = coalesce(%s, name)",
        [relation, name],
    ).fetchall()
    assert len(rows) == 1, f"{relation} is enabled {len(rows)} times"
    (row,) = rows
    return next(source for source in load_sources(connection) if source.id == row[0])


def assert_current(
    connection: Connection, relation: str, name: str | None = None
) -> dict[tuple[str, ...], str]:
    """Fail unless every row's vector is of its text as it is now, and nothing else is left over.

    Returns the embedded texts by key, for the test to say which they must be.
    """
    source = source_of(connection, relation, name)
    texts = _texts(connection, source)
    vectors = _vectors(connection, source)
    assert vectors.keys() == texts.keys(), "vectors without a row, or rows without a vector"
    for key, passages in vectors.items():
        _check(texts[key], passages, source)
    for left, rows in _left(connection, source).items():
        assert rows == [], f"left in the {left}"
    return texts


def wait_until_done(connection: Connection, relation: str, drain: Drain) -> None:
    """Drain until nothing is left of a source that was in trouble and is tried again later."""
    source = source_of(connection, relation)
    wait_until(
        lambda: drain() == [] and not any(_left(connection, source).values()),
        what=f"the end of the work on {relation}",
    )


def _left(connection: Connection, source: Source) -> dict[str, list[Any]]:
    return {
        name: connection.execute(
            sql.SQL("select * from {}").format(sql.Identifier("embed", f"{name}_{source.id}"))
        ).fetchall()
        for name in ("inbox", "queue")
    }


def _texts(connection: Connection, source: Source) -> dict[tuple[str, ...], str]:
    assert source.rows is not None
    assert source.text is not None
    rows = connection.execute(
        sql.SQL("select {}, {} from {} s where {} is not null").format(
            _as_texts(source.qualified("s")),
            _raw(source.text),
            _raw(source.rows),
            _raw(source.text),
        )
    ).fetchall()
    return {tuple(key): text for key, text in rows}


def _vectors(connection: Connection, source: Source) -> dict[tuple[str, ...], list[Any]]:
    assert source.vectors is not None
    vectors = sql.SQL("select v.*, v.embedding::real[] as vector from {} v").format(
        _raw(source.vectors)
    )
    if source.into_column is not None:
        vectors = sql.SQL("select v.*, s.{}::real[] as vector from {} v join {} s on {}").format(
            _raw(source.into_column),
            _raw(source.vectors),
            _raw(source.rows or ""),
            _raw(
                " and ".join(
                    f"s.{row} = v.{key}"
                    for row, key in zip(source.source_keys, source.vector_keys, strict=True)
                )
            ),
        )
    found: dict[tuple[str, ...], list[Any]] = {}
    for key, *passage in connection.execute(
        sql.SQL(
            "select {}, chunk, passage_start, passage_end, vector, fingerprint, hash"
            " from ({}) v order by chunk"
        ).format(_as_texts([f"v.{key}" for key in source.vector_keys]), vectors)
    ):
        found.setdefault(tuple(key), []).append(passage)
    return found


def _check(text: str, passages: list[Any], source: Source) -> None:
    assert [chunk for chunk, *_ in passages] == list(range(len(passages)))
    assert passages[0][1] == 0
    assert passages[-1][2] == len(text)
    for _, start, end, vector, made_by, text_hash in passages:
        expected = hash_vector("passage: " + text[start:end])
        if source.storage == "halfvec":
            expected = expected.astype(np.float16).astype(np.float32)
        assert np.array_equal(np.array(vector, np.float32), expected), f"not the vector of {text!r}"
        assert made_by == source.fingerprint
        assert text_hash == hashlib.sha256(text.encode()).digest()[:16]


def _as_texts(columns: Sequence[str | None]) -> sql.SQL:
    return _raw(f"array[{', '.join(f'{column}::text' for column in columns)}]")


def _raw(text: str) -> sql.SQL:
    """SQL that the server quoted; without parameters a percent sign stands for itself."""
    return sql.SQL(text)


def captured(
    connection: Connection, relation: str, name: str | None = None
) -> list[tuple[str, ...]]:
    """Keys that the triggers have put into the inbox, sorted, as often as they are in it."""
    source = source_of(connection, relation, name)
    rows = connection.execute(
        sql.SQL("select {} from {} i").format(
            _as_texts([f"i.k{place}" for place in range(1, len(source.key_types) + 1)]),
            sql.Identifier("embed", f"inbox_{source.id}"),
        )
    ).fetchall()
    return sorted(tuple(key) for (key,) in rows)


def make_dead(connection: Connection, relation: str, name: str | None = None) -> int:
    """Let what failed be dead letters, as after the last attempt; return how many there are."""
    source = source_of(connection, relation, name)
    return connection.execute(
        sql.SQL("update {} set due = 'infinity', claimed_by = null where error is not null").format(
            sql.Identifier("embed", f"queue_{source.id}")
        )
    ).rowcount
