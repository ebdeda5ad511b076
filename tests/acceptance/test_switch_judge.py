"""``embedworker switch judge`` measures what ``embedworker eval`` of each side does."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, embedworker
from fix_evaluation import data_set
from waiting import wait_until

from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.search.beir import read_beir

LONG = 900  # seconds, for a real model on a busy machine
ASKED = 40  # questions: the two commands ask them four times


def measured(cli: Cli, file: Path, name: str) -> float:
    """nDCG@10 of one side, by ``embedworker eval``."""
    asked = ("eval", "--questions", str(file), "--table", "passage", "--name", name, "--quick")
    return float(run(cli, *asked)["settings"][0]["measures"]["nDCG@10"])


def run(cli: Cli, *arguments: str) -> Any:
    """What a command that takes long prints for a program."""
    said = embedworker(*arguments, "--json", timeout=LONG, **cli.environment)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.mark.data
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("folder", [data_set("belebele-ko-ko")])
def test_the_paired_difference_is_that_of_eval(
    database: str,
    connection: psycopg.Connection[Any],
    bundled_model: Path,
    tmp_path: Path,
    folder: Path,
) -> None:
    """The other space: the same weights, questions and passages without a prefix."""
    cli = Cli(database)
    cli.environment["EMBEDWORKER_DTYPE"] = "float32"  # or each process chooses for itself, by times
    collection = read_beir(folder)
    asked = sorted(collection.questions)[:ASKED]
    documents = {number for question in asked for number in collection.relevance[question]}
    file = tmp_path / "questions.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"question": collection.questions[number], "key": document})
            for number in asked
            for document, grade in collection.relevance[number].items()
            if grade > 0
        ),
        encoding="utf-8",
    )
    connection.execute("select embed.use_model(%s)", [BUNDLED_MODEL])
    connection.execute("select embed.add_model(%s, 384)", [str(bundled_model)])
    connection.execute("create table passage (id text primary key, body text)")
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into passage values (%s, %s)",
            [(number, collection.documents[number]) for number in sorted(documents)],
        )
    connection.execute("select embed.enable('passage', '{body}')")
    with cli.worker():
        cli.ok("switch", "start", "passage", str(bundled_model))
        wait_until(
            lambda: connection.execute("select from embed.switch where phase = 'ready'").fetchall(),
            timeout=LONG,
            what="the vectors of both sides",
        )
        judged = run(cli, "switch", "judge", "passage", "--questions", str(file))
        old, new = (measured(cli, file, name) for name in ("passage", "passage_next"))
        assert judged["questions"] == len(asked)
        assert judged["difference"] == pytest.approx(new - old, abs=1e-6)
        assert judged["standard_error"] > 0
        print(f"nDCG@10 {old:.4f} -> {new:.4f}, judged {judged['difference']:+.4f}")
