"""Models are loaded beside the work for tables whose model is there."""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fix_database import Connection
from oracle import judge, wait_settled
from psycopg import sql
from waiting import wait_until

import embedworker.service.models as module
from embedworker import Worker
from embedworker.errors import ModelNotFound
from embedworker.model import Encoder, open_encoder
from embedworker.model.catalog import TESTING_MODEL
from embedworker.service import question_runner
from embedworker.settings import load


class Opener:
    """Opens the encoder of the tests under any name; one that starts with "slow/" at its gate."""

    def __init__(self) -> None:
        self.opened = Counter[str]()
        self.gates = defaultdict[str, threading.Event](threading.Event)
        self.absent: set[str] = set()

    def __call__(self, name: str, **options: Any) -> Encoder:
        self.opened[name] += 1
        if name in self.absent:
            raise ModelNotFound(f"there is no {name}")
        if name.startswith("slow/"):
            self.gates[name].wait()
            # Another model, whose vectors the oracle knows all the same.
            options |= {"query_prefix": name, "passage_prefix": "passage: "}
        return open_encoder(TESTING_MODEL, **options)


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    opener = Opener()
    monkeypatch.setattr(module, "open_encoder", opener)
    yield opener
    for gate in opener.gates.values():
        gate.set()


def serve(url: str, lane: Literal["passages", "questions"] = "passages", **options: Any) -> Worker:
    return Worker(url, load(index_after_rows=10**9, **options), lanes=[lane])


def table(shop: Connection, name: str, model: str = TESTING_MODEL, rows: int = 5) -> None:
    named = sql.Identifier(name)
    shop.execute(sql.SQL("create table {} (id integer primary key, content text)").format(named))
    shop.execute(
        sql.SQL("insert into {} select n, 'text ' || n from generate_series(1, %s) n").format(
            named
        ),
        [rows],
    )
    enable(shop, name, model)


def enable(shop: Connection, name: str, model: str) -> None:
    if model != TESTING_MODEL:
        shop.execute("select embed.add_model(%s, 384)", [model])
    shop.execute("select embed.enable(%s, array['content'], model => %s)", [name, model])


def test_not_ready_before_every_model_is_there(
    shop: Connection, hash_database: str, opener: Opener
) -> None:
    """Also where there is work for the others from the first look on, and none for it."""
    table(shop, "fast")
    table(shop, "late", "slow/x")
    opener.gates["slow/x"].set()
    with serve(hash_database):
        wait_settled(shop, "fast")
        wait_settled(shop, "late")
    opener.gates["slow/x"].clear()
    shop.execute("update fast set content = content || '!'")
    with serve(hash_database) as running:
        wait_settled(shop, "fast")
        wait_until(lambda: opener.opened["slow/x"] == 2)
        assert not running.wait_ready(0.5)
        opener.gates["slow/x"].set()
        assert running.wait_ready(10)


def test_the_model_of_a_table_that_was_enabled_later_is_there_before_its_first_question(
    shop: Connection, hash_database: str, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a cut-over the first question waited 14 s for its model."""
    monkeypatch.setattr(question_runner, "LOOK", 0.1)
    table(shop, "first", "early")
    with serve(hash_database, "questions") as running:
        assert running.wait_ready(20)
        assert opener.opened["late"] == 0
        table(shop, "second", "late")
        wait_until(lambda: opener.opened["late"] == 1, 20)


def test_a_sweep_that_was_broken_off_goes_on_when_the_model_is_there(
    shop: Connection, hash_database: str, opener: Opener
) -> None:
    table(shop, "late", "slow/x", 2000)
    opener.gates["slow/x"].set()
    with serve(hash_database):
        wait_settled(shop, "late", 60)
    opener.gates["slow/x"].clear()
    with shop.transaction():
        shop.execute("set local session_replication_role = replica")
        shop.execute("update late set content = content || '!'")
    shop.execute("update embed.sweep_state set phase = 'rows', cursor = null, finished_at = null")
    with serve(hash_database, poll_max=60):
        wait_until(lambda: opener.opened["slow/x"] == 2)
        opener.gates["slow/x"].set()
        wait_until(lambda: judge(shop, "late").good, 30)


def test_a_model_that_nothing_uses_any_more_is_not_loaded_again(
    shop: Connection, hash_database: str, opener: Opener
) -> None:
    table(shop, "fast")
    table(shop, "late", "slow/x")
    with serve(hash_database) as running:
        wait_until(lambda: opener.opened["slow/x"] == 1)
        for model in ("slow/y", "slow/z"):
            opener.gates[model].set()
            enable(shop, "late", model)
            wait_settled(shop, "late")
        assert running.wait_ready(10), "it waits for nothing that is used"
        assert opener.opened["slow/x"] == 1
        opener.gates["slow/x"].set()
        wait_until(lambda: not any(t.name == "load slow/x" for t in threading.enumerate()))
        opener.gates["slow/v"].set()
        enable(shop, "late", "slow/v")
        wait_settled(shop, "late")
        assert opener.opened["slow/x"] == 1


def test_a_model_that_cannot_be_had_is_said_once_where_no_row_needs_it(
    shop: Connection,
    hash_database: str,
    opener: Opener,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing to do for a source does not mean that its trouble is over."""
    monkeypatch.setattr(logging.getLogger("embedworker"), "propagate", True)
    caplog.set_level(logging.INFO, "embedworker")
    table(shop, "late", "slow/x")
    shop.execute("create table later (id integer primary key, content text)")
    shop.execute("select embed.enable('later', array['content'], model => 'slow/x')")
    opener.gates["slow/x"].set()
    with serve(hash_database):
        wait_settled(shop, "late")
        wait_settled(shop, "later")
    opener.absent.add("slow/x")
    caplog.clear()
    error = "select error from embed.status where source = 'late'::regclass"
    with serve(hash_database):
        wait_until(lambda: opener.opened["slow/x"] >= 5, 20)
        assert "there is no slow/x" in str(shop.execute(error).fetchone())
        said = [message for message in caplog.messages if "again" in message]
        assert len(said) == 1, said  # of the model, and not of each of its tables
        opener.absent.clear()
        wait_until(lambda: shop.execute(error).fetchone() == (None,), 30)
    assert len([m for m in caplog.messages if "works again" in m]) == 1
