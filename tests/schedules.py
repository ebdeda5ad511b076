"""Two workers and an application as named steps, so that a test decides who is first.

A ``Stage`` is a table ``article`` with the row 1 ("old"), whose vector is of another text, two
workers by hand and the application. A schedule is a function of a stage; at its end
``stage.settle()`` works off what is left, and the vector must be that of the last text.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from oracle import Verdict, judge
from psycopg import sql
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, RETRIES, Job, claim, move, read
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.lease import register, release_rows_of
from embedworker.queue.source import Source, load_sources

LEASE = 60.0  # seconds
LOCK_TIMEOUT = 2.0  # seconds
EVERY_PRIORITY = dict.fromkeys((FRESH, *RETRIES, 20), 10)
PREFIX = "passage: "


class Hand:
    """A worker that does one step at a time, each a statement of its own."""

    def __init__(self, url: str, source: Source, fingerprint: int) -> None:
        self.connection = connect(url, lock_timeout=LOCK_TIMEOUT)
        self.connection.prepare_threshold = None
        self.id = register(self.connection, lanes=["passages"]).id
        self.source = source
        self.fingerprint = fingerprint
        self.jobs: list[Job] = []
        self.unread: list[Job] = []

    def move(self) -> int:
        return move(self.connection, self.source).rows

    def claim(self) -> list[Job]:
        """Take what is due; what is held already stays held."""
        taken, _ = claim(
            self.connection,
            self.source,
            worker=self.id,
            quotas=EVERY_PRIORITY,
            lease=LEASE,
            max_attempts=99,
        )
        self.jobs += taken
        self.unread += taken
        return taken

    def read(self) -> None:
        read(self.connection, self.unread, fingerprint=self.fingerprint)
        self.unread = []

    def complete(self, jobs: list[Job] | None = None) -> int:
        """Embed and complete these jobs, or all that were read."""
        chosen = [job for job in self.jobs if job not in self.unread] if jobs is None else jobs
        self.jobs = [job for job in self.jobs if job not in chosen]
        results = [_result(job) for job in chosen]
        return complete(
            self.connection,
            results,
            worker=self.id,
            fingerprint=self.fingerprint,
            average_length=10.0,
        )

    def drop(self) -> list[Job]:
        """Forget everything that is held, and return it."""
        jobs, self.jobs, self.unread = self.jobs, [], []
        return jobs

    def step(self) -> bool:
        """Move, claim, read and complete; False when there was nothing."""
        moved = self.move()
        jobs = self.claim()
        self.read()
        return self.complete(jobs) + moved > 0

    def close(self) -> None:
        self.connection.close()


class Stage:
    """The table, the application (``app``) and the workers ``a`` and ``b``."""

    def __init__(self, url: str) -> None:
        self.app: psycopg.Connection[Any] = connect(url)
        self.hands: list[Hand] = []
        self.app.execute("create table article (id integer primary key, content text)")
        self.app.execute(
            """
            insert into embed.fingerprint (digest, model, revision, query_prefix, passage_prefix,
                pooling, dimensions, max_tokens)
            values ('stage', 'testing:hash', '1', '', '', 'none', 384, 8192)
            on conflict (digest) do nothing
            """
        )
        self.enable()
        self.app.execute("delete from embed.sweep_request")
        self.hands = [Hand(url, self.source, self.fingerprint) for _ in "ab"]
        self.a, self.b = self.hands
        self.app.execute("insert into article values (1, 'old')")

    def enable(self) -> None:
        """Make the table searchable, by the model of the stage; workers by hand follow."""
        self.app.execute("select embed.enable('article', array['content'])")
        row = self.app.execute(
            "update embed.source_state t set fingerprint = f.id"
            " from embed.fingerprint f, embed.source s"
            " where f.digest = 'stage' and s.id = t.source and s.relation = 'article'::regclass"
            " returning f.id"
        ).fetchone()
        assert row is not None
        self.fingerprint = int(row[0])
        self.source = next(s for s in load_sources(self.app) if s.name == "article")
        for hand in self.hands:
            hand.source = self.source

    def update(self, text: str) -> None:
        self.app.execute("update article set content = %s where id = 1", [text])

    def lapse(self) -> None:
        """Let all leases end, as if their time had come."""
        self.app.execute(
            sql.SQL("update {} set due = now() where due < 'infinity'").format(
                sql.Identifier("embed", f"queue_{self.source.id}")
            )
        )

    def crash(self, hand: Hand) -> None:
        """A worker is gone with all it held; a peer frees its rows."""
        hand.drop()
        release_rows_of(self.app, [self.source], hand.id)

    def settle(self) -> Verdict:
        """Work off what is left and judge. Leases end first: whoever holds a row has gone."""
        self.lapse()
        for _ in range(20):
            if not self.b.step():
                break
        return judge(self.app, "article")

    def close(self) -> None:
        for connection in (self.app, self.a.connection, self.b.connection):
            connection.close()


@contextmanager
def stage(url: str) -> Iterator[Stage]:
    made = Stage(url)
    try:
        yield made
    finally:
        made.close()


Schedule = Callable[[Stage], None]


def update_between_claim_and_read(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.update("new")
    s.a.read()
    s.a.complete()


def update_between_read_and_complete(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    s.update("new")
    s.b.move()
    s.a.complete()


def update_moved_only_after_the_completion(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    s.update("new")
    s.a.complete()
    s.b.move()


def late_completion_after_the_lease(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    s.lapse()
    s.update("new")
    s.b.step()
    s.a.complete()


def late_completion_while_another_works(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    s.lapse()
    s.update("new")
    s.b.move()
    s.b.claim()
    s.b.read()
    s.a.complete()
    s.b.complete()


def completed_enqueued_again_and_completed_late(s: Stage) -> None:
    """The late one even holds the row again, in its newer version."""
    s.a.move()
    first = s.a.claim()
    s.a.read()
    s.lapse()
    s.b.claim()
    s.b.read()
    s.b.complete()
    s.update("new")
    s.a.move()
    s.a.claim()
    s.a.complete(first)
    s.a.read()
    s.a.complete()


def deleted_and_inserted_again(s: Stage) -> None:
    s.a.move()
    first = s.a.claim()
    s.a.read()
    s.app.execute("delete from article")
    s.b.step()
    s.app.execute("insert into article values (1, 'new')")
    s.a.move()
    s.a.claim()
    s.a.complete(first)
    s.a.read()
    s.a.complete()


def deleted_while_the_model_runs(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    s.app.execute("delete from article")
    s.a.complete()


def crashed_and_freed(s: Stage) -> None:
    s.a.move()
    s.a.claim()
    s.a.read()
    lost = list(s.a.jobs)
    s.crash(s.a)
    s.update("new")
    s.b.step()
    s.a.complete(lost)  # it was not dead after all


SCHEDULES: tuple[Schedule, ...] = (
    update_between_claim_and_read,
    update_between_read_and_complete,
    update_moved_only_after_the_completion,
    late_completion_after_the_lease,
    late_completion_while_another_works,
    completed_enqueued_again_and_completed_late,
    deleted_and_inserted_again,
    deleted_while_the_model_runs,
    crashed_and_freed,
)


def claim_over_a_change(s: Stage) -> Verdict:
    """Hold the claim of ``a`` between its snapshot and its locks, and change the row meanwhile.

    The move's transaction is the older one, or its rows were not due yet for the claim.
    """
    s.a.move()
    s.a.source = cast(Source, _GatedSource(s.a.source))
    with (
        psycopg.connect(s.app.info.dsn, password=s.app.info.password, autocommit=True) as gate,
        ThreadPoolExecutor(1) as pool,
    ):
        gate.execute("select pg_advisory_lock(77)")
        with s.b.connection.transaction():
            s.b.connection.execute("select now()")
            claimed = pool.submit(s.a.claim)
            waiting = "select 1 from pg_stat_activity where pid = %s and wait_event = 'advisory'"
            pid = s.a.connection.info.backend_pid
            wait_until(lambda: s.app.execute(waiting, [pid]).fetchone())
            s.update("new")
            s.b.move()
        gate.execute("select pg_advisory_unlock(77)")
        assert len(claimed.result()) == 1
    s.a.read()
    s.a.complete()
    return s.settle()


class _GatedSource:
    """A source whose claim waits for an advisory lock after its snapshot was taken."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def render(self, name: str, **more: sql.Composable) -> bytes:
        rendered: bytes = self._source.render(name, **more)
        if name != "queue_claim":
            return rendered
        gated = rendered.replace(
            b"with picked as materialized (",
            b"with gate as materialized (select pg_advisory_lock(77), pg_advisory_unlock(77)),\n"
            b"picked as materialized (",
            1,
        )
        return gated.replace(
            b"cross join lateral (", b"cross join gate\n    cross join lateral (", 1
        )


def completion_beside_an_open_move(s: Stage) -> float:
    """Complete a row that a mover's open transaction has locked; the seconds that takes."""
    s.a.move()
    s.a.claim()
    s.a.read()
    s.update("new")
    with s.b.connection.transaction():
        assert s.b.move() == 1
        started = time.monotonic()
        done = s.a.complete()
        took = time.monotonic() - started
    assert done == 0
    assert s.settle().good
    return took


def _result(job: Job) -> Result:
    if job.text is None:
        return Result(job)
    if job.current:
        return Result(job, untouched=True)
    vector = hash_vector(PREFIX + job.text)
    return Result(job, [EmbeddedPassage(0, len(job.text), vector)])
