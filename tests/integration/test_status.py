"""The views embed.status, embed.failure and embed.worker in every state a source can be in."""

import re
from contextlib import closing
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter
from psycopg import sql

from embedworker.service.source_errors import LOCKED

COUNTS = ("rows", "embedded", "pending", "stale", "dead", "removing")


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """The table article of four embedded rows and one without text."""
    connection.execute(
        """
        create table article (id bigint primary key, title text);
        insert into article values (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, '  ');
        select embed.enable('article', array['title']);
        """
    )
    vectors.embed("article")
    return connection


def status(
    connection: Connection, name: str = "article", view: str = "embed.status"
) -> dict[str, Any]:
    """One line of the view. No worker has counted here, so a small table is counted at once."""
    cursor = connection.execute(f"select * from {view} where name = %s".encode(), [name])
    names = [column.name for column in cursor.description or ()]
    row = cursor.fetchone()
    assert row is not None
    return dict(zip(names, row, strict=True))


def counts(connection: Connection, name: str = "article") -> tuple[int, ...]:
    line = status(connection, name)
    assert line["rows"] == line["embedded"] + line["pending"] + line["dead"]
    return tuple(line[column] for column in COUNTS)


def test_ready(article: Connection, vectors: VectorWriter) -> None:
    with vectors.worker():
        line = status(article)
    assert tuple(line[column] for column in COUNTS) == (4, 4, 0, 0, 0, 0)
    assert line["state"] == "ready"
    assert line["coverage"] == 1
    assert line["error"] is None
    assert line["oldest_wait"] is None
    assert line["eta"].total_seconds() == 0
    assert 0 < line["rows_per_second"] <= 4


def test_nobody_works(article: Connection, vectors: VectorWriter) -> None:
    assert status(article)["state"] == "no worker"
    with vectors.worker(lanes=["queries"]):
        assert status(article)["state"] == "no worker"


def test_never_embedded(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article (id bigint primary key, title text);
        insert into article values (1, 'one');
        select embed.enable('article', array['title']);
        """
    )
    with vectors.worker():
        line = status(connection)
    assert tuple(line[column] for column in COUNTS) == (1, 0, 1, 0, 0, 0)
    assert (line["state"], line["coverage"], line["rows_per_second"]) == ("embedding", 0, 0)
    assert line["eta"] is None
    assert line["oldest_wait"] is not None, "the sweep that will find the rows is what waits"


def test_nothing_waits_in_an_empty_table(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        "create table article (id bigint primary key, title text);"
        "select embed.enable('article', array['title'])"
    )
    with vectors.worker():
        line = status(connection)
    assert tuple(line[column] for column in COUNTS) == (0, 0, 0, 0, 0, 0)
    assert (line["state"], line["coverage"], line["oldest_wait"]) == ("ready", 1, None)


def test_a_changed_row_is_stale_until_embedded_anew(
    article: Connection, vectors: VectorWriter
) -> None:
    article.execute("update article set title = 'uno' where id = 1")
    with vectors.worker():
        line = status(article)
    assert tuple(line[column] for column in COUNTS) == (4, 3, 1, 1, 0, 0)
    assert (line["state"], line["coverage"]) == ("embedding", pytest.approx(0.75))
    assert line["oldest_wait"].total_seconds() >= 0
    assert line["eta"].total_seconds() > 0
    vectors.embed("article")
    assert counts(article) == (4, 4, 0, 0, 0, 0)


def test_a_claimed_row_is_pending(article: Connection, vectors: VectorWriter) -> None:
    vectors.enqueue("article", [1], claimed_by=1)
    assert counts(article) == (4, 3, 1, 1, 0, 0)


def test_a_new_row_is_pending_and_not_stale(article: Connection) -> None:
    article.execute("insert into article values (6, 'six'), (7, ''), (8, null)")
    assert counts(article) == (5, 4, 1, 0, 0, 0)


def test_a_deleted_or_emptied_row_is_on_its_way_out(article: Connection) -> None:
    article.execute("delete from article where id = 1; update article set title = '' where id = 2")
    assert counts(article) == (2, 2, 0, 0, 0, 2)
    assert status(article)["coverage"] == 1


def test_dead_rows_keep_coverage_below_one(article: Connection, vectors: VectorWriter) -> None:
    vectors.forget("article", [1])
    vectors.enqueue("article", [1], due="infinity", attempts=8, error="boom")
    with vectors.worker():
        line = status(article)
    assert tuple(line[column] for column in COUNTS) == (4, 3, 0, 0, 1, 0)
    assert (line["state"], line["coverage"]) == ("incomplete", pytest.approx(0.75))
    assert line["oldest_wait"] is None
    article.execute("update article set title = 'uno' where id = 1")
    assert counts(article) == (4, 3, 1, 0, 0, 0), "a change of its text revives it"


def test_coverage_is_never_rounded_up_to_one(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article (id bigint primary key, title text);
        select embed.enable('article', array['title']);
        insert into article select i, 'x' from generate_series(1, 30000) i;
        """
    )
    fingerprint = vectors.fingerprint()
    vectors.activate("article", fingerprint)
    vectors.drain("article")
    connection.execute(
        """
        insert into article_embedding
            (id, passage_start, passage_end, embedding, fingerprint, hash, checksum, seq)
        select i, 0, 1, array_fill(1, array[384])::vector, %s, '', '', 0
        from generate_series(1, 29999) i
        """,
        [fingerprint],
    )
    line = status(connection, view="embed.status_exact()")
    assert (line["rows"], line["pending"]) == (30000, 1)
    assert line["coverage"] == pytest.approx(0.9999)


def test_another_model_makes_every_row_stale(article: Connection, vectors: VectorWriter) -> None:
    vectors.activate("article", vectors.fingerprint("2"))
    assert counts(article) == (4, 0, 4, 4, 0, 0)


def test_paused(article: Connection, vectors: VectorWriter) -> None:
    article.execute("select embed.pause('article')")
    with vectors.worker():
        line = status(article)
    assert (line["state"], line["paused"]) == ("paused", True)


def test_a_worker_that_embeds_nothing_is_called_stalled(
    article: Connection, vectors: VectorWriter
) -> None:
    article.execute("update article set title = 'uno' where id = 1")
    source = vectors.source("article")["id"]
    article.execute(f"update embed.inbox_{source} set at = now() - interval '10 min'".encode())
    with vectors.worker():
        assert status(article)["state"] == "embedding", "four rows a minute is not nothing"
        article.execute("update article_embedding set embedded_at = now() - interval '1 hour'")
        assert status(article)["state"] == "stalled"


def test_what_the_worker_says(article: Connection, vectors: VectorWriter) -> None:
    article.execute(
        "update embed.source_state set error = 'model not found' where source = %s",
        [vectors.source("article")["id"]],
    )
    with vectors.worker():
        line = status(article)
    assert (line["state"], line["error"]) == ("error", "model not found")


def test_rows_in_parts_and_rows_that_were_cut(article: Connection, vectors: VectorWriter) -> None:
    assert (status(article)["truncated"], status(article)["split"]) == (0, 0)
    article.execute("update article set title = 'one and one more' where id in (1, 2)")
    vectors.embed("article", words_a_passage=1)
    article.execute(
        "update article_embedding set truncated = true where id = 1 and chunk > 1 or id = 3"
    )
    assert (status(article)["truncated"], status(article)["split"]) == (2, 2)
    article.execute("delete from article where id = 1")
    assert (status(article)["truncated"], status(article)["split"]) == (1, 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("alter table article drop title", "an enabled column of .*article was dropped"),
        ("alter table article drop id", "an enabled column of .*article was dropped"),
        ("drop table article", "the table of the source 'article' was dropped"),
        ("drop table article_embedding", "the vector table of .*article was dropped"),
        ("alter table article alter title type int using 1", ""),
    ],
)
def test_a_damaged_source_says_why_and_hides_no_other(
    article: Connection, vectors: VectorWriter, damage: str, words: str
) -> None:
    article.execute(
        "create table other (id int primary key, t text); insert into other values (1, 'x')"
    )
    article.execute("select embed.enable('other', array['t'])")
    vectors.embed("other")
    article.execute(damage.encode())
    line = status(article)
    if words:
        assert line["state"] == "error"
        assert line["rows"] is None
        assert line["coverage"] == 0
        assert re.search(words, line["error"])
    else:
        assert line["error"] is None, "a number has a text, too"
    assert counts(article, "other") == (1, 1, 0, 0, 0, 0)
    assert article.execute("select count(*) from embed.failure").fetchone() == (0,)


def test_the_index(article: Connection) -> None:
    assert status(article)["index_state"] == "none"
    article.execute("create index i on article_embedding using hnsw (embedding vector_cosine_ops)")
    assert status(article)["index_state"] == "valid"
    article.execute("update pg_index set indisvalid = false where indexrelid = 'i'::regclass")
    assert status(article)["index_state"] == "invalid"


def test_vectors_in_a_column_partitions_and_composite_keys(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute(
        """
        create table article (id int primary key, title text, v vector(384));
        insert into article values (1, 'one'), (2, 'two');
        select embed.enable('article', array['title'], into_column => 'v');
        create table "Ev ent" (
            "Id" int, "sel""ect" text, title text, primary key ("Id", "sel""ect")
        ) partition by list ("sel""ect");
        create table event_a partition of "Ev ent" for values in ('a');
        create table event_b partition of "Ev ent" for values in ('b');
        insert into "Ev ent" values (1, 'a', 'one'), (1, 'b', 'two'), (2, 'b', null);
        select embed.enable('"Ev ent"', array['title']);
        """
    )
    vectors.embed("article")
    vectors.embed('"Ev ent"')
    assert counts(connection) == (2, 2, 0, 0, 0, 0)
    assert counts(connection, "Ev ent") == (2, 2, 0, 0, 0, 0)
    connection.execute("update article set v = null where id = 1")
    connection.execute("delete from event_a")
    assert counts(connection) == (2, 1, 1, 1, 0, 0)
    assert counts(connection, "Ev ent") == (1, 1, 0, 0, 0, 1)


def test_the_filter_decides_what_counts(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article (id int primary key, title text, public boolean);
        insert into article values (1, 'one', true), (2, 'two', false);
        select embed.enable('article', array['title'], filter => 'public');
        """
    )
    vectors.embed("article")
    assert counts(connection) == (1, 1, 0, 0, 0, 0)
    connection.execute("update article set public = not public")
    assert counts(connection) == (1, 0, 1, 0, 0, 1)


def test_failures(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table article ("Id" bigint, lang text, title text, primary key ("Id", lang));
        select embed.enable('article', array['title']);
        """
    )
    big = 2**53 + 1
    vectors.enqueue("article", [big, "ko"], due="infinity", attempts=8, error="poison")
    vectors.enqueue("article", [2, "en"], attempts=1, error="out of memory")
    vectors.enqueue("article", [3, "en"], attempts=1)
    rows = connection.execute(
        """
        select source::text, name, key ->> 'Id', key ->> 'lang', attempts, error, dead,
            retry_at is null, since <= now()
        from embed.failure
        order by attempts desc
        """
    ).fetchall()
    assert rows == [
        ("article", "article", str(big), "ko", 8, "poison", True, True, True),
        ("article", "article", "2", "en", 1, "out of memory", False, False, True),
    ]


def test_only_live_workers_are_shown(connection: Connection, vectors: VectorWriter) -> None:
    with vectors.worker() as alive:
        # A worker of before that was killed, and two behind a pooler, where no lock can be held.
        connection.execute(
            """
            insert into embed.worker_session (id, host, pid, lanes, backend, lock_held, seen_at)
            values (101, 'killed', 1, '{passages}', 1, true, now()),
                (102, 'pooled', 1, '{passages}', 1, false, now() - interval '10 s'),
                (103, 'pooled, gone', 1, '{passages}', 1, false, now() - interval '2 min')
            """
        )
        rows = connection.execute("select id from embed.worker order by id").fetchall()
        assert rows == [(alive,), (102,)]
    assert connection.execute("select id from embed.worker").fetchall() == [(102,)]


def test_the_same_lock_in_another_database_is_not_ours(
    connection: Connection, vectors: VectorWriter, server: Any
) -> None:
    with vectors.worker() as number:
        connection.execute("select pg_advisory_unlock(1701667429, %s)", [number])
        with psycopg.connect(server.url(), autocommit=True) as elsewhere:
            elsewhere.execute("select pg_advisory_lock(1701667429, %s)", [number])
            assert connection.execute("select id from embed.worker").fetchall() == []
        connection.execute("select pg_advisory_lock(1701667429, %s)", [number])


@pytest.mark.parametrize("view", ["status", "failure", "worker"])
def test_an_ordinary_role_may_not_look(article: Connection, view: str) -> None:
    name = f"nobody_{article.info.dbname}"
    role = sql.Identifier(name)
    article.execute(sql.SQL("create role {}").format(role))
    try:
        article.execute(sql.SQL("set role {}").format(role))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            article.execute(sql.SQL("select * from embed.{}").format(sql.Identifier(view)))
    finally:
        article.execute("reset role")
        article.execute(sql.SQL("drop role {}").format(role))


def test_a_hostile_search_path_changes_nothing(article: Connection) -> None:
    before = counts(article)
    article.execute(
        """
        create schema evil;
        create function evil.never(bigint, bigint) returns boolean language sql return false;
        create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.never);
        create table evil.source (id int);
        set search_path = evil, pg_catalog;
        """
    )
    assert counts(article) == before


def test_a_read_only_transaction(article: Connection) -> None:
    with article.transaction():
        article.execute("set transaction read only")
        assert counts(article) == (4, 4, 0, 0, 0, 0)


@pytest.mark.parametrize("locked", ["article", "article_embedding", "article_next_embedding"])
def test_nothing_waits_for_a_table_that_is_locked(
    article: Connection, database: str, locked: str
) -> None:
    article.execute(
        "select embed.begin_switch('article', storage => 'halfvec');"
        "set lock_timeout = 0; set statement_timeout = '5s'"
    )
    name = "article_next" if "next" in locked else "article"
    with closing(psycopg.connect(database)) as other:
        other.execute(f"lock table {locked} in access exclusive mode".encode())
        who = f"{LOCKED}: process {other.info.backend_pid} of the user {other.info.user}"
        for view in ("embed.status", "embed.status_exact()"):
            line = status(article, name, view)
            assert (line["state"], line["error"], line["coverage"]) == ("error", who, None)
        ((phase, size),) = article.execute("select phase, extra_bytes from embed.switch").fetchall()
        assert (phase, size is None) == ("filling", "next" in locked)
        found = dict(
            article.execute(
                "select detail, advice from embed.doctor() where subject ~ %s", [name]
            ).fetchall()
        )
        (advice,) = re.findall(r"select pg_terminate_backend\(pid\)", found[who])
        article.execute(advice.replace("pid", str(other.info.backend_pid)).encode())
    assert status(article, name)["error"] is None
    assert article.execute("show lock_timeout").fetchone() == ("0",)


def test_other_columns_are_no_ready_table(article: Connection, vectors: VectorWriter) -> None:
    notices: list[str] = []
    article.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    article.execute("alter table article add body text")
    with vectors.worker():
        assert status(article)["state"] == "ready"
        article.execute("select embed.enable('article', array['title'])")
        assert status(article)["state"] == "ready"
        assert notices == []
        article.execute("select embed.enable('article', array['body', 'title'])")
        assert status(article)["state"] == "embedding"
        assert notices == [
            "public.article was enabled with other settings before (columns title); a worker looks"
            " at all its rows again"
        ]


def test_failed_rows_of_other_tables_are_shown_beside_a_locked_queue(
    article: Connection, database: str
) -> None:
    notices: list[str] = []
    article.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    article.execute("set lock_timeout = 0; set statement_timeout = '5s'")
    with psycopg.connect(database) as other:
        other.execute("select embed.disable('article')")
        assert article.execute("select * from embed.failure").fetchall() == []
        (notice,) = notices
        assert f"process {other.info.backend_pid} of the user" in notice
        other.rollback()
