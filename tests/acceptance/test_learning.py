"""docs/learning.md, followed from its first statement to its last command."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from judged_words import PROGRAM, pairs
from tiny_models import save_model
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.testing import wait_until_embedded

PAGE = Path(__file__).parents[2] / "docs" / "learning.md"
PATIENT = "set embed.query_timeout = '60s'; set embed.worker_grace = '60s'"
LONGEST = 90.0  # seconds; a worker makes judgements within a minute, says the page
SLOW = 250.0  # seconds until a worker has loaded torch on a machine that does much else


@pytest.mark.timeout(600)  # it trains
def test_the_page(hash_database: str, tmp_path: Path) -> None:
    sql = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.S)
    commands = re.findall(r"```console\n(.*?)\n```", PAGE.read_text(), re.S)
    keep, search, choose, look = sql
    cli = Cli(hash_database)
    with connect(hash_database) as connection:
        set_up_loopback(connection)
        prepare(connection, str(save_model(tmp_path / "base")))
        connection.execute(keep)
        with cli.worker():
            wait_until_embedded(hash_database, "article", SLOW)
            connection.execute(PATIENT)
            shown = connection.execute(
                search.replace("from embed", ", passage from embed")
            ).fetchall()
            chosen = choose.replace("SEARCH_ID", str(shown[0][2])).replace("1", str(shown[1][0]), 1)
            connection.execute(chosen.encode())
            wait_until(lambda: len(connection.execute(look.encode()).fetchall()) == 2, LONGEST)
        judged = connection.execute(look.encode()).fetchall()
        assert {(grade, source) for _, _, grade, source in judged} == {(0, "click"), (1, "click")}
        questions(tmp_path / "questions.jsonl")
        for line in commands:
            said = run(cli, tmp_path, shlex.split(line)[1:])
            assert said.returncode == 0, f"{line}: {said.stdout}{said.stderr}"
        assert "accepted: " in said.stdout or "filling" in said.stdout, said.stdout


def prepare(connection: psycopg.Connection[Any], base: str) -> None:
    """A table of 40 words, whose model is a tiny one that can learn."""
    connection.execute("select embed.add_model(%s, 32, 64)", [base])
    connection.execute("create table article (id integer primary key, body text)")
    with connection.cursor() as cursor:
        texts = [(int(key), text) for key, text in pairs(40, 10)[0].items()]
        cursor.executemany("insert into article values (%s, %s)", texts)
    connection.execute(
        "select embed.enable('article', array['body'], model => %s, words => false)", [base]
    )


def questions(file: Path) -> None:
    """What a person knows: 400 questions, in the form of the page."""
    lines = [
        json.dumps({"question": question, "key": int(key)})
        for question, grades in pairs(40, 10)[1].items()
        for key in grades
    ]
    file.write_text("\n".join(lines), encoding="utf-8")


def run(cli: Cli, folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the page, at the rate at which a tiny model learns."""
    if words[0] == "adapt":
        words += ["--epochs", "8", "--output", str(folder / "model")]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env={
            **os.environ,
            **cli.environment,
            "EMBEDWORKER_CACHE_DIR": str(folder / "cache" / "models"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
