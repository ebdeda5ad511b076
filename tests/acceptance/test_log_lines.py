"""What a reader of the log sees of a worker: progress, one line a trouble, and one worker."""

import logging
import re
import threading

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane
from fix_worker import Workers
from oracle import wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.errors import ModelError
from embedworker.service import pace
from embedworker.service.outages import FailureLog

PROGRESS = re.compile(
    r"shop\.article: ([\d,]+) of (about )?([\d,]+) \((\d+) %\), \d+ rows/s(, \d+ (s|min) left)?"
)


def articles(connection: Connection, rows: int, relation: str = "article") -> None:
    table = sql.Identifier(relation)
    connection.execute(
        sql.SQL("create table {} (id integer primary key, content text)").format(table)
    )
    connection.execute(
        sql.SQL("insert into {} select n, 'text ' || n from generate_series(1, {}) n").format(
            table, sql.Literal(rows)
        )
    )
    connection.execute("select embed.enable(%s::regclass, array['content'])", [relation])


def test_progress_and_the_end(
    app: Connection,
    lane: Lane,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pace, "INTERVAL", 0.0)
    articles(app, 1200)
    with caplog.at_level(logging.INFO, "embedworker"):
        assert lane.drain() == []
    said = [r.getMessage() for r in caplog.records if r.name == "embedworker.progress"]
    assert len(said) > 3
    shown = [PROGRESS.fullmatch(line) for line in said[:-1]]
    assert all(shown), said
    number = [
        (int(match[1].replace(",", "")), int(match[3].replace(",", "")), int(match[4]))
        for match in shown
        if match
    ]
    assert number == sorted(number)
    assert {
        total for (_, total, _), match in zip(number, shown, strict=True) if match and not match[2]
    } <= {1200}
    assert [share for _, _, share in number] == [100 * done // total for done, total, _ in number]
    assert re.fullmatch(
        r"shop\.article: 1,200 of (about )?1,200 \(100 %\), 1,200 embedded in \d+ (s|min)", said[-1]
    )
    assert "batch of" not in caplog.text
    fields = caplog.records[-1].__dict__["fields"]
    assert fields["table"] == "shop.article"


def test_a_short_piece_of_work_is_said_once_a_minute(
    app: Connection, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    articles(app, 3)
    with caplog.at_level(logging.INFO, "embedworker.progress"):
        lane.drain()
        for number in range(4, 8):
            app.execute("insert into article values (%s, 'more')", [number])
            lane.drain()
    (said,) = [r.getMessage() for r in caplog.records]
    assert re.fullmatch(r"shop\.article: 3 of 3 \(100 %\), 3 embedded in \d+ s", said)


@pytest.mark.parametrize("first", ["article", "embed.queue_2", "article_embedding"])
def test_disabling_waits_for_a_worker_that_locks_in_another_order(
    shop: Connection, workers: Workers, first: str
) -> None:
    """Whichever table the other session has read already: it goes on, and disable after it."""
    articles(shop, 3)
    order = [first, *{"article", "embed.queue_2", "article_embedding"} - {first}]
    with psycopg.connect(workers.url) as other, psycopg.connect(workers.url) as person:
        other.execute("set deadlock_timeout = '200ms'")
        other.execute(f"select from {order[0]}")  # type: ignore[arg-type]
        disable = threading.Thread(target=person.execute, args=("select embed.disable('article')",))
        disable.start()
        waits = "select from pg_locks where pid = %s and not granted"
        wait_until(lambda: shop.execute(waits, [person.info.backend_pid]).rowcount)
        for table in order[1:]:
            other.execute(f"select from {table}")  # type: ignore[arg-type]
        other.commit()
        disable.join(timeout=30)
        assert not disable.is_alive()
        person.commit()
    assert shop.execute("select from embed.source where name = 'article'").rowcount == 0


def test_disabling_waits_no_longer_than_lock_timeout(shop: Connection, workers: Workers) -> None:
    """While it waits, whoever writes to the table waits for it 100 ms at most."""
    articles(shop, 3)
    with psycopg.connect(workers.url) as other, psycopg.connect(workers.url) as person:
        other.execute("select from article")
        person.execute("set lock_timeout = '1500ms'")
        person.commit()
        disable = threading.Thread(
            target=_refused, args=(person, "select embed.disable('article')")
        )
        disable.start()
        waits = "select from pg_locks where pid = %s and not granted"
        wait_until(lambda: shop.execute(waits, [person.info.backend_pid]).rowcount)
        shop.execute("set lock_timeout = '1s'")
        shop.execute("update article set content = 'new' where id = 1")
        disable.join(timeout=30)
        assert not disable.is_alive()
        assert person.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        person.rollback()
        assert person.execute("show lock_timeout").fetchone() == ("1500ms",)
    assert shop.execute("select from embed.source where name = 'article'").rowcount == 1


@pytest.mark.parametrize("given", ["0", "1500ms", "90s", "3min"])
def test_disabling_leaves_lock_timeout_as_it_was(shop: Connection, given: str) -> None:
    articles(shop, 3)
    with shop.transaction():
        shop.execute(f"set local lock_timeout = '{given}'")  # type: ignore[arg-type]
        before = shop.execute("show lock_timeout").fetchone()
        shop.execute("select embed.disable('article')")
        assert shop.execute("show lock_timeout").fetchone() == before


def _refused(connection: Connection, query: str) -> None:
    with pytest.raises(psycopg.errors.LockNotAvailable):
        connection.execute(query)  # type: ignore[arg-type]


def test_disabling_a_table_at_work_is_no_trouble(shop: Connection, workers: Workers) -> None:
    notices: list[str] = []
    worker = workers.start(batch_tokens="50", log_level="info")
    with psycopg.connect(workers.url, autocommit=True) as person:
        person.add_notice_handler(lambda diagnostic: notices.append(str(diagnostic)))
        for number in range(3):
            name = f"article_{number}"
            articles(shop, 3000, name)
            table = sql.Identifier(f"{name}_embedding")
            some = sql.SQL("select from {} limit 1").format(table)
            wait_until(lambda some=some: shop.execute(some).rowcount, 60)  # type: ignore[misc]
            person.execute("select embed.disable(%s::regclass)", [name])
    articles(shop, 3)
    wait_settled(shop, "article")
    assert worker.terminate() == 0
    said = worker.output().splitlines()
    assert [line for line in said if re.search("WARN|ERROR|CRIT|Trace", line)] == []
    assert notices == []


def test_the_lanes_of_one_run_are_one_worker(shop: Connection, workers: Workers) -> None:
    worker = workers.start(both_lanes=True, up=False)
    lanes = "select lanes, pid, process from embed.worker order by lanes"
    wait_until(lambda: shop.execute(lanes).rowcount == 2, 30)
    (of_passages, of_questions) = shop.execute(lanes).fetchall()
    assert (of_passages[0], of_questions[0]) == (["passages"], ["questions"])
    assert of_passages[1] != of_questions[1] == worker.pid
    assert of_passages[2] == of_questions[2] == worker.pid
    wait_until(lambda: worker.output().count("is up") == 2)
    named = re.findall(r"worker (\S+) \((\w+), number \d+\) is up", worker.output())
    assert {name.rpartition("/")[2] for name, _ in named} == {str(worker.pid)}
    assert sorted(lane for _, lane in named) == ["passages", "questions"]


def test_a_failure_of_a_kind_is_shown_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("embedworker.test"))

    def fail(kind: type[Exception]) -> None:
        try:
            raise kind
        except Exception as error:
            failures.say("question %s has no vector", 7, error)

    with caplog.at_level(logging.DEBUG, "embedworker.test"):
        for kind in (MemoryError, MemoryError, ModelError, MemoryError):
            fail(kind)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "DEBUG", "WARNING", "DEBUG"]
