"""Any order of changes, worker steps and crashes, against a dictionary of what must come out."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from fix_database import _new_database as new_database
from fix_drain import drain_url
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import judge
from schedules import Hand, Stage

from embedworker.database.embedded.cluster import Cluster
from embedworker.queue.failure import fail, release
from embedworker.queue.sweep import Sweep
from embedworker.settings import Settings

KEYS = st.integers(1, 4)
TEXTS = st.sampled_from(["가", "나", "다", "", "  ", None, "라"])
MAX_ATTEMPTS = Settings.model_fields["max_attempts"].default
HANDS = st.sampled_from(["a", "b"])


class Machine(RuleBasedStateMachine):
    """One table, its application, and two workers whose every step is a rule of its own."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("drop table if exists article cascade")
            connection.execute("select embed._refresh(id) from embed.source")
            connection.execute("drop table if exists article_embedding")
        self.stage = Stage(self.url)
        self.rows: dict[int, str | None] = {1: "old"}
        self.enabled = True
        self.paused = False

    def hand(self, name: str) -> Hand:
        hand: Hand = getattr(self.stage, name)
        return hand

    # The application

    @rule(key=KEYS, text=TEXTS)
    def put(self, key: int, text: str | None) -> None:
        self.stage.app.execute(
            "insert into article values (%s, %s)"
            " on conflict (id) do update set content = excluded.content",
            [key, text],
        )
        self.rows[key] = text

    @rule(key=KEYS)
    def delete(self, key: int) -> None:
        self.stage.app.execute("delete from article where id = %s", [key])
        self.rows.pop(key, None)

    @rule(old=KEYS, new=KEYS)
    def change_key(self, old: int, new: int) -> None:
        if old in self.rows and new not in self.rows:
            self.stage.app.execute("update article set id = %s where id = %s", [new, old])
            self.rows[new] = self.rows.pop(old)

    @rule(text=TEXTS)
    def put_all(self, text: str | None) -> None:
        self.stage.app.execute("update article set content = %s", [text])
        self.rows = dict.fromkeys(self.rows, text)

    @rule(key=KEYS, text=TEXTS)
    def roll_back(self, key: int, text: str | None) -> None:
        with self.stage.app.transaction(force_rollback=True):
            self.stage.app.execute("delete from article where id = %s", [key])
            self.stage.app.execute("insert into article values (%s, %s)", [key, text])

    @rule()
    def truncate(self) -> None:
        self.stage.app.execute("truncate article")
        self.rows = {}

    @rule(key=KEYS, text=TEXTS)
    def change_unseen(self, key: int, text: str | None) -> None:
        """With the triggers off; whoever does that asks for a sweep."""
        self.stage.app.execute("set session_replication_role = replica")
        self.stage.app.execute("delete from article where id = %s", [key])
        self.stage.app.execute("insert into article values (%s, %s)", [key, text])
        self.stage.app.execute("set session_replication_role = origin")
        if self.enabled:
            self.stage.app.execute(
                "insert into embed.sweep_request (source, reason) values (%s, 'test')",
                [self.stage.source.id],
            )
        self.rows[key] = text

    # The administrator

    @precondition(lambda self: self.enabled)
    @rule(drop=st.booleans())
    def disable(self, drop: bool) -> None:
        """Whoever is at it finds the queue gone, and can write nothing any more."""
        self.stage.app.execute("select embed.disable('article', drop_vectors => %s)", [drop])
        self.enabled = self.paused = False
        for hand in (self.stage.a, self.stage.b):
            hand.unread = []
            if hand.jobs:
                with pytest.raises(psycopg.errors.UndefinedTable):
                    hand.complete()
            hand.drop()

    @precondition(lambda self: not self.enabled)
    @rule()
    def enable(self) -> None:
        self.stage.enable()
        self.enabled = True

    @precondition(lambda self: self.enabled)
    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        verb = "pause" if paused else "resume"
        self.stage.app.execute(f"select embed.{verb}('article')".encode())
        self.paused = paused

    # The workers

    @precondition(lambda self: self.enabled and not self.paused)
    @rule(name=HANDS)
    def move(self, name: str) -> None:
        self.hand(name).move()

    @precondition(lambda self: self.enabled and not self.paused)
    @rule(name=HANDS)
    def claim(self, name: str) -> None:
        self.hand(name).claim()

    @rule(name=HANDS)
    def read(self, name: str) -> None:
        self.hand(name).read()

    @rule(name=HANDS)
    def complete(self, name: str) -> None:
        self.hand(name).complete()

    @rule(name=HANDS)
    def fail(self, name: str) -> None:
        hand = self.hand(name)
        fail(
            hand.connection,
            [(job, "made to fail") for job in hand.drop()],
            worker=hand.id,
            max_attempts=99,
            longest_backoff=0.001,
        )

    @rule(name=HANDS)
    def hand_back(self, name: str) -> None:
        hand = self.hand(name)
        release(hand.connection, hand.drop(), worker=hand.id)

    @precondition(lambda self: self.enabled)
    @rule(name=HANDS)
    def crash(self, name: str) -> None:
        self.stage.crash(self.hand(name))

    @precondition(lambda self: self.enabled)
    @rule()
    def leases_end(self) -> None:
        self.stage.lapse()

    @precondition(lambda self: self.enabled and not self.paused)
    @rule()
    def sweep(self) -> None:
        Sweep.begin(self.stage.app, self.stage.source)
        sweep = Sweep(self.stage.app, self.stage.source, self.stage.fingerprint)
        while not sweep.done:
            sweep.page(2)

    # What must hold

    @invariant()
    def the_table_is_as_the_model(self) -> None:
        found = self.stage.app.execute("select id, content from article").fetchall()
        assert dict(found) == self.rows

    def retry_the_dead(self) -> None:
        """A text that was at hand whenever a worker died is given up by the last one, rightly."""
        dead = self.stage.app.execute("select attempts from embed.failure where dead").fetchall()
        assert all(attempts >= MAX_ATTEMPTS for (attempts,) in dead)
        if dead:
            retried = self.stage.app.execute("select embed.retry('article')").fetchone()
            assert retried == (len(dead),)
            assert drain_url(self.url) == []

    def teardown(self) -> None:
        try:
            if not self.enabled:
                self.stage.enable()
            self.stage.app.execute("select embed.resume('article')")
            self.stage.lapse()  # whoever holds rows has gone
            assert drain_url(self.url) == []
            self.retry_the_dead()
            verdict = judge(self.stage.app, "article")
            assert verdict.good, verdict
            assert verdict.rows == sum(bool(text and text.strip()) for text in self.rows.values())
        finally:
            self.stage.close()


Run = Callable[[int, int], None]


@pytest.fixture(scope="module")
def run_machine(server: Cluster, hash_template: str) -> Any:
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as url:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")

        def run(examples: int, steps: int) -> None:
            machine = type("TestMachine", (Machine,), {"url": url})
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )

        yield run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_order(run_machine: Run) -> None:
    run_machine(100, 60)
