"""Neither a text of a row nor a password is in what a worker writes, whatever goes wrong."""

import json

import pytest
from fix_database import Connection
from fix_worker import Workers
from oracle import wait_settled
from psycopg.conninfo import conninfo_to_dict
from waiting import wait_until

SECRETS = ("은밀한", "hunter2", "바나나우유")


def silent(output: str) -> bool:
    return not any(secret in output for secret in SECRETS)


@pytest.mark.parametrize("form", ["json", "human"])
@pytest.mark.smoke
def test_a_run_with_every_kind_of_failure(shop: Connection, workers: Workers, form: str) -> None:
    shop.execute(
        """
        create table article (id integer primary key, content text);
        insert into article select n, '은밀한 글 ' || n from generate_series(1, 40) n;
        insert into article values (41, '은밀한 <<fail>>');
        insert into article select n, '은밀한 <<oom>> ' || n from generate_series(42, 50) n;
        select embed.enable('article', array['content']);

        create table note (id integer primary key, content text, embedding vector(384));
        insert into note select n, '바나나우유 ' || n from generate_series(1, 3) n;
        create function refuse() returns trigger language plpgsql as $$
        begin
            raise exception '% is not wanted', new.content using detail = new.content;
        end $$;
        create trigger refuse before update on note for each row execute function refuse();
        select embed.enable('note', array['content'], into_column => 'embedding');

        create table memo (id integer primary key, content text, embedding vector(384));
        insert into memo select n, '은밀한 쪽지 ' || n from generate_series(1, 3) n;
        alter table memo add constraint empty check (embedding is null);
        select embed.enable('memo', array['content'], into_column => 'embedding');
        """
    )
    shop.execute(
        "insert into embed.question (id, model, text)"
        " values (gen_random_uuid(), embed.default_model(), '은밀한 <<fail>>')"
    )
    worker = workers.start(
        both_lanes=True,
        up=False,
        log_format=form,
        log_level="debug",
        max_attempts="1",
        batch_tokens="200",
        metrics_port="0",
    )
    wait_settled(shop, "article", 90, dead=1)
    for said in ("SQLSTATE P0001", "SQLSTATE 23514", "has no vector", "MemoryError"):
        wait_until(lambda said=said: said in worker.output(), 60, f"{said} in the log")  # type: ignore[misc]
    assert worker.terminate() == 0
    output = worker.output()
    assert silent(output)
    batches = [line for line in output.splitlines() if "batch of public.article" in line]
    assert 1 < len(batches) <= 50
    if form == "json":
        lines = [json.loads(line) for line in output.splitlines()]
        of_article = [line for line in lines if line.get("source") == "public.article"]
        assert len(of_article) == len(batches)
        assert sum(line["texts"] for line in of_article) == 50
        assert sum(line["failed"] for line in of_article) == 1
        assert all(line["tokens"] > 0 for line in of_article)


def test_a_wrong_password(workers: Workers, hash_database: str) -> None:
    place = conninfo_to_dict(hash_database)
    url = f"postgresql://nobody:hunter2@{place['host']}:{place['port']}/{place['dbname']}"
    worker = workers.start(both_lanes=True, up=False, url=url, log_format="json", metrics_port="0")
    wait_until(lambda: "cannot connect to" in worker.output(), 30)
    wait_until(lambda: worker.output().count("cannot connect to") >= 2, 60, "both processes")
    assert worker.terminate() == 0
    assert silent(worker.output())
    assert "nobody:***@" in worker.output()
    for line in worker.output().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:hunter2@h/x@y", "postgresql://u:hunter2@h:port/d", "mysql://u:hunter2@h/d"],
)
def test_a_url_that_cannot_be_read(workers: Workers, url: str) -> None:
    worker = workers.start(up=False, url=url)
    assert worker.wait(60) == 2
    assert silent(worker.output())
    assert "Traceback" not in worker.output()
