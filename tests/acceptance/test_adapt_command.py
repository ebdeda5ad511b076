"""``embedworker adapt`` from judgements in a file to the switch to the model that it made."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from judged_words import PROGRAM, pairs, shuffled
from tiny_models import save_model

from embedworker.database.connect import connect


@pytest.fixture
def connection(hash_database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(hash_database) as opened:
        yield opened


@pytest.fixture
def base(connection: psycopg.Connection[Any], tmp_path: Path) -> str:
    folder = str(save_model(tmp_path / "base"))
    connection.execute("select embed.add_model(%s, 32, 64)", [folder])
    return folder


def judged(
    cli: Cli, connection: psycopg.Connection[Any], base: str, file: Path, relevance: Any
) -> None:
    """A table of 40 words, and a file of 400 questions for them."""
    texts, _ = pairs(40, 10)
    connection.execute("create table article (id text primary key, body text)")
    with connection.cursor() as cursor:
        cursor.executemany("insert into article values (%s, %s)", list(texts.items()))
    connection.execute(
        "select embed.enable('article', array['body'], model => %s, words => false)", [base]
    )
    cli.ok("run", "--once")
    lines = [
        json.dumps({"question": question, "key": key})
        for question, grades in relevance.items()
        for key in grades
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert "400" in cli.ok("judgements", "import", "article", str(file))


def adapt(cli: Cli, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    output = ("--output", str(tmp_path / "model"))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "adapt", "article", "--epochs", "8", *output, *arguments],
        env={
            **os.environ,
            **cli.environment,
            "EMBEDWORKER_CACHE_DIR": str(tmp_path / "cache" / "models"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)  # it trains
def test_a_model_that_is_better_is_switched_to(
    hash_database: str, connection: psycopg.Connection[Any], base: str, tmp_path: Path
) -> None:
    cli = Cli(hash_database)
    judged(cli, connection, base, tmp_path / "questions.jsonl", pairs(40, 10)[1])
    said = adapt(cli, tmp_path, "--switch")
    assert said.returncode == 0, said.stdout + said.stderr
    made = str((tmp_path / "model").resolve())
    assert f"accepted: {made}" in said.stdout
    switch = connection.execute("select from_model, to_model, phase from embed.switch").fetchone()
    assert switch == (base, made, "filling")
    again = adapt(cli, tmp_path)
    assert again.returncode != 0
    assert "is there already; name another folder with --output" in again.stderr


@pytest.mark.timeout(300)  # it trains
def test_a_model_that_is_no_better_changes_nothing(
    hash_database: str, connection: psycopg.Connection[Any], base: str, tmp_path: Path
) -> None:
    cli = Cli(hash_database)
    judged(cli, connection, base, tmp_path / "questions.jsonl", shuffled(pairs(40, 10)[1]))
    said = adapt(cli, tmp_path, "--switch")
    assert said.returncode == 1, said.stdout + said.stderr
    assert "refused: held-out questions gain" in said.stderr
    assert not (tmp_path / "model").exists()
    assert connection.execute("select from embed.switch").fetchone() is None
    known = "select count(*) from embed.model where starts_with(name, '/')"
    assert connection.execute(known).fetchone() == (1,)
