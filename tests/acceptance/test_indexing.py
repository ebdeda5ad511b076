"""The HNSW index of a table comes by itself, after the rows, and nobody waits for it."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_database import Connection
from fix_worker import Workers
from oracle import wait_settled
from waiting import wait_until

from embedworker.database.connect import connect

INDEXES = """
select i.indisvalid
from pg_index i
join pg_class c on c.oid = i.indexrelid
join pg_am m on m.oid = c.relam
where m.amname = 'hnsw'
"""


def articles(shop: Connection, rows: int, into: str | None = None) -> None:
    shop.execute(
        "create table article (id integer primary key, content text, embedding vector(384))"
    )
    shop.execute("insert into article select n, '글 ' || n from generate_series(1, %s) n", [rows])
    shop.execute("select embed.enable('article', array['content'], into_column => %s)", [into])


@pytest.mark.parametrize("into", [None, "embedding"])
@pytest.mark.smoke
def test_it_is_built_beside_writers(shop: Connection, workers: Workers, into: str | None) -> None:
    articles(shop, 60, into)
    with psycopg.connect(workers.url) as app:
        app.execute("set transaction isolation level repeatable read")
        app.execute("select count(*) from article").fetchone()  # the build waits for its end
        workers.start(index_after_rows="50")
        wait_until(lambda: [valid for (valid,) in shop.execute(INDEXES)] == [False], 30)
        shop.execute("set lock_timeout = '1s'")
        shop.execute("insert into article values (100, '새 글')")
        shop.execute("update article set content = '다른 글' where id = 1")
        wait_settled(shop, "article")
        app.commit()
    wait_until(lambda: [valid for (valid,) in shop.execute(INDEXES)] == [True], 30)
    # Not in INDEXES: it fails for an index that is being dropped.
    ((definition,),) = shop.execute(
        "select indexdef from pg_indexes where indexdef ~ 'hnsw'"
    ).fetchall()
    assert "vector_cosine_ops" in definition
    assert ("article_embedding" if into is None else " public.article ") in definition


def test_one_that_was_left_invalid_is_built_again(shop: Connection, workers: Workers) -> None:
    """A build that was killed leaves one; it costs every write and serves no search."""
    articles(shop, 60)
    shop.execute(
        "create index broken on article_embedding using hnsw (embedding vector_cosine_ops);"
        "update pg_index set indisvalid = false where indexrelid = 'broken'::regclass"
    )
    workers.start(index_after_rows="50")
    wait_until(lambda: [valid for (valid,) in shop.execute(INDEXES)] == [True], 30)
    assert shop.execute("select to_regclass('broken')").fetchone() == (None,)


def test_run_once_builds_one_after_the_other(shop: Connection, workers: Workers) -> None:
    """It does not end with the first that it has begun; an old transaction makes that take long."""
    articles(shop, 60)
    shop.execute(
        "create table note (id integer primary key, content text);"
        "insert into note select n, 'note ' || n from generate_series(1, 60) n;"
        "select embed.enable('note', array['content'])"
    )
    assert workers.start("--once", up=False).wait(60) == 0
    shop.execute(
        "create index broken on article_embedding using hnsw (embedding vector_cosine_ops);"
        "create index broken_too on note_embedding using hnsw (embedding vector_cosine_ops);"
        "update pg_index set indisvalid = false where indexrelid in"
        " ('broken'::regclass, 'broken_too'::regclass)"
    )
    with psycopg.connect(workers.url) as app:
        app.execute("set transaction isolation level repeatable read")
        app.execute("select count(*) from article").fetchone()
        worker = workers.start("--once", up=False, index_after_rows="50")
        idle = (
            "select from pg_stat_activity where application_name like 'embedworker passages %'"
            " and state = 'idle' and state_change < now() - interval '0.5 s'"
        )
        wait_until(lambda: shop.execute(idle).fetchone() is not None, 30)
        app.commit()
    assert worker.wait(60) == 0
    assert [valid for (valid,) in shop.execute(INDEXES)] == [True, True]


def test_run_once_builds_both_indexes_of_a_table(shop: Connection, workers: Workers) -> None:
    """Without the one over words, codes of a large table were not found after `run --once`."""
    articles(shop, 60)
    built = "select indexrelid::regclass::text from pg_index where indisvalid and not indisunique"
    built += " and indrelid = 'article_embedding'::regclass order by 1"
    bounds = {"index_after_rows": "50", "words_index_after_rows": "50"}
    assert workers.start("--once", up=False, **bounds).wait(60) == 0
    number = shop.execute("select id from embed.source where name = 'article'").fetchone()
    assert number is not None
    assert [name for (name,) in shop.execute(built.encode())] == [
        f"article_embedding_{number[0]}_words",
        "article_embedding_hnsw",
    ]


@pytest.mark.parametrize("arguments", [["--once"], ["--only-passages"]])
def test_a_broken_one_of_a_small_table_is_built_again(
    shop: Connection, workers: Workers, arguments: list[str]
) -> None:
    """Somebody wanted it; and the doctor says of a broken one that a worker builds it anew."""
    articles(shop, 40)
    shop.execute(
        "create index broken on article_embedding using hnsw (embedding vector_cosine_ops);"
        "update pg_index set indisvalid = false where indexrelid = 'broken'::regclass"
    )
    workers.start(*arguments, up=False, index_after_rows="50")
    wait_until(lambda: [valid for (valid,) in shop.execute(INDEXES)] == [True], 30)


def test_one_that_its_owner_is_building_is_left_alone(shop: Connection, workers: Workers) -> None:
    """It is not valid until it is done; to drop it would wait for that, and drop a good one."""
    articles(shop, 60)
    assert workers.start("--once", up=False).wait(60) == 0
    with (
        connect(workers.url, lock_timeout=0) as owner,
        psycopg.connect(workers.url) as app,
        ThreadPoolExecutor() as beside,
    ):
        app.execute("set transaction isolation level repeatable read")
        app.execute("select count(*) from article").fetchone()
        mine = "create index concurrently mine on article_embedding"
        built = beside.submit(owner.execute, f"{mine} using hnsw (embedding vector_cosine_ops)")
        wait_until(lambda: [valid for (valid,) in shop.execute(INDEXES)] == [False], 30)
        assert workers.start("--once", up=False, index_after_rows="50").wait(60) == 0
        app.commit()
        built.result(30)
    mine = "select indisvalid from pg_index where indexrelid = 'mine'::regclass"
    assert shop.execute(mine).fetchall() == [(True,)]


def test_a_small_table_stays_without(shop: Connection, workers: Workers) -> None:
    articles(shop, 40)
    workers.start(index_after_rows="50")
    noted = "select t.index_state from embed.source_state t join embed.source s on s.id = t.source"
    wait_until(
        lambda: ("none: few rows",) in shop.execute(f"{noted} where s.name = 'article'"),
        30,
    )
    assert shop.execute(INDEXES).fetchall() == []
