"""How an index is built: its memory, what is said of it, and what is there when it cannot be."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_pgbouncer import PgBouncer
from psycopg import sql
from waiting import wait_until

from embedworker.queue.source import Source, load_sources
from embedworker.service import building, indexing
from embedworker.service.indexing import Indexer
from embedworker.service.monitoring.metrics import Metrics

Filled = Callable[..., Source]

ENOUGH = 100 << 20  # bytes
STATE = "select index_state from embed.status where source = 'note'::regclass"


@pytest.fixture
def filled(app: Connection) -> Filled:
    """``filled(rows=100, dimensions=384)``: an enabled table ``note`` with made-up vectors."""

    def fill(rows: int = 100, dimensions: int = 384, *, partitioned: bool = False) -> Source:
        app.execute("select embed.add_model('of tests', %s)", [dimensions])
        by = sql.SQL("partition by range (id)" if partitioned else "")
        app.execute(
            sql.SQL(
                "create table note (id integer primary key, content text, v vector({})) {}"
            ).format(dimensions, by)
        )
        if partitioned:
            app.execute("create table note_1 partition of note default")
        app.execute("insert into note select n, 'note ' || n from generate_series(1, %s) n", [rows])
        into = "v" if partitioned else None
        app.execute(
            "select embed.enable('note', array['content'], model => 'of tests', into_column => %s)",
            [into],
        )
        made = (
            "(select array_agg(random() - 0.5) from generate_series(1, %(dimensions)s)"
            " where n = n)::vector"
        )
        if partitioned:
            app.execute(
                f"with n as (select id as n from note) update note set v = {made} from n"
                " where n.n = note.id",
                {"dimensions": dimensions},
            )
        else:
            app.execute(
                "insert into note_embedding (id, passage_start, passage_end, embedding,"
                f" fingerprint, hash, checksum, seq) select n, 0, 1, {made}, 1, '', '', 0"
                " from generate_series(1, %(rows)s) n",
                {"dimensions": dimensions, "rows": rows},
            )
        app.execute(
            "insert into embed.fingerprint (id, digest, model, revision, query_prefix,"
            " passage_prefix, pooling, dimensions, max_tokens) overriding system value"
            " values (1, '1', 'of tests', '', '', '', 'mean', 1, 1) on conflict do nothing;"
            "update embed.source_state t set fingerprint = 1 from embed.source s"
            " where s.id = t.source and s.name = 'note'"
        )
        return next(source for source in load_sources(app) if source.name == "note")

    return fill


def build(app: Connection, source: Source, url: str, **given: Any) -> None:
    Indexer(url, **{"after_rows": 10, "memory": ENOUGH, **given}).build_all(app, source)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "embedworker.indexing"]


def state(app: Connection) -> Any:
    row = app.execute(STATE).fetchone()
    return row and row[0]


@pytest.mark.parametrize(
    ("dimensions", "kind"), [(32, "vector"), (384, "vector"), (1024, "vector"), (2560, "halfvec")]
)
def test_the_memory_of_a_graph(dimensions: int, kind: str, app: Connection, filled: Filled) -> None:
    """pgvector itself says how many vectors fit."""
    given = 1 << 20
    filled(
        rows=1000 if dimensions == 32 else 450 if dimensions == 384 else 280, dimensions=dimensions
    )
    said: list[str] = []
    app.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    app.execute("set maintenance_work_mem = '1MB'; set max_parallel_maintenance_workers = 0")
    ((definition,),) = app.execute(
        "select embed._index_definition(s) from embed.source s where s.name = 'note'"
    ).fetchall()
    app.execute(sql.SQL("create index {}").format(sql.SQL(definition)))
    fitted = int(re.findall(r"no longer fits .* after (\d+) tuples", " ".join(said))[0])
    ((estimated,),) = app.execute(
        "select embed._graph_bytes(%(fitted)s, %(dimensions)s, %(kind)s)"
        " - embed._graph_bytes(0, %(dimensions)s, %(kind)s)",
        {"fitted": fitted, "dimensions": dimensions, "kind": kind},
    ).fetchall()
    assert given <= estimated <= 1.3 * given


def test_a_build_has_the_memory_that_it_needs(
    app: Connection,
    filled: Filled,
    shared_database: str,
    database_has: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = filled(rows=600)
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        database_has("maintenance_work_mem", "1MB")
        build(app, source, shared_database, metrics=metrics)
    begun, built = messages(caplog)
    assert "begun over 600 vectors, with 9 MB" in begun
    assert re.search(r"built in \d+\.\d s", built)
    assert state(app) == "valid"
    counted = metrics.registry.get_sample_value
    assert counted("embedworker_index_builds_total", {"outcome": "built"}) == 1


def test_a_limit_that_is_too_low_is_said(
    app: Connection,
    filled: Filled,
    shared_database: str,
    database_has: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = filled(rows=450)
    database_has("maintenance_work_mem", "1MB")
    build(app, source, shared_database, memory=1 << 20)
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "EMBEDWORKER_INDEX_MEMORY allows 1 MB" in warned
    assert state(app) == "valid"


def test_too_little_shared_memory(
    app: Connection,
    filled: Filled,
    shared_database: str,
    database_has: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A container has 64 MB of it, and the processes that build together share the graph."""
    if not Path("/dev/shm").is_dir():  # noqa: S108
        pytest.skip("needs the shared memory of Linux")
    if app.execute("show dynamic_shared_memory_type").fetchone() != ("posix",):
        pytest.skip("the server keeps shared memory elsewhere")
    source = filled()
    database_has("maintenance_work_mem", "1TB")
    build(app, source, shared_database)
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "building without parallel workers" in warned
    assert state(app) == "valid"


def test_a_build_that_is_cancelled_leaves_nothing_and_is_done_again(
    app: Connection,
    filled: Filled,
    shared_database: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = filled()
    monkeypatch.setattr(indexing, "RETRY", 0.0)
    indexer = Indexer(shared_database, after_rows=10, memory=ENOUGH, application_name="to cancel")
    with psycopg.connect(shared_database) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select count(*) from pg_class").fetchone()  # the build waits for its end
        indexer.run_if_due(app, source)
        waits = (
            "select from pg_stat_activity where application_name = 'to cancel'"
            " and wait_event_type = 'Lock'"
        )
        wait_until(lambda: app.execute(waits).fetchone() is not None, 30, "a build that waits")
        assert str(state(app)).startswith("building")
        app.execute(
            "select pg_cancel_backend(pid) from pg_stat_activity"
            " where application_name = 'to cancel'"
        )
        wait_until(lambda: messages(caplog) != [], 30, "a failure in the log")
        assert "run it again" in messages(caplog)[-1]
        old.commit()
    indexer.wait()
    assert state(app) == "failed: canceling statement due to user request"
    left = "select count(*) from pg_class where relname ~ 'note_embedding_hnsw'"
    assert app.execute(left).fetchone() == (0,)
    indexer.interval = indexing.IdleInterval()
    indexer.run_if_due(app, source)
    indexer.wait()
    assert state(app) == "valid"


def test_what_a_reindex_has_left_is_dropped(
    app: Connection, filled: Filled, shared_database: str
) -> None:
    source = filled()
    build(app, source, shared_database)
    for name in ("note_embedding_hnsw_ccnew", "of_their_own"):
        app.execute(
            sql.SQL(
                "create index {} on note_embedding using hnsw (embedding vector_cosine_ops)"
            ).format(sql.Identifier(name))
        )
    app.execute(
        "update pg_index set indisvalid = false where indexrelid in"
        " ('note_embedding_hnsw_ccnew'::regclass, 'of_their_own'::regclass)"
    )
    build(app, source, shared_database)
    left = app.execute(
        "select x.index::regclass::text, x.valid from embed.source s,"
        " embed._vector_indexes(s) x where s.name = 'note'"
    ).fetchall()
    assert sorted(left) == [("note_embedding_hnsw", True), ("of_their_own", False)]


def test_up_to_4000_dimensions_by_halfvec(
    app: Connection, filled: Filled, shared_database: str
) -> None:
    source = filled(dimensions=2560)
    question = app.execute("select embedding from note_embedding where id = 7").fetchone()
    assert question is not None
    search = "select (row).id, score from embed.search(null::note, %s::vector, k => 5)"
    exact = app.execute(search, [question[0]]).fetchall()
    build(app, source, shared_database)
    assert state(app) == "valid"
    app.execute("set enable_seqscan = off; set enable_sort = off")
    plan = "select embed._plan_of_search(s) from embed.source s where s.name = 'note'"
    assert "note_embedding_hnsw" in str(app.execute(plan).fetchone())
    by_hand = (
        "explain select id from note_embedding"
        " order by embedding::halfvec(2560) <=> (select %s::vector)::halfvec(2560) limit 5"
    )
    assert "note_embedding_hnsw" in str(app.execute(by_hand, [question[0]]).fetchall())
    used = "select pg_stat_get_xact_numscans('note_embedding_hnsw'::regclass)"
    with app.transaction():
        assert app.execute(search, [question[0]]).fetchall() == exact
        assert app.execute(used).fetchone() == (1,)
    assert exact[0][0] == 7


def test_an_index_over_words_that_fails_does_not_keep_the_other_from_being_built(
    app: Connection, filled: Filled, shared_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = filled()
    app.execute(f"create table note_embedding_{source.id}_words ()".encode())  # takes its name
    build(app, source, shared_database, words_after_rows=10)
    assert any(
        f'relation "note_embedding_{source.id}_words" already' in m for m in messages(caplog)
    )
    assert state(app) == "valid"


def test_beyond_that_there_is_none_and_it_is_said_once(
    app: Connection, filled: Filled, shared_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = filled(rows=12, dimensions=4001)
    indexer = Indexer(shared_database, after_rows=10, memory=ENOUGH)
    for _ in range(2):
        indexer.run_if_due(app, source)
        assert not indexer.busy
        indexer.interval = indexing.IdleInterval()
    (said,) = messages(caplog)
    assert "an index holds at most 4,000 dimensions, not 4,001" in said
    assert state(app) == "none: an index holds at most 4,000 dimensions, not 4,001"


def test_none_in_a_column_of_a_partitioned_table(
    app: Connection, filled: Filled, shared_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = filled(partitioned=True)
    build(app, source, shared_database)
    (said,) = messages(caplog)
    assert "partitioned" in said
    ((definition,),) = app.execute(
        "select embed._index_definition(s) from embed.source s where s.name = 'note'"
    ).fetchall()
    app.execute(sql.SQL("create index {}").format(sql.SQL(definition)))
    build(app, source, shared_database)
    assert state(app) == "valid"


def wait_longer(app: Connection, application: str) -> None:
    """Wait until a build has waited for longer than a second."""
    waits = (
        "select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
        " and query_start < clock_timestamp() - interval '1.3 s'"
    )
    wait_until(lambda: app.execute(waits, [application]).fetchone() is not None, 30, application)


def end_others(app: Connection) -> None:
    """Have a pool begin new sessions, with what the database and the role have set meanwhile."""
    app.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where pid <> pg_backend_pid() and datname = current_database()"
    )


def test_statement_timeout_ends_no_build(
    app: Connection,
    filled: Filled,
    shared_database: str,
    database_has: Callable[[str, str], None],
) -> None:
    source = filled()
    database_has("statement_timeout", "1s")
    indexer = Indexer(shared_database, after_rows=10, memory=ENOUGH)
    with psycopg.connect(shared_database) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select count(*) from pg_class").fetchone()
        indexer.run_if_due(app, source)
        wait_longer(app, "embedworker index")
        old.commit()
    indexer.wait()
    assert state(app) == "valid"


def test_behind_a_pooler_a_build_takes_the_direct_address(
    app: Connection,
    filled: Filled,
    shared_database: str,
    pgbouncer: PgBouncer,
    database_has: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = filled(rows=450)
    database_has("maintenance_work_mem", "1MB")
    with caplog.at_level(logging.INFO):
        build(app, source, pgbouncer.url(shared_database), direct_url=shared_database)
    begun, _ = messages(caplog)
    assert "with 9 MB" in begun
    assert state(app) == "valid"


def test_behind_a_pooler_alone_the_setting_is_named(
    app: Connection,
    filled: Filled,
    shared_database: str,
    pgbouncer: PgBouncer,
    database_has: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = filled()
    database_has("statement_timeout", "1s")
    end_others(app)
    monkeypatch.setattr(indexing, "RETRY", 0.0)
    indexer = Indexer(pgbouncer.url(shared_database), after_rows=10, memory=ENOUGH)
    with psycopg.connect(shared_database) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select count(*) from pg_class").fetchone()
        indexer.run_if_due(app, source)
        wait_until(lambda: "statement_timeout" in caplog.text, 30, "a failure in the log")
        old.commit()
    indexer.wait()
    said = messages(caplog)[-1]
    assert "statement_timeout is 1s for the role postgres" in said
    assert app.execute("select to_regclass('note_embedding_hnsw')").fetchone() == (None,)
    app.execute(said[said.index("alter role") : said.index(";") + 1].encode())
    end_others(app)
    indexer.interval = indexing.IdleInterval()
    indexer.run_if_due(app, source)
    indexer.wait()
    assert state(app) == "valid"
    app.execute(
        sql.SQL("alter role postgres in database {} reset all").format(
            sql.Identifier(app.info.dbname)
        )
    )


@pytest.mark.parametrize("over", ["vectors", "words"])
def test_progress_is_said(
    app: Connection,
    filled: Filled,
    shared_database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    over: str,
) -> None:
    source = filled(rows=1500)
    monkeypatch.setattr(building, "TICK", 0.02)
    monkeypatch.setattr(building, "SAY", 0.02)
    metrics = Metrics()
    indexer = Indexer(
        shared_database,
        after_rows=10,
        memory=ENOUGH,
        words_after_rows=10**9 if over == "vectors" else 10,
        metrics=metrics,
    )

    def ratio() -> float | None:
        return metrics.registry.get_sample_value(
            "embedworker_index_build_ratio", {"source": "shop.note", "name": "note"}
        )

    with caplog.at_level(logging.INFO), psycopg.connect(shared_database) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select count(*) from pg_class").fetchone()
        indexer.run_if_due(app, source)
        (pid,) = old.execute("select pg_backend_pid()").fetchone() or (0,)
        waits = f"waiting for the end of a transaction that process {pid}"
        wait_until(lambda: waits in caplog.text, 30, "the wait in the log")
        if over == "vectors":
            assert re.search(r"building index: loading tuples, \d+ %", caplog.text)
        assert ratio() is not None
        old.commit()
        indexer.wait()
    assert ratio() is None
    assert (state(app) == "valid") == (over == "vectors")
