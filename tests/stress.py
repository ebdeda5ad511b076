"""Writers that do what applications do to one table, all at once.

The table ``article`` has the shared keys 1 to ``SHARED``, which all writers change, and keys of
each writer's own for changes of keys. Within a transaction keys are taken in ascending order: what
deadlocks or fails then is our doing.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import psycopg
from fix_database import Connection
from oracle import Verdict, judge, wait_settled

SHARED = 60
OWN = 20
TEXTS = ["가을", "겨울 바다", "산과 강", "rain", "고양이와 개", "", None, "   "]


@dataclass
class Report:
    """What the writers did, what went wrong for them, and what the table is like at the end."""

    verdict: Verdict
    done: Counter[str]
    errors: list[str]
    deadlocks: int
    lost_connections: int = 0


@dataclass
class Writers:
    """Threads with a connection each, until stopped; seeded, so that they can be had again."""

    url: str
    count: int
    seed: int
    isolation: str = "read committed"
    forgive_lost: bool = False
    """A server that is restarted takes connections along, with or without us: connect again."""

    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    lost: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for number in range(self.count):
            thread = threading.Thread(target=self._run, args=(number,), name=f"writer{number}")
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        chosen = random.Random(self.seed * 1000 + number)
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self.url, autocommit=True) as connection:
                    while not self._stopped.is_set():
                        self._transaction(connection, chosen, number)
            except psycopg.OperationalError as error:
                if not (self.forgive_lost and _is_loss(error)):
                    self.errors.append(f"{type(error).__name__}: {error}")
                    return
                self.lost += 1
                self._stopped.wait(0.05)
            except psycopg.Error as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                return

    def _transaction(self, connection: Connection, chosen: random.Random, number: int) -> None:
        with connection.transaction(force_rollback=chosen.random() < 0.1):
            connection.execute(f"set transaction isolation level {self.isolation}")
            for key in sorted(chosen.sample(range(1, SHARED + 1), chosen.randint(1, 4))):
                if chosen.random() < 0.15:
                    with connection.transaction(force_rollback=True):
                        self._change(connection, chosen, key)
                    self.done["savepoint rolled back"] += 1
                else:
                    self._change(connection, chosen, key)
            if chosen.random() < 0.2:
                self._change_key(connection, chosen, number)

    def _change(self, connection: Connection, chosen: random.Random, key: int) -> None:
        text = chosen.choice(TEXTS)
        text = text and text.strip() and f"{text} {chosen.randint(0, 10**6)}"
        what = chosen.choices(
            ["upsert", "update", "delete", "reinsert", "several"], [3, 4, 1, 1, 1]
        )[0]
        if what == "upsert":
            connection.execute(
                "insert into article values (%s, %s)"
                " on conflict (id) do update set content = excluded.content",
                [key, text],
            )
        elif what == "update":
            connection.execute("update article set content = %s where id = %s", [text, key])
        elif what == "delete":
            connection.execute("delete from article where id = %s", [key])
        elif what == "reinsert":
            connection.execute("delete from article where id = %s", [key])
            connection.execute(
                "insert into article values (%s, %s) on conflict do nothing", [key, text]
            )
        else:
            connection.execute("update article set content = content || '.' where id = %s", [key])
            connection.execute("update article set content = %s where id = %s", [text, key])
        self.done[what] += 1

    def _change_key(self, connection: Connection, chosen: random.Random, number: int) -> None:
        base = 1000 * (number + 1)
        old, new = chosen.sample(range(base, base + OWN), 2)
        for key in sorted((old, new)):
            connection.execute("select from article where id = %s for update", [key])
        connection.execute(
            "insert into article values (%s, %s) on conflict do nothing", [old, f"자리 {old}"]
        )
        connection.execute(
            "update article set id = %s where id = %s and not exists"
            " (select from article where id = %s)",
            [new, old, new],
        )
        self.done["key changed"] += 1


def make_table(connection: Connection) -> None:
    connection.execute("create table article (id integer primary key, content text)")
    connection.execute("select embed.enable('article', array['content'])")


def stress(
    url: str,
    connection: Connection,
    *,
    seconds: float,
    writers: int,
    seed: int,
    isolation: str = "read committed",
) -> Report:
    """Write for a while beside the workers that run; then let them finish, and judge."""
    make_table(connection)
    at_work = Writers(url, writers, seed, isolation)
    at_work.start()
    time.sleep(seconds)  # the length of the test, not a wait for anything
    at_work.stop()
    wait_settled(connection, "article", 60)
    return Report(judge(connection, "article"), at_work.done, at_work.errors, deadlocks(connection))


def deadlocks(connection: Connection) -> int:
    """How many the server has counted in this database."""
    row = connection.execute(
        "select deadlocks from pg_stat_database where datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _is_loss(error: psycopg.OperationalError) -> bool:
    return error.sqlstate is None or error.sqlstate.startswith(("57P", "08"))
