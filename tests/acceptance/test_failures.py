"""Texts and models that fail: only they are lost, and nobody has to look for them."""

import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_database import Connection
from fix_worker import ENVIRONMENT, Workers, failpoint, wait_claimed, wait_reached
from hub_server import hub
from oracle import failures, inbox_of, judge, queue_of, wait_settled
from psycopg import sql
from waiting import wait_until

from embedworker.database.loopback import set_up_loopback

QUICK = {"max_attempts": "2", "backoff_max": "0.1"}


def articles(shop: Connection, *texts: str) -> None:
    shop.execute("create table article (id integer primary key, content text)")
    shop.cursor().executemany("insert into article values (%s, %s)", list(enumerate(texts, 1)))
    shop.execute("select embed.enable('article', array['content'])")


def is_dead(shop: Connection, *keys: int, relation: str = "article") -> Callable[[], bool]:
    """A condition: exactly these rows are dead letters."""
    query = sql.SQL(
        "select coalesce(array_agg(k1 order by k1), '{{}}') from {} where due = 'infinity'"
    ).format(queue_of(shop, relation))
    return lambda: shop.execute(query).fetchone() == (list(keys),)


@pytest.mark.smoke
def test_one_failing_text_among_others(shop: Connection, workers: Workers) -> None:
    articles(shop, *[f"글 {n} {'<<fail>>' if n == 37 else ''}" for n in range(1, 101)])
    workers.start(**QUICK)
    wait_until(is_dead(shop, 37), 20)
    wait_settled(shop, "article", dead=1)
    verdict = judge(shop, "article")
    assert (verdict.missing, verdict.wrong, verdict.dead) == (1, 0, 1)
    failure = shop.execute("select key, attempts, error, dead from embed.failure").fetchall()
    assert len(failure) == 1
    assert failure[0][1:] == (2, failure[0][2], True)
    assert "<<fail>>" in failure[0][2]


def test_a_text_whose_vector_has_no_direction(shop: Connection, workers: Workers) -> None:
    """NaN from the model: the row fails with the reason, and no vector is written."""
    articles(shop, "좋은 글", "<<nan>>", "다른 글")
    workers.start(**QUICK)
    wait_until(is_dead(shop, 2), 20)
    wait_settled(shop, "article", dead=1)
    assert shop.execute("select id from article_embedding order by id").fetchall() == [(1,), (3,)]
    ((_, _, error, _),) = failures(shop, "article")
    assert "no direction (NaN" in error


@pytest.mark.smoke
def test_back_off_grows_until_a_row_is_dead(shop: Connection, workers: Workers) -> None:
    articles(shop, "<<fail>>")
    worker = workers.start(max_attempts="4", backoff_max="300")
    pauses: list[float] = []
    query = sql.SQL(
        "select attempts, extract(epoch from due - now()) from {}"
        " where error is not null and claimed_by is null"
    ).format(queue_of(shop, "article"))
    for attempt in (1, 2, 3):
        row = wait_until(
            lambda attempt=attempt: next(  # type: ignore[misc]
                (r for r in shop.execute(query).fetchall() if r[0] == attempt), None
            )
        )
        pauses.append(float(row[1]))
        shop.execute(
            sql.SQL("update {} set due = now() where claimed_by is null").format(
                queue_of(shop, "article")
            )
        )
    # Between half of 2^n seconds and all of it.
    for attempt, pause in enumerate(pauses, 1):
        assert 2**attempt / 2 - 0.5 <= pause <= 2**attempt, pauses
    wait_until(is_dead(shop, 1))
    lines = [line for line in worker.output().splitlines() if "WARNING" in line or "ERROR" in line]
    assert len(lines) <= 4, lines  # one an attempt


def test_a_dead_row_is_revived_by_another_text(shop: Connection, workers: Workers) -> None:
    articles(shop, "<<fail>>", "좋은 글")
    workers.start(**QUICK)
    wait_until(is_dead(shop, 1), 20)
    shop.execute("update article set content = '이제 괜찮은 글' where id = 1")
    wait_settled(shop, "article")
    assert judge(shop, "article").good


@pytest.mark.smoke
def test_a_dead_row_is_revived_by_hand(shop: Connection, workers: Workers) -> None:
    articles(shop, "<<fail>>", "좋은 글")
    worker = workers.start(**QUICK)
    wait_until(is_dead(shop, 1), 20)
    # Mended without the triggers noticing: only embed.retry makes a worker look at it again.
    shop.execute("set session_replication_role = replica")
    shop.execute("update article set content = '이제 괜찮은 글' where id = 1")
    shop.execute("set session_replication_role = origin")
    assert shop.execute("select embed.retry('article')").fetchone() == (1,)
    wait_settled(shop, "article")
    assert judge(shop, "article").good, worker


def test_a_dead_row_that_is_deleted(shop: Connection, workers: Workers) -> None:
    articles(shop, "<<fail>>", "<<fail>> 둘", "좋은 글")
    workers.start(**QUICK)
    wait_until(is_dead(shop, 1, 2), 20)
    shop.execute("delete from article where id = 1")
    wait_until(is_dead(shop, 2))
    shop.execute("truncate article")
    wait_settled(shop, "article")
    assert shop.execute("select count(*) from embed.failure").fetchone() == (0,)


def test_no_old_vector_is_left_for_a_text_that_fails(shop: Connection, workers: Workers) -> None:
    articles(shop, "좋은 글", "다른 글")
    shop.execute("create table note (id integer primary key, content text, embedding vector(384))")
    shop.execute("insert into note values (1, '좋은 쪽지')")
    shop.execute("select embed.enable('note', array['content'], into_column => 'embedding')")
    workers.start(**QUICK)
    wait_settled(shop, "article")
    wait_settled(shop, "note")
    shop.execute("update article set content = '<<fail>>' where id = 1")
    shop.execute("update note set content = '<<fail>>' where id = 1")
    wait_until(is_dead(shop, 1), 20)
    wait_until(is_dead(shop, 1, relation="note"), 20)
    assert shop.execute("select id from article_embedding").fetchall() == [(2,)]
    assert shop.execute("select embedding from note").fetchall() == [(None,)]


def test_a_text_that_kills_the_process(shop: Connection, workers: Workers) -> None:
    """The supervisor starts it again; the neighbours are embedded, one row is dead."""
    articles(shop, *[f"글 {n} {'<<crash>>' if n == 101 else ''}" for n in range(1, 201)])
    worker = workers.start(both_lanes=True, up=False)
    wait_until(is_dead(shop, 101), 90)
    wait_settled(shop, "article", dead=1)
    verdict = judge(shop, "article")
    assert (verdict.missing, verdict.wrong, verdict.dead) == (1, 0, 1)
    ((_, attempts, error, dead),) = failures(shop, "article")
    assert (attempts, dead) == (5, True)
    assert "died 5 times" in error
    assert worker.terminate() == 0


def test_texts_that_need_memory(shop: Connection, workers: Workers) -> None:
    articles(shop, *[f"글 {n} {'<<oom>>' if n % 10 == 0 else ''}" for n in range(1, 101)])
    worker = workers.start(log_level="debug", **QUICK)
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert "MemoryError" in worker.output()


@pytest.mark.smoke
def test_a_model_that_is_missing_stops_nobody_else(shop: Connection, workers: Workers) -> None:
    articles(shop, "좋은 글")
    shop.execute("select embed.add_model('nowhere/at-all', 384)")
    shop.execute("create table other (id integer primary key, content text)")
    shop.execute("insert into other values (1, '모형 없는 글')")
    shop.execute("select embed.enable('other', array['content'], model => 'nowhere/at-all')")
    worker = workers.start(offline="1")
    wait_settled(shop, "article")
    shop.execute("insert into article values (2, '새 글')")
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    query = "select error from embed.status where source = 'other'::regclass"
    wait_until(lambda: "nowhere/at-all" in str(shop.execute(query).fetchone()))
    lines = [line for line in worker.output().splitlines() if "WARNING" in line]
    assert len(lines) <= 4, lines  # once for the model, once for the source; no flood
    assert worker.terminate() == 0


def slow(shop: Connection, name: str, dimensions: int = 384) -> None:
    """A table with a row, whose model a hub is slow to give."""
    shop.execute("select embed.add_model(%s, %s)", [f"slow/{name}", dimensions])
    table = sql.Identifier(name)
    shop.execute(sql.SQL("create table {} (id integer primary key, content text)").format(table))
    shop.execute(sql.SQL("insert into {} values (1, '글')").format(table))
    shop.execute("select embed.enable(%s, array['content'], model => %s)", [name, f"slow/{name}"])


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Have workers that are started next ask a hub, with a cache that is empty."""

    def to(address: str) -> None:
        monkeypatch.delitem(ENVIRONMENT, "HF_HUB_OFFLINE")
        monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", address)

    return to


def test_questions_do_not_wait_for_a_model_of_others(
    shop: Connection, workers: Workers, online: Callable[[str], None]
) -> None:
    articles(shop, "글")
    for name in ("one", "two", "three", "four", "five"):
        slow(shop, name)
    set_up_loopback(shop)
    with hub({}, gate=threading.Event()) as (address, asked):
        online(address)
        worker = workers.start("--only-queries")
        wait_until(lambda: len({p for p in asked if "slow/" in p}) == 5, 60, "five downloads")
        (found,) = shop.execute("select embed.query('글')").fetchall()
        assert found is not None
        assert "slow/" not in worker.output()  # none had been given up meanwhile
    assert worker.terminate(60) == 0


def test_rows_do_not_wait_for_a_model_of_others(
    shop: Connection,
    workers: Workers,
    online: Callable[[str], None],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """Those that do are found when it is there, also where a sweep was to find them."""
    slow(shop, "absent")
    slow(shop, "late", 32)
    shop.execute("insert into late select n, 'before' from generate_series(2, 300) n")
    articles(shop, "글")
    gate = threading.Event()
    with hub({"slow/late": tiny_model}, gate=gate) as (address, asked):
        online(address)
        worker = workers.start(cache_dir=str(tmp_path / "cache"))
        wait_until(lambda: len({p for p in asked if "slow/" in p}) == 2, 60, "two downloads")
        wait_settled(shop, "article")
        shop.execute("insert into article values (2, '새 글')")
        wait_settled(shop, "article")
        assert "slow/" not in worker.output()  # none had been given up meanwhile
        shop.execute("insert into late values (301, 'meanwhile')")
        gate.set()
        wait_settled(shop, "late", 100)
        late = "select count(*) from late_embedding where embedding is not null"
        assert shop.execute(late).fetchone() == (301,)
        absent = "select error from embed.status where source = 'absent'::regclass"
        wait_until(lambda: "slow/absent" in str(shop.execute(absent).fetchone()), 100)
        shop.execute("insert into article values (3, '다른 글')")
        wait_settled(shop, "article")
        assert judge(shop, "article").good
    assert worker.terminate(60) == 0


def test_a_model_that_hangs(shop: Connection, workers: Workers, gate: Path) -> None:
    """The process is ended and started again; the rest is embedded beside the text that hangs."""
    articles(shop, "좋은 글", "<<hang>>", "다른 글")
    worker = workers.start(
        both_lanes=True, up=False, batch_timeout="0.5", testing_gate=str(gate), max_attempts="4"
    )
    wait_until(is_dead(shop, 2), 60)
    wait_settled(shop, "article", dead=1)
    verdict = judge(shop, "article")
    assert (verdict.missing, verdict.wrong) == (1, 0)
    assert "EMBEDWORKER_BATCH_TIMEOUT" in worker.output()
    assert worker.terminate() == 0


def test_new_rows_are_not_behind_a_backlog_of_retries(shop: Connection, workers: Workers) -> None:
    articles(shop, *["<<fail>>"] * 1000)
    worker = workers.start(max_attempts="99")
    begun = sql.SQL("select count(*) from {} where attempts > 0").format(queue_of(shop, "article"))
    wait_until(lambda: shop.execute(begun).fetchone() == (1000,), 80)
    # Not --once: on a slow machine the first are due again before the last were tried, for minutes.
    assert worker.terminate() == 0, worker
    once = "update {} set due = now(), attempts = 1, priority = 11"
    shop.execute(sql.SQL(once).format(queue_of(shop, "article")))
    # Each failing text is two calls of 0.01 s, so that all of them take 20 s.
    workers.start(testing_delay="0.01", max_attempts="99", backoff_max="300")
    tried = sql.SQL("select count(*) from {} where attempts > 1").format(queue_of(shop, "article"))
    wait_until(lambda: (shop.execute(tried).fetchone() or (0,))[0] > 0)
    shop.execute("insert into article values (5000, '새 글')")
    found = "select 1 from article_embedding where id = 5000"
    wait_until(lambda: shop.execute(found).fetchone(), 8)
    behind = shop.execute(
        sql.SQL("select count(*) from {} where attempts < 2").format(queue_of(shop, "article"))
    ).fetchone()
    assert behind is not None
    assert behind[0] > 100, "the backlog was over before it could be in the way"


def test_a_row_that_its_own_table_refuses(shop: Connection, workers: Workers) -> None:
    """With the vector in the table, a trigger of the application can refuse the worker's write."""
    shop.execute(
        """
        create table note (id integer primary key, content text, embedding vector(384));
        insert into note select n, '쪽지 ' || n from generate_series(1, 50) n;
        create function refuse() returns trigger language plpgsql as $$
        begin
            if new.id = 17 then
                raise exception 'this row is frozen';
            end if;
            return new;
        end $$;
        create trigger refuse before update on note for each row execute function refuse();
        select embed.enable('note', array['content'], into_column => 'embedding')
        """
    )
    workers.start(**QUICK)
    wait_until(
        lambda: (
            shop.execute("select count(*) from note where embedding is not null").fetchone()
            == (49,)
        )
    )
    wait_until(lambda: "frozen" in str(failures(shop, "note")))


def test_a_table_that_refuses_every_vector(shop: Connection, workers: Workers) -> None:
    """Nothing of the rows' own: they wait, untried, and the log says so once, not all the time."""
    articles(shop, "하나", "둘")
    shop.execute("create table other (id integer primary key, content text)")
    shop.execute("select embed.enable('other', array['content'])")
    shop.execute("alter table article_embedding add column more integer not null")
    worker = workers.start(**QUICK)
    error = "select error from embed.status where source = 'article'::regclass"
    wait_until(lambda: "more" in str(shop.execute(error).fetchone()))
    for number in range(5):
        shop.execute("insert into other values (%s, '다른 글')", [number])
        wait_settled(shop, "other")
    lines = [line for line in worker.output().splitlines() if "article" in line]
    assert len(lines) < 20, lines
    shop.execute("alter table article_embedding drop column more")
    wait_settled(shop, "article", timeout=40)
    assert judge(shop, "article").good
    wait_until(lambda: shop.execute(error).fetchone() == (None,))


def test_rows_that_could_not_be_handed_back_at_once(
    shop: Connection, workers: Workers, gate: Path, hash_database: str
) -> None:
    """Somebody holds the queue when a worker hands its rows back.

    The worker goes on with other work, and extends the lease of all that it holds. A row that it
    had forgotten would wait for as long as there is work. A change waited a minute beside a vacuum.
    """
    articles(shop, "먼저 있던 글")
    shop.execute("create table busy (id integer primary key, content text)")
    shop.execute("select embed.enable('busy', array['content'])")
    worker = workers.start(testing_gate=str(gate), lock_timeout="0.2")
    wait_settled(shop, "article")
    wait_settled(shop, "busy")
    shop.execute("insert into article values (2, '<<hang>>')")
    wait_claimed(shop, "article")

    with psycopg.connect(hash_database) as holder:
        holder.execute(
            sql.SQL("lock table {} in access exclusive mode").format(queue_of(shop, "article"))
        )
        gate.touch()
        waiting = (
            "select from pg_stat_activity where datname = current_database()"
            " and wait_event_type = 'Lock' and query ~ 'j [(]seq, priority[)]'"
        )
        # A write meets the lock first, or a look for work does: both end with rows handed back.
        wait_until(
            lambda: shop.execute(waiting).fetchone() is not None,
            20,
            "a worker that hands rows back",
        )
        shop.execute("insert into busy values (1, '다른 일')")
        wait_settled(shop, "busy")
    number = 1

    def work_and_look() -> bool:
        nonlocal number
        number += 1
        shop.execute("insert into busy values (%s, '다른 일')", [number])
        wait_settled(shop, "busy")
        return shop.execute("select from article_embedding where id = 2").fetchone() is not None

    wait_until(work_and_look, 15, "the vector of a row that was not handed back")
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert "forgotten" not in worker.output(), "they are known, and their attempts given back"


def test_keys_that_can_no_longer_be_read(shop: Connection, workers: Workers, gate: Path) -> None:
    """A key's value gets another name while a worker holds the row: that row waits, and no other.

    It could not be handed back by the name that was read either, and the lane began anew.
    """
    shop.execute("create type kind as enum ('one', 'two')")
    shop.execute("create table broken (id kind primary key, content text)")
    shop.execute("insert into broken values ('one', '하나'), ('two', '둘')")
    shop.execute("select embed.enable('broken', array['content'])")
    worker = workers.start(**failpoint("after-claim", gate))
    wait_reached(gate)
    shop.execute("alter type kind rename value 'one' to 'first'")
    gate.touch()
    articles(shop, "다른 글")
    wait_settled(shop, "article")
    wait_settled(shop, "broken", timeout=60)
    assert judge(shop, "broken").good, "nothing of it is dead: no attempt was counted"
    assert "InvalidTextRepresentation" in worker.output()
    assert "lane" not in worker.output()


def test_a_row_that_is_held_and_forgotten(shop: Connection, workers: Workers) -> None:
    """Whatever the reason: a worker with nothing at hand holds nothing."""
    articles(shop, "먼저 있던 글")
    worker = workers.start(lease="3")
    wait_settled(shop, "article")
    shop.execute("create table busy (id integer primary key, content text)")
    shop.execute("select embed.enable('busy', array['content'])")
    with shop.transaction():
        shop.execute("insert into article values (2, '잊힌 글')")
        shop.execute(sql.SQL("delete from {}").format(inbox_of(shop, "article")))
        shop.execute(
            sql.SQL(
                "insert into {} (k1, seq, due, priority, since, attempts, claimed_by)"
                " select 2, nextval('embed.seq'), now() + interval '1 h', 11, now(), 1, w.id"
                " from embed.worker w"
            ).format(queue_of(shop, "article"))
        )
    wait_until(
        lambda: shop.execute("select 1 from article_embedding where id = 2").fetchone(),
        15,
        "the vector of a forgotten row",
    )
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert "1 rows were held and forgotten" in worker.output()
