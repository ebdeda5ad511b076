"""Texts longer than the model's window, with a real model: split, counted, found where they answer.

How much it is worth on larger sets is what ``benchmarks/long_texts.py`` measures.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_evaluation import data_set
from fix_models import number_format

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.demo.material import articles
from embedworker.model import BUNDLED_MODEL, Encoder
from embedworker.service.worker import Worker

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_texts.py"
TOKENS = 900  # of a joined text at least; the window has 512
LONG = 900  # seconds, for a real model on a busy machine
# Found at the first place: 17 of 29 articles behind the window by passages, 9 by beginnings of
# texts. (A passage holds nine articles, so the title of one is not all that it is about.)
MANY = 0.5
FEW = 0.4

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(LONG)]


@dataclass(frozen=True)
class Place:
    """Where an article is: in which row, which characters, and whether behind the window."""

    row: int
    start: int
    end: int
    behind: bool


@dataclass(frozen=True)
class Shelf:
    """The sample articles put together to long texts, and questions about each."""

    texts: list[str]
    places: list[Place]
    questions: list[Any]  # vectors


@pytest.fixture(scope="module")
def shelf(bundled_encoder: Encoder) -> Shelf:
    """Articles in a seeded order, without their titles, which are the questions."""
    chosen = articles()
    random.Random(20260101).shuffle(chosen)
    texts = [""]
    places = []
    for article in chosen:
        if _tokens(bundled_encoder, texts[-1]) >= TOKENS:
            texts.append("")
        start = len(texts[-1]) + 2 if texts[-1] else 0
        behind = _tokens(bundled_encoder, texts[-1]) >= bundled_encoder.max_tokens
        texts[-1] += ("\n\n" if texts[-1] else "") + article.content
        places.append(Place(len(texts) - 1, start, len(texts[-1]), behind))
    vectors = bundled_encoder.encode_queries([article.title for article in chosen])
    return Shelf(texts, places, list(vectors))


def _tokens(encoder: Encoder, text: str) -> int:
    return encoder.tokenize_passages([text])[0].total


@pytest.fixture(scope="module")
def embedded(server: Cluster, template: str, shelf: Shelf) -> Iterator[Connection]:
    """One table, enabled twice: its texts cut, and split."""
    with new_database(server, template) as url, connect(url) as connection:
        connection.execute("select embed.use_model(%s)", [BUNDLED_MODEL])
        connection.execute("create table shelf (id int primary key, content text)")
        for name in ("cut", "split"):
            connection.execute(
                "select embed.enable('shelf', array['content'], name => %s, chunk => %s)",
                [name, name == "split"],
            )
        with connection.cursor() as cursor:
            cursor.executemany("insert into shelf values (%s, %s)", list(enumerate(shelf.texts)))
        chosen = settings.load(index_after_rows=10**9, dtype=number_format())
        assert Worker(url, chosen, lanes=["passages"]).run_once() == []
        yield connection


def test_what_was_cut_and_what_was_split_is_counted(embedded: Connection, shelf: Shelf) -> None:
    found = embedded.execute(
        "select name, rows, embedded, truncated, split from embed.status"
        " where source = 'shelf'::regclass order by name"
    ).fetchall()
    rows = len(shelf.texts)
    long = sum(any(p.behind for p in shelf.places if p.row == row) for row in range(rows))
    assert long >= 3
    assert found == [("cut", rows, rows, long, 0), ("split", rows, rows, 0, long)]


def test_an_answer_behind_the_window_is_found_and_shown(embedded: Connection, shelf: Shelf) -> None:
    behind = [number for number, place in enumerate(shelf.places) if place.behind]
    assert len(behind) >= 20
    right = {"cut": 0, "split": 0}
    shown = 0
    for number in behind:
        place = shelf.places[number]
        for name in right:
            ((row, start, end),) = embedded.execute(
                'select (s."row").id, s.passage_start, s.passage_end from embed.search('
                "null::shelf, %s::vector, k => 1, name => %s) s",
                [shelf.questions[number], name],
            ).fetchall()
            right[name] += row == place.row
            if name == "split" and row == place.row:
                shown += start < place.end and place.start < end
    assert right["split"] >= MANY * len(behind)
    assert shown >= 0.9 * right["split"]
    assert right["cut"] <= FEW * len(behind)


@pytest.mark.data
@pytest.mark.parametrize("folder", [data_set("gnome-help-ko")])
def test_splitting_loses_nothing_on_manuals(database: str, tmp_path: Path, folder: Path) -> None:
    """The longest pages of a manual and their questions, by the benchmark."""
    file = tmp_path / "found.json"
    done = subprocess.run(
        [
            *(sys.executable, str(BENCHMARK), str(folder)),
            *("--documents", "30", "--model", BUNDLED_MODEL, "--json", str(file)),
        ],
        env={
            **os.environ,
            "EMBEDWORKER_DATABASE_URL": database,
            "EMBEDWORKER_DTYPE": number_format(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {(r["setting"], r["group"]): r for r in json.loads(file.read_text("utf-8"))}
    assert len(found) == 4
    for result in found.values():
        assert result["questions"] >= 50
        assert result["passages"] > result["texts"]
        assert result["difference"] > -result["standard_error"], done.stdout
