"""embed.search takes out of a Korean question what all questions of its model have in common."""

from pathlib import Path

import numpy as np
import psycopg
import pytest
from fix_cli import Cli
from fix_database import Connection
from fix_vectors import VectorWriter, word_vector

from embedworker.database.connect import connect
from embedworker.database.migrate import migrate
from embedworker.model.catalog import BUNDLED_MODEL, TESTING_MODEL, catalog, korean_questions
from embedworker.model.factory import open_encoder

KOREAN, ENGLISH = "보일러 점검", "boiler check"
TEXTS = {1: "보일러 점검은 가을에", 2: "boiler check in autumn"}
MEAN = np.eye(2, 384, dtype=np.float32)[1]


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """Two articles with vectors, and the answers of two questions."""
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    connection.execute(
        "insert into article select * from unnest(%s::int[], %s::text[])",
        [list(TEXTS), list(TEXTS.values())],
    )
    vectors.embed("article")
    for question in (KOREAN, ENGLISH):
        vectors.know(question)
    return connection


def similarities(connection: Connection, question: str, more: str = "") -> dict[int, float]:
    query = f'select (s."row").id, s.similarity from embed.search(null::article, %s{more}) s'
    return dict(connection.execute(query.encode(), [question]).fetchall())


def cosines(question: str, share: float) -> dict[int, float]:
    asked = word_vector(question) - np.float32(share) * MEAN
    return {
        number: float(asked @ word_vector(text) / np.linalg.norm(asked))
        for number, text in TEXTS.items()
    }


def center(connection: Connection, share: float = 0.2) -> None:
    connection.execute(
        "select embed.center_questions(embed.default_model(), %s, %s)", [MEAN, share]
    )


def test_a_share_of_the_mean_is_subtracted_from_a_korean_question(article: Connection) -> None:
    assert similarities(article, KOREAN) == pytest.approx(cosines(KOREAN, 0), abs=1e-6)
    center(article)
    assert similarities(article, KOREAN) == pytest.approx(cosines(KOREAN, 0.2), abs=1e-6)
    assert cosines(KOREAN, 0.2) != pytest.approx(cosines(KOREAN, 0), abs=1e-3)
    # Questions in Latin letters, and by meaning alone, are as the model makes them.
    assert similarities(article, ENGLISH) == pytest.approx(cosines(ENGLISH, 0), abs=1e-6)
    by_meaning = similarities(article, KOREAN, ", lexical => 0")
    assert by_meaning == pytest.approx(cosines(KOREAN, 0), abs=1e-6)
    center(article, 0)
    assert similarities(article, KOREAN) == pytest.approx(cosines(KOREAN, 0), abs=1e-6)


def test_migrate_keeps_what_was_measured_here(database: str, article: Connection) -> None:
    offset = "select question_offset is null, vector_norm(question_offset::vector) from embed.model"
    shipped = catalog()[BUNDLED_MODEL].question_offset
    assert shipped is not None
    known = article.execute(f"{offset} where name = %s".encode(), [BUNDLED_MODEL]).fetchone()
    assert known == (False, pytest.approx(np.linalg.norm(shipped)))
    article.execute("select embed.center_questions(%s, %s, 0)", [BUNDLED_MODEL, MEAN])
    migrate(database)
    kept = article.execute(f"{offset} where name = %s".encode(), [BUNDLED_MODEL]).fetchone()
    assert kept == (False, 0)
    article.execute("select embed.add_model('one', 384)")
    article.execute("select embed.center_questions('one', %s)", [MEAN])
    article.execute("select embed.add_model('one', 2)")
    assert article.execute(f"{offset} where name = 'one'".encode()).fetchone() == (True, None)
    article.execute("delete from embed.model where name = 'one'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'nowhere', null", "model 'nowhere' is not known"),
        ("embed.default_model(), null", "the mean has no dimensions"),
        ("embed.default_model(), '[1,2]'", "the mean has 2 dimensions, but the model"),
        (
            "embed.default_model(), array_fill(1, array[384])::vector",
            "the mean has the length 19",
        ),
        ("embed.default_model(), array_fill(0.05, array[384])::vector, 1", "share is 1, expected"),
        ("embed.default_model(), array_fill(0.05, array[384])::vector, null", "share is null"),
    ],
)
def test_wrong_means_are_refused(connection: Connection, arguments: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message) as refused:
        connection.execute(f"select embed.center_questions({arguments})".encode())
    assert refused.value.sqlstate == "EW003"
    assert refused.value.diag.message_hint


def test_the_command_measures_a_model(
    hash_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    cli = Cli(hash_database)
    assert "the mean of 60 questions has the length" in cli.ok("models", "measure", TESTING_MODEL)
    expected = open_encoder(TESTING_MODEL).encode_queries(korean_questions()).mean(axis=0)
    with connect(hash_database) as connection:
        row = connection.execute(
            "select question_offset from embed.model where name = %s", [TESTING_MODEL]
        ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(0.2 * expected, abs=1e-6)
    file = tmp_path / "questions.txt"
    file.write_text("하나?\n둘?\n", "utf-8")
    refused = cli.refused("models", "measure", TESTING_MODEL, "--questions", str(file), code=2)
    assert "has 2 questions; give at least 50" in refused
    assert "does not know the model 'none'" in cli.refused("models", "measure", "none", code=2)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("bundled_model")
def test_the_mean_in_the_catalogue_is_that_of_its_model() -> None:
    encoder = open_encoder(BUNDLED_MODEL, dtype="float32")
    mean = encoder.encode_queries(korean_questions()).mean(axis=0)
    assert catalog()[BUNDLED_MODEL].question_offset == pytest.approx(0.2 * mean, abs=1e-3)
