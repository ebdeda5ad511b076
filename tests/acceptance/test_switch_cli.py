"""``embedworker switch`` with a real worker, in the order of the how-to page."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, command
from waiting import wait_until

from embedworker.model.catalog import SMALL_MODEL

pytestmark = pytest.mark.slow

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to.md"


def recipe() -> list[list[str]]:
    """The arguments of each command that the page shows."""
    section = HOW_TO.read_text().partition("## Change the model\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```console\n(.*?)```", section, re.S)
    return [shlex.split(line)[1:] for line in code.splitlines()]


@pytest.fixture
def article(connection: psycopg.Connection[Any], cli: Cli) -> psycopg.Connection[Any]:
    assert cli.url  # it has chosen the default model
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("insert into article select n, 'row ' || n from generate_series(1, 30) n")
    connection.execute("select embed.enable('article', '{title}')")
    connection.execute(
        "select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [SMALL_MODEL]
    )
    return connection


def phase(cli: Cli) -> str:
    (found,) = cli.json("switch", "status")
    return str(found["phase"])


def test_the_commands_of_the_page(
    article: psycopg.Connection[Any], cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"row {n}", "key": n}) + "\n" for n in range(1, 9))
    )
    given = {"BAAI/bge-m3": SMALL_MODEL, "questions.jsonl": str(file)}
    said: dict[str, str] = {}
    ready = "select from embed.status where name = 'article' and coverage = 1"
    with cli.worker():
        wait_until(
            lambda: article.execute(ready).fetchall(),
            what="the vectors of the old model",
        )
        for words in recipe():
            if words[1] == "cut-over":  # these models compare hashes, so neither is better
                refusal = cli.refused(*words)
                assert "the other model may be worse by" in refusal
                assert "or use --force" in refusal
                words = [*words, "--force"]
            said[words[1]] = cli.ok(*(given.get(word, word) for word in words))
            if words[1] == "start":
                wait_until(lambda: phase(cli) == "ready", what="the vectors of the new model")
            if words[1] == "cut-over":
                assert phase(cli) == "cut over"
                (kept,) = cli.json("switch", "status")
                assert kept["judgement"]["questions"] == 8
                back = cli.ok("switch", "roll-back", "article")
                cli.ok(*words)
        assert list(said) == ["plan", "start", "status", "judge", "cut-over", "end"]
        assert (
            f"article: {SMALL_MODEL} answers; `embedworker switch roll-back article`"
            in (said["cut-over"])
        )
        assert back == "article: testing:hash answers\n"
        dropped = "the vectors by testing:hash are dropped"
        assert said["end"] == f"article: {SMALL_MODEL} answers; {dropped}\n"
        assert "30, about" in said["plan"]
        assert "a worker holds two: testing:hash and testing:small" in said["plan"]
        assert re.search(
            r"8 questions, \d+% of the rows in common, .*nDCG@10 [-+]0\.", said["judge"]
        )
        assert cli.json("switch", "status") == []
        model = article.execute("select model from embed.status where source::text = 'article'")
        assert model.fetchall() == [(SMALL_MODEL,)]


def test_a_plan_knows_the_rows_of_a_table_that_was_just_loaded(
    article: psycopg.Connection[Any], cli: Cli
) -> None:
    for table in "article", "article_embedding":  # so no ANALYZE
        article.execute(f"alter table {table} set (autovacuum_enabled = off)".encode())
    article.execute("insert into article select n, 'row ' || n from generate_series(31, 900) n")
    cli.ok("run", "--once")
    rows = cli.ok("switch", "plan", "article", SMALL_MODEL).splitlines()[0]
    assert rows.split() == ["rows:", "900,", "about", "900", "passages", "now"]


@pytest.mark.usefixtures("article")
def test_questions_without_keys_and_the_tables_own_texts(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"question": "row 7"}\n{"question": "something else"}\n')
    with cli.worker():
        cli.ok("switch", "start", "article", SMALL_MODEL)
        wait_until(lambda: phase(cli) == "ready", what="the vectors of the new model")
        judged = cli.json("switch", "judge", "article", "--questions", str(file), "-k", "5")
        assert judged["questions"] == 2
        assert judged["difference"] is None
        assert 0 <= judged["overlap"] < 1
        least = judged["most_changed"][0]
        assert least["overlap"] == len({*least["before"]} & {*least["after"]}) / 5
        own = cli.json("switch", "judge", "article")
        assert own["questions"] == 30
        file.write_text('{"question": "row 7", "id": 7}\n')
        refusal = cli.refused("switch", "judge", "article", "--questions", str(file), code=2)
        assert 'line 1: unknown field "id"' in refusal


@pytest.mark.usefixtures("article")
def test_what_is_refused(cli: Cli) -> None:
    assert "is not being changed" in cli.refused("switch", "judge", "article")
    assert "is not being changed" in cli.refused("switch", "end", "article")
    assert "is not known" in cli.refused("switch", "start", "article", "no/model")
    cli.ok("switch", "start", "article", SMALL_MODEL)
    assert "not complete" in cli.refused("switch", "cut-over", "article")
    assert "filling" in cli.ok("switch", "status")
    cli.ok("switch", "end", "article")


@pytest.mark.usefixtures("article")
def test_watching_goes_on_until_it_is_stopped(cli: Cli) -> None:
    cli.ok("switch", "start", "article", SMALL_MODEL)
    with subprocess.Popen(
        command("switch", "status", "--watch"),
        env={**os.environ, **cli.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        looks = [line for line, _ in zip(watching.stdout, range(8), strict=False)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=60) == 0
    first = [line for line in looks if line.startswith("article")]
    assert first == ["article (article): filling\n"] * 2
    cli.refused("switch", "status", "--watch", "--json", code=2)
