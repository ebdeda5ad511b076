"""``embedworker fleet``: what it refuses and plans, and with Ray on this machine what it does."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, command
from hub_server import hub
from oracle import judge, queue_of
from psycopg import sql
from waiting import wait_until

LONGEST = 110.0  # seconds on a machine that does much else
SLOW = {"EMBEDWORKER_TESTING_DELAY": "0.5", "EMBEDWORKER_BATCH_TOKENS": "100"}


@pytest.fixture
def article(connection: psycopg.Connection[Any], cli: Cli) -> psycopg.Connection[Any]:
    assert cli.url  # it has chosen the default model
    connection.execute("create table article (id int primary key, content text)")
    connection.execute("insert into article select n, 'row ' || n from generate_series(1, 400) n")
    connection.execute("vacuum analyze article")
    connection.execute("select embed.enable('article', array['content'])")
    return connection


@pytest.mark.smoke
def test_a_plan_says_rows_tokens_hours_and_disk(article: psycopg.Connection[Any], cli: Cli) -> None:
    lines = cli.ok("fleet", "article", "--workers", "3", "--rate", "0.01", "--dry-run").splitlines()
    assert lines[0] == "article (article)"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["rows:", "400"],
        ["tokens:", lines[2].split()[1]],
        ["time:", "11.1"],  # hours: 400 rows at a hundredth of a row a second
        ["disk:", "1.2"],  # MB
    ]
    assert article.execute("select count(*) from article_embedding").fetchone() == (0,)


@pytest.mark.smoke
def test_a_fleet_that_the_server_has_no_room_for_is_refused_with_the_numbers(
    article: psycopg.Connection[Any], cli: Cli
) -> None:
    (most,) = article.execute("select current_setting('max_connections')::int").fetchone() or (0,)
    said = cli.refused("fleet", "article", "--workers", str(most), code=2)
    assert f"{most} workers need {3 * most} connections" in said
    assert f"max_connections is {most}, of which 3 are reserved" in said
    assert "give --workers" in said


@pytest.mark.smoke
@pytest.mark.usefixtures("article")
def test_an_address_where_nobody_listens_is_refused_at_once(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    said = cli.refused("fleet", "article", "--workers", "1", "--ray", f"127.0.0.1:{port}")
    assert f"Ray was not reached at '127.0.0.1:{port}'" in said
    assert "Give --ray local" in said
    assert time.monotonic() - started < 20  # Ray itself tries for half a minute


@pytest.mark.smoke
def test_a_paused_table_is_refused_where_it_is_waited_for(
    article: psycopg.Connection[Any], cli: Cli
) -> None:
    article.execute("select embed.pause('article')")
    said = cli.refused("fleet", "article", "--workers", "1", "--until-drained")
    assert "article is paused" in said
    assert "run `embedworker resume article` first" in said


@pytest.mark.smoke
def test_a_table_that_is_not_enabled_is_refused(connection: Any, cli: Cli) -> None:
    connection.execute("create table plain (id int primary key)")
    assert "embedworker enable plain COLUMN" in cli.refused("fleet", "plain", "--dry-run")


@contextmanager
def fleet(cli: Cli, folder: Path, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command on a Ray of its own, in a process group of its own, as a terminal has it."""
    with (folder / "fleet.log").open("w") as log:
        process = subprocess.Popen(
            command("fleet", "article", "--ray", "local", "--cpus", "0.5", "--json", *arguments),
            env={**os.environ, **cli.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    said, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, (folder / "fleet.log").read_text()
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_keep_below_their_ceiling_and_come_back_when_they_are_killed(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    article.execute("insert into article select n, 'row ' || n from generate_series(401, 1600) n")
    vectors = "select count(*) from article_embedding"
    with fleet(cli, tmp_path, "--workers", "2", "--rate", "100", "--until-drained") as process:
        wait_until(lambda: article.execute(vectors).fetchone() != (0,), LONGEST, "a vector")
        started = time.monotonic()
        (before,) = article.execute(vectors).fetchone() or (0,)
        both = "select array_agg(pid) from embed.worker having count(*) = 2"
        (pids,) = wait_until(lambda: article.execute(both).fetchone(), LONGEST, "two workers")
        os.kill(pids[0], signal.SIGKILL)
        other = "select count(*) from embed.worker where pid <> %s"
        wait_until(
            lambda: article.execute(other, [pids[0]]).fetchone() == (2,), LONGEST, "another worker"
        )
        found = ended(process, tmp_path)
        took = time.monotonic() - started
    assert found["drained"]
    assert found["restarts"] == 1
    assert found["sources"][0]["embedded"] == 1600
    # Besides what both of them had claimed when the first look was made, and the one that died.
    assert 1600 - before <= 100 * (took + 4)
    assert judge(article, "article").good


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_all_in_order(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    vectors = "select count(*) from article_embedding"
    with fleet(cli, tmp_path, "--workers", "2", **SLOW) as process:
        wait_until(lambda: article.execute(vectors).fetchone() != (0,), LONGEST, "a vector")
        os.killpg(process.pid, signal.SIGINT)
        found = ended(process, tmp_path)
    assert not found["drained"]
    assert 0 < found["rows"] == found["sources"][0]["embedded"] < 400
    held = sql.SQL("select count(*) from {} where claimed_by is not null").format(
        queue_of(article, "article")
    )
    assert article.execute(held).fetchone() == (0,)
    assert article.execute("select count(*) from embed.worker_session").fetchone() == (0,)
    assert "Traceback" not in (tmp_path / "fleet.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_table_that_is_paused_meanwhile_ends_it(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    vectors = "select count(*) from article_embedding"
    with fleet(cli, tmp_path, "--until-drained", **SLOW) as process:
        wait_until(lambda: article.execute(vectors).fetchone() != (0,), LONGEST, "a vector")
        article.execute("select embed.pause('article')")
        process.communicate(timeout=LONGEST)
        assert process.returncode == 1
    assert "run `embedworker resume article` first" in (tmp_path / "fleet.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_run_that_waits_for_the_end_exits_with_1(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    """A job of a cluster that is moved must not count as done."""
    vectors = "select count(*) from article_embedding"
    with fleet(cli, tmp_path, "--until-drained", **SLOW) as process:
        wait_until(lambda: article.execute(vectors).fetchone() != (0,), LONGEST, "a vector")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 1
    assert json.loads(said)["drained"] is False


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("postgresql://localhost/shop", True),
        ("postgresql+psycopg://127.0.0.1/shop?schema=public", True),
        ("postgresql:///shop?host=/run/postgresql", True),
        ("postgresql://db.example/shop", False),
        ("postgresql:///shop?hostaddr=10.0.0.5", False),
        ("postgresql:///?service=shop", False),
    ],
)
def test_addresses_that_other_machines_cannot_reach(url: str, here: bool) -> None:
    from embedworker.fleet.placement import _is_of_this_machine

    assert _is_of_this_machine(url) is here


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_that_no_worker_can_load_is_said(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    assert article.execute("select count(*) from article").fetchone() == (400,)
    with fleet(cli, tmp_path, "--until-drained", EMBEDWORKER_ALLOW_TESTING_MODEL="0") as process:
        log = tmp_path / "fleet.log"
        wait_until(lambda: "is for tests only" in log.read_text(), LONGEST, "the reason")
        process.communicate(timeout=LONGEST)
        assert process.returncode == 1
    assert "no row was embedded for 60 s" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_of_a_machine_download_a_model_once(
    connection: psycopg.Connection[Any], cli: Cli, tmp_path: Path, tiny_model: Path
) -> None:
    connection.execute("select embed.add_model('hub/tiny', 32, 64)")
    connection.execute("create table article (id int primary key, content text)")
    connection.execute("insert into article select n, 'row ' || n from generate_series(1, 400) n")
    connection.execute("select embed.enable('article', array['content'], model => 'hub/tiny')")
    with hub({"hub/tiny": tiny_model}) as (address, asked):
        online = {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "EMBEDWORKER_CACHE_DIR": str(tmp_path / "cache"),
        }
        with fleet(cli, tmp_path, "--workers", "2", **online) as process:
            log = tmp_path / "fleet.log"
            wait_until(
                lambda: process.poll() is not None or "workers: 2 of 2" in log.read_text(),
                LONGEST,
                "two workers with a model",
            )
            process.send_signal(signal.SIGTERM)
            assert ended(process, tmp_path)["rows"] > 0
        files = [path for path in asked if path.startswith("GET ") and "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in files)
    assert len(files) == len(set(files)), sorted(files)
