"""``embedworker demo``: what it shows, what it leaves, and what it never touches."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, command, embedworker
from waiting import wait_until

from embedworker.demo.material import articles, script
from embedworker.model import BUNDLED_MODEL, DEFAULT_MODEL, TESTING_MODEL

IN_TIME = 110  # seconds; a minute on an idle machine
TESTING = ("demo", "--model", TESTING_MODEL)


@pytest.fixture
def quick(bare_database: str, tmp_path: Path) -> Cli:
    """The demo on an empty database of the tests' server, its log in a folder of the test."""
    cli = Cli(bare_database)
    cli.environment["EMBEDWORKER_CACHE_DIR"] = str(tmp_path)
    return cli


@pytest.fixture
def look(bare_database: str) -> Iterator[Callable[[str], Any]]:
    """One value of the database."""
    with psycopg.connect(bare_database, autocommit=True) as connection:

        def value(query: str) -> Any:
            row = connection.execute(query.encode()).fetchone()
            return None if row is None else row[0]

        yield value


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def worker_pid(shown: str) -> int:
    found = re.search(r"worker +process (\d+)", shown)
    assert found is not None, shown
    return int(found[1])


def firsts(shown: str) -> list[str]:
    """The first hit of every search on the screen."""
    return re.findall(r"^  → \d\.\d{3}  (.+)$", shown, re.M)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(300)
def test_the_whole_demo_on_the_embedded_server(server_folder: Path) -> None:
    environment = {
        "EMBEDWORKER_DATA_DIR": str(server_folder / "demo"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(server_folder / "empty"),
        "COLUMNS": "80",
    }
    said = embedworker("demo", timeout=250, **environment)
    assert said.returncode == 0, said.stderr
    shown = said.stdout
    steps = script()
    assert f"{BUNDLED_MODEL}, because" in shown
    assert f"{DEFAULT_MODEL} is not in the cache" in " ".join(shown.split())
    assert f"all {len(articles())}, in Korean and English, are searchable" in shown
    found = firsts(shown)
    assert found[:5] == [
        steps.korean.expects,
        steps.english_to_korean.expects,
        steps.insert.title,
        steps.update.expects,  # by the question about its old text
        steps.update.expects,  # by the one about the new
    ]
    assert found[5] != steps.update.expects
    assert found[6] == steps.delete.expects
    assert found[7] != steps.delete.expects
    for statement in ("embed.enable('demo.article'", "insert into", "update demo", "delete from"):
        assert statement in shown
    assert re.search(r"found \d+ ms after the INSERT", shown)
    assert re.search(r"found \d+ ms after the UPDATE", shown)
    assert re.search(r"rows 72 +embedded 72 +pending 0 +state ready +coverage 1", shown)
    assert not alive(worker_pid(shown))
    assert "stopped" in embedworker("db", "status", **environment).stdout


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(300)
def test_what_is_kept_can_be_used(server_folder: Path) -> None:
    environment = {
        "EMBEDWORKER_DATA_DIR": str(server_folder / "kept"),
        "EMBEDWORKER_DTYPE": "float32",  # the demo above chooses by times
        "HF_HUB_OFFLINE": "1",
    }
    said = embedworker("demo", "--keep", timeout=250, **environment)
    assert said.returncode == 0, said.stderr
    pid = worker_pid(said.stdout)
    try:
        assert re.search(r'connect +psql "\$\(.* db url\)"', said.stdout)
        assert f"kill {pid} && " in said.stdout
        url = embedworker("db", "url", **environment).stdout.strip()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("insert into embed.document (content) values ('목포발 제주행 배')")
            wait_until(
                lambda: (
                    connection.execute(
                        "select content from embed.document d"
                        " join embed.document_embedding e using (id)"
                        " order by e.embedding <=> embed.query('ferry to Jeju') limit 3"
                    ).fetchall()
                    == [("목포발 제주행 배",)]
                ),
                timeout=30,
            )
            assert connection.execute("select count(*) from demo.article").fetchone() == (72,)
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), timeout=30)
        assert embedworker("db", "stop", **environment).stdout == "stopped\n"


def test_it_cleans_up_and_runs_again(quick: Cli, look: Callable[[str], Any]) -> None:
    for _ in range(2):
        shown = quick.ok(*TESTING)
        assert f"{TESTING_MODEL}, because it was asked for with --model" in shown
        assert not alive(worker_pid(shown))
        assert look("select to_regnamespace('demo')") is None
        assert look("select count(*) from embed.source") == 1  # embed.document
        assert look("select embed.default_model()") == TESTING_MODEL


def test_interrupted_it_leaves_nothing(quick: Cli, look: Callable[[str], Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            command(*TESTING),
            env={**os.environ, **quick.environment, "EMBEDWORKER_TESTING_DELAY": "60"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: look("select to_regclass('demo.article') is not null"), timeout=60)
        assert process.poll() is None
        process.send_signal(number)
        shown, error = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "Traceback" not in error
        assert not alive(worker_pid(shown))
        assert look("select to_regnamespace('demo')") is None


def test_killed_it_takes_the_worker_along(quick: Cli, look: Callable[[str], Any]) -> None:
    process = subprocess.Popen(
        command(*TESTING),
        env={**os.environ, **quick.environment, "EMBEDWORKER_TESTING_DELAY": "60"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(
        lambda: (
            look("select to_regclass('embed.worker') is not null")
            and look("select count(*) from embed.worker") == 2
        ),
        timeout=60,
    )
    pids = look("select array_agg(pid) from embed.worker")
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), timeout=20)


def test_a_table_of_somebody_else_is_never_touched(
    quick: Cli, look: Callable[[str], Any], bare_database: str
) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("create schema demo")
        connection.execute("create table demo.article (words text)")
        connection.execute("insert into demo.article values ('mine')")
    assert "there is a table demo.article that is not the demo's" in quick.refused(*TESTING)
    assert look("select words from demo.article") == "mine"
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("alter table demo.article rename to mine")
    quick.ok(*TESTING)
    assert look("select words from demo.mine") == "mine"


def test_the_model_of_other_data_stays(quick: Cli, look: Callable[[str], Any]) -> None:
    quick.ok("migrate", "--model", "intfloat/multilingual-e5-small")
    look("insert into embed.document (content) values ('mine') returning id")
    look(f"select embed.add_model('{TESTING_MODEL}', 384, 8192, 'query: ', 'passage: ')::text")
    quick.ok(*TESTING, HF_HUB_OFFLINE="1")
    assert look("select embed.default_model()") == "intfloat/multilingual-e5-small"
    assert look("select content from embed.document") == "mine"


def test_a_model_that_cannot_be_had_is_said_at_once(quick: Cli) -> None:
    started = time.monotonic()
    error = quick.refused(
        "demo", "--model", "BAAI/bge-m3", HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nope"
    )
    assert "'BAAI/bge-m3' is not in the local cache" in error
    assert BUNDLED_MODEL in error
    assert time.monotonic() - started < IN_TIME


@pytest.mark.smoke
def test_a_model_that_nobody_knows_starts_no_worker(quick: Cli, tmp_path: Path) -> None:
    error = quick.refused("demo", "--model", "nosuch")
    assert "model 'nosuch' is not known" in error
    assert "embed.add_model" in error
    assert not (tmp_path / "demo-worker.log").exists()


def test_two_at_once_in_a_database_are_refused(quick: Cli, bare_database: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(1701667428, 20)")
        assert "another demo runs in this database" in quick.refused(*TESTING)
