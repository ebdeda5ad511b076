"""A worker seen from outside: what Prometheus scrapes, and whether it is ready."""

import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from fix_database import Connection
from fix_worker import Workers
from monitored import Monitored
from oracle import wait_settled
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from psycopg import sql
from waiting import wait_until

from embedworker import settings
from embedworker.model.catalog import TESTING_MODEL
from embedworker.search.functions import query_vector
from embedworker.service.monitoring import backlog, readiness

OF_ARTICLE = '{name="article",source="public.article"}'
QUICK = {"metrics_port": "0", "stalled_after": "1", "poll_max": "0.2"}


def articles(shop: Connection, *texts: str, relation: str = "article") -> None:
    table = sql.Identifier(relation)
    shop.execute(sql.SQL("create table {} (id integer primary key, content text)").format(table))
    shop.cursor().executemany(
        sql.SQL("insert into {} values (%s, %s)").format(table), list(enumerate(texts, 1))
    )
    shop.execute("select embed.enable(%s::regclass, array['content'])", [relation])


def test_both_processes_are_counted(shop: Connection, workers: Workers) -> None:
    """Passages in the child, questions in the parent, the queue in the database: one scrape."""
    articles(shop, *[f"글 {n} {'<<fail>>' if n == 7 else ''}" for n in range(1, 101)], "")
    worker = workers.start(
        both_lanes=True, up=False, metrics_port="0", max_attempts="1", batch_tokens="200"
    )
    seen = Monitored(worker)
    wait_settled(shop, "article", dead=1)
    query_vector(shop, "무엇을 찾나요?", TESTING_MODEL, timeout=60)
    seen.wait_sample(f"embedworker_rows_embedded_total{OF_ARTICLE}", lambda value: value == 99)
    seen.wait_sample(f"embedworker_queue_dead_rows{OF_ARTICLE}", lambda value: value == 1)
    seen.wait_sample(f"embedworker_queue_rows{OF_ARTICLE}", lambda value: value == 0)
    samples = seen.samples()
    dead = 'embedworker_failures_total{name="article",outcome="dead",source="public.article"}'
    assert samples[dead] == 1
    assert samples['embedworker_passages_total{lane="passages"}'] == 100
    assert 1 < samples['embedworker_batches_total{lane="passages"}'] <= 100
    # A character is a token of this encoder: "passage: 글 1 ", without the padding of a batch.
    texts = [f"passage: 글 {n} {'<<fail>>' if n == 7 else ''}" for n in range(1, 101)]
    assert samples['embedworker_tokens_total{lane="passages"}'] == sum(map(len, texts))
    for phase in ("claim", "read", "tokenize", "encode", "complete"):
        assert samples[f'embedworker_phase_seconds_count{{phase="{phase}"}}'] > 0, phase
    assert samples['embedworker_questions_total{outcome="answered"}'] == 1
    assert samples['embedworker_questions_total{outcome="failed"}'] == 0
    assert samples["embedworker_question_seconds_count"] == 1
    assert samples['embedworker_question_seconds_bucket{le="+Inf"}'] == 1
    assert 0 < samples["embedworker_question_seconds_sum"] < 60
    for lane in ("passages", "questions"):
        assert samples[f'embedworker_model_load_seconds{{lane="{lane}",model="testing:hash"}}'] >= 0
    seen.wait_sample("embedworker_question_cache_vectors", lambda value: value == 1)
    assert samples["embedworker_passage_process_ends_total"] == 0
    assert samples["embedworker_question_cache_hits_total"] == 0
    for _ in range(3):
        query_vector(shop, "무엇을 찾나요?", TESTING_MODEL, timeout=60)
    shop.execute("select pg_stat_force_next_flush()")
    seen.wait_sample("embedworker_question_cache_hits_total", lambda value: value == 3)
    assert seen.samples()['embedworker_questions_total{outcome="answered"}'] == 1
    seen.wait_ready()

    # What a child has counted stays when it ends, and the next one counts on.
    (child,) = shop.execute(
        "select pid from embed.worker where 'passages' = any (lanes)"
    ).fetchone() or (0,)
    os.kill(child, signal.SIGKILL)
    seen.wait_sample("embedworker_passage_process_ends_total", lambda value: value == 1)
    shop.execute("insert into article values (1000, '다음 것')")
    seen.wait_sample(f"embedworker_rows_embedded_total{OF_ARTICLE}", lambda value: value == 100)
    seen.wait_ready()

    status, kind, body = seen.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    assert {family.name for family in open_metrics(body)} >= {"embedworker_rows_embedded"}
    assert "글" not in body
    assert seen.get("/healthz")[0] == 200
    assert seen.get("/nothing")[0] == 404
    assert worker.terminate() == 0


def test_a_model_that_hangs_is_not_ready(shop: Connection, workers: Workers, gate: Path) -> None:
    articles(shop, "좋은 글", "<<hang>>")
    worker = workers.start(both_lanes=True, up=False, testing_gate=str(gate), **QUICK)
    seen = Monitored(worker)
    seen.wait_reason("passages: a batch has been with the model for")
    assert seen.get("/healthz")[0] == 200, "it lives; restarting it is not for this probe to ask"
    assert seen.samples()['embedworker_ready{part="passages"}'] == 0
    assert seen.samples()['embedworker_ready{part="database"}'] == 1
    gate.touch()
    wait_settled(shop, "article")
    seen.wait_ready()
    assert worker.terminate() == 0


def test_a_question_that_hangs_is_not_ready(shop: Connection, workers: Workers, gate: Path) -> None:
    worker = workers.start("--only-queries", testing_gate=str(gate), query_timeout="1", **QUICK)
    seen = Monitored(worker)
    seen.wait_ready()
    shop.execute(
        "insert into embed.question (id, model, text)"
        " values (gen_random_uuid(), embed.default_model(), '<<hang>>')"
    )
    seen.wait_reason("questions: a batch has been with the model for")
    gate.touch()
    seen.wait_ready()


def test_a_database_that_is_away(shop: Connection, workers: Workers, hash_database: str) -> None:
    articles(shop, "하나")
    worker = workers.start(**QUICK)
    seen = Monitored(worker)
    seen.wait_ready()
    name = sql.Identifier(shop.info.dbname)
    others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
    with psycopg.connect(hash_database, dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("alter database {} allow_connections false").format(name))
        admin.execute(others, [shop.info.dbname])
        seen.wait_reason("passages: not connected: cannot connect to")
        seen.wait_reason("database: the database has not answered for")
        assert "embedworker_queue_rows" not in seen.get("/metrics")[2], "what is not known"
        admin.execute(sql.SQL("alter database {} allow_connections true").format(name))
    seen.wait_ready()


def test_a_database_that_is_asked_seldom(
    hash_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a look of a second the next one is 20 s away: it was taken for away after ten."""
    monkeypatch.setattr(backlog, "SHARE", 1e-6)
    monkeypatch.setattr(readiness, "AWAY", 0.2)
    verdict = readiness.Readiness(settings.load(), {})
    assert "it was not asked yet" in str(verdict.reasons())
    watching = backlog.BacklogSampler(hash_database, verdict, answer_timeout=15)
    watching.start()
    try:
        wait_until(lambda: verdict.fresh)
        later = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > later)
        assert verdict.reasons() == []
    finally:
        watching.stop()
        watching.join()
    verdict.away("connection refused")  # an error counts at once
    assert "connection refused" in str(verdict.reasons())
    verdict.answered([], 0.1)  # the next answer does not come
    wait_until(lambda: "it is still being asked" in str(verdict.reasons()))


@pytest.mark.smoke
def test_a_source_in_trouble_while_rows_wait(shop: Connection, workers: Workers) -> None:
    articles(shop, "하나")
    worker = workers.start(**QUICK)
    seen = Monitored(worker)
    wait_settled(shop, "article")
    seen.wait_ready()
    shop.execute("alter table article_embedding add column more integer not null default 0")
    shop.execute("alter table article_embedding alter column more drop default")
    # Two: what refuses a single row may be that row's own fault.
    shop.execute("insert into article values (2, '비밀스러운 글'), (3, '비밀스러운 책')")
    seen.wait_reason("passages: public.article has been stopped for")
    assert "비밀" not in seen.ready()[1]
    shop.execute("alter table article_embedding drop column more")
    wait_settled(shop, "article")
    seen.wait_ready()


def test_a_model_that_refuses_every_text(shop: Connection, workers: Workers) -> None:
    """One poisonous text is no reason; a model that embeds nothing any more is."""
    articles(shop, "하나", "<<fail>>")
    worker = workers.start(max_attempts="99", backoff_max="0.3", **QUICK)
    seen = Monitored(worker)
    refused = 'embedworker_failures_total{name="article",outcome="retry",source="public.article"}'
    seen.wait_sample(refused, lambda value: value > 3)
    assert seen.ready() == (True, "")
    shop.execute("insert into article select n, '<<fail>>' from generate_series(10, 60) n")
    seen.wait_reason("texts have all failed at the model")
    shop.execute("delete from article where content = '<<fail>>'")
    wait_settled(shop, "article")
    seen.wait_ready()


def test_rows_that_nobody_moves(shop: Connection, workers: Workers) -> None:
    """A worker that lives, is connected, and for a reason nobody foresaw does nothing."""
    articles(shop, "하나")
    # Longer than two looks at the queue: nothing must have moved from one to the next.
    worker = workers.start(**{**QUICK, "stalled_after": "6"})
    seen = Monitored(worker)
    wait_settled(shop, "article")
    # The queue's mover is one at a time: here it is somebody who never ends.
    with psycopg.connect(workers.url) as other:
        other.execute("select source from embed.source_state for update")
        shop.execute("insert into article values (2, '둘')")
        seen.wait_reason("passages: rows wait, and nothing has been embedded for")
    wait_settled(shop, "article")
    seen.wait_ready()


def test_a_port_that_is_taken(workers: Workers) -> None:
    first = Monitored(workers.start(**QUICK))
    port = first.url.rpartition(":")[2]
    second = workers.start(up=False, metrics_port=port)
    assert second.wait() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in second.output()
    assert "Traceback" not in second.output()


def test_without_a_port_nothing_listens(shop: Connection, workers: Workers) -> None:
    articles(shop, "하나")
    worker = workers.start()
    wait_settled(shop, "article")
    assert "readiness on" not in worker.output()
    wait_until(lambda: worker.process.poll() is None)
