"""``embedworker eval`` on a real server: what it measures is what the database answers.

The tests with the deterministic encoder work the expected ranking out from its vectors. The one
marked ``data`` holds the whole road against plain sentence-transformers with the same real model.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cli import Cli, embedworker

from worker.database.rows import one
from worker.database.statements import statement
from worker.model.catalog import BUNDLED_MODEL, TESTING_MODEL
from worker.model.testing import hash_vector
from worker.search.beir import Collection, read_beir
from worker.search.metrics import means, measured

DATA = Path(os.environ.get("EMBEDWORKER_EVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
EXACT_TOLERANCE = 0.002  # of nDCG@10, comparing all vectors
INDEX_TOLERANCE = 0.005  # of nDCG@10, by HNSW
SCHEMA = "select to_regnamespace('embedworker_eval') is not null"
LONG = 900  # seconds, for a real model on a busy machine

Connection = psycopg.Connection[Any]


def write_set(folder: Path, documents: int = 30, questions: int = 8) -> Collection:
    """A benchmark whose right answers the deterministic encoder finds now and then."""
    folder.mkdir(exist_ok=True)
    corpus = [
        {"_id": f"d{n}", "title": f"제목 {n}" if n % 2 else "", "text": f"{n}번째 글"}
        for n in range(documents)
    ]
    asked = [{"_id": f"q{n}", "text": f"{n}번째 글은?"} for n in range(questions)]
    qrels = [f"q{n}\td{(n * step) % documents}\t1" for n in range(questions) for step in (1, 3, 7)]
    for name, entries in (("corpus", corpus), ("queries", asked)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    header = "query-id\tcorpus-id\tscore"
    (folder / "qrels.tsv").write_text("\n".join([header, *qrels]), encoding="utf-8")
    return read_beir(folder)


def nearest(question: Any, documents: Any, ids: Sequence[str], k: int) -> dict[str, float]:
    """The first ``k`` by cosine; vectors of length 1, shapes (n,) and (count, n)."""
    cosines = documents @ question
    return {ids[place]: float(cosines[place]) for place in np.argsort(-cosines)[:k]}


def ranked(collection: Collection, questions: Any, documents: Any) -> dict[str, float]:
    """What the measures are for vectors made without a database."""
    ids = list(collection.documents)
    runs = [
        {
            number: nearest(question, documents, ids, k)
            for number, question in zip(collection.questions, questions, strict=True)
        }
        for k in (10, 100)
    ]
    return means(measured(collection.relevance, runs[0], runs[1], 10))


def dense(connection: Connection, *roads: str) -> str:
    """Settings that compare by vectors alone, whether or not this version can weigh words."""
    (known,) = one(connection.execute(statement("evaluate_has_lexical")))
    return ",".join(f"{road}+lexical=0" if known else road for road in roads)


def test_measures_are_those_of_the_vectors(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    collection = write_set(tmp_path / "small")
    documents = [hash_vector(f"passage: {text}") for text in collection.documents.values()]
    questions = [hash_vector(f"query: {text}") for text in collection.questions.values()]
    expected = ranked(collection, np.array(questions), np.array(documents))
    assert 0 < expected["nDCG@10"] < 1  # or the test could not tell right from wrong

    report = cli.json("eval", str(tmp_path / "small"), "--compare", dense(connection, "exact"))

    assert (report["collection"], report["questions"], report["passages"]) == ("small", 8, 30)
    assert (report["k"], report["model"]) == (10, TESTING_MODEL)
    assert report["fingerprint"]["query_prefix"] == "query: "
    (found,) = report["settings"]
    assert found["measures"] == pytest.approx(expected)
    assert found["road"] == "exact"
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert one(connection.execute(SCHEMA)) == (False,)  # nothing is left behind


def test_settings_stand_side_by_side_each_timed_with_the_model(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small", questions=4)

    report = cli.json(
        "eval",
        str(tmp_path / "small"),
        "--compare",
        dense(connection, "exact", "hnsw"),
        EMBEDWORKER_TESTING_DELAY="0.1",
    )

    exact, hnsw = report["settings"]
    assert (exact["road"], hnsw["road"]) == ("exact", "hnsw")
    # A question remembered from the setting before would take no time at the model.
    assert min(exact["p50_ms"], hnsw["p50_ms"]) >= 100
    assert hnsw["difference"].keys() == hnsw["measures"].keys()
    for name, value in hnsw["difference"].items():
        assert value["difference"] == pytest.approx(
            hnsw["measures"][name] - exact["measures"][name]
        )
    assert "difference" not in exact


def test_the_weight_of_words_reaches_the_search(cli: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "small")
    settings = "lexical=0,exact+lexical=100,default"
    report = cli.json("eval", str(tmp_path / "small"), "--lexical", "0", "--compare", settings)
    dense, by_words, usual = report["settings"]
    assert [s["setting"] for s in report["settings"]] == settings.split(",")
    # Each question has the words of one of its right documents, and their vectors know no words.
    assert by_words["measures"]["nDCG@1"] == 1.0
    assert dense["measures"]["nDCG@1"] < 1.0
    assert usual["measures"] != dense["measures"]  # the table's own weight, not that of --lexical


def test_a_table_for_people_names_what_was_measured(cli: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "small")
    said = cli.ok("eval", str(tmp_path / "small"), "-k", "5")
    assert "small: 8 questions, 30 passages" in said
    assert TESTING_MODEL in said
    assert "nDCG@5" in said
    assert "nDCG@10" not in said  # five rows cannot tell


def test_a_kept_table_can_be_searched_and_goes_with_the_next_evaluation(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    said = cli("eval", str(tmp_path / "small"), "--keep")
    assert said.returncode == 0, said.stderr
    assert "kept: embedworker_eval.document" in said.stderr
    with cli.worker():
        assert len(cli.json("search", "embedworker_eval.document", "3번째 글은?", "-k", "2")) == 2

    write_set(tmp_path / "other", documents=5, questions=2)
    assert cli.json("eval", str(tmp_path / "other"))["passages"] == 5
    assert one(connection.execute(SCHEMA)) == (False,)


def test_a_schema_of_somebody_else_is_left_alone(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    connection.execute("create schema embedworker_eval")
    connection.execute("create table embedworker_eval.document (mine text)")
    assert "no evaluation made" in cli.refused("eval", str(tmp_path / "small"))
    assert one(connection.execute("select count(*) from embedworker_eval.document")) == (0,)


def test_a_model_that_cannot_be_loaded_is_said_and_nothing_stays(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    connection.execute("select embed.add_model('/nowhere/model', 384, 512, '', '')")
    said = cli.refused("eval", str(tmp_path / "small"), "--model", "/nowhere/model")
    assert "the documents cannot be embedded" in said
    assert "/nowhere/model" in said
    assert one(connection.execute(SCHEMA)) == (False,)


def test_documents_that_were_given_up_are_no_silent_misses(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    write_set(folder)
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace("4번째 글", "4번째 글 <<fail>>"), "utf-8")
    said = cli.refused("eval", str(folder), EMBEDWORKER_MAX_ATTEMPTS="1")
    assert "of 30 documents 0 are not embedded yet and 3 were given up" in said
    assert "<<fail>>" in said


# One's own questions


@pytest.fixture
def shelf(connection: Connection, cli: Cli) -> str:
    """An embedded table with a key of two columns that have to be quoted."""
    connection.execute(
        'create table "Book shelf" ("Room" uuid, "No." int, content text,'
        ' embed_place int, primary key ("Room", "No."))'
    )
    connection.execute(
        'insert into "Book shelf"'
        " select md5(n::text)::uuid, n, n || %s from generate_series(1, 20) n",
        [" 번째 책"],
    )
    connection.execute("select embed.enable('\"Book shelf\"', array['content'])")
    cli.ok("run", "--once")
    return '"Book shelf"'


def key(connection: Connection, number: int) -> str:
    (found,) = one(connection.execute("select md5(%s)::uuid::text", [str(number)]))
    return str(found)


def test_own_questions_find_the_rows_of_their_keys(
    cli: Cli, connection: Connection, shelf: str, tmp_path: Path
) -> None:
    numbers = range(1, 21)
    documents = np.array([hash_vector(f"passage: {n} 번째 책") for n in numbers])
    best = nearest(hash_vector("query: 책?"), documents, [str(n) for n in numbers], 20)
    first, second, *_, last = map(int, best)
    lines = [
        # Upper-case digits and a number as text: what counts is the value the table has.
        {"question": "책?", "key": {"Room": key(connection, first).upper(), "No.": first}},
        {"question": "책?", "key": [key(connection, second), str(second)]},
        {"question": "책? ", "key": [key(connection, last), last]},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = dense(connection, "exact")

    report = cli.json("eval", "--questions", str(file), "--table", shelf, "--compare", settings)

    assert (report["collection"], report["questions"]) == ("own.jsonl", 1)
    measures = report["settings"][0]["measures"]
    assert measures["MRR@10"] == 1.0
    assert measures["nDCG@1"] == 1.0
    assert measures["recall@10"] == pytest.approx(2 / 3)
    assert measures["recall@100"] == 1.0
    assert report["missed"] == []


def test_questions_without_a_right_row_are_listed(
    cli: Cli, connection: Connection, shelf: str, tmp_path: Path
) -> None:
    documents = np.array([hash_vector(f"passage: {n} 번째 책") for n in range(1, 21)])
    best = nearest(hash_vector("query: 책?"), documents, [str(n) for n in range(1, 21)], 20)
    last = int(list(best)[-1])
    file = tmp_path / "own.jsonl"
    line = {"question": "책?", "key": [key(connection, last), last]}
    file.write_text(json.dumps(line), encoding="utf-8")
    settings = dense(connection, "exact")
    said = cli.ok("eval", "--questions", str(file), "--table", shelf, "--compare", settings)
    assert said.splitlines()[-2:] == ["no right row among the first 10:", "  책?"]


def test_keys_that_no_row_has_are_refused(
    cli: Cli, connection: Connection, shelf: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    line = {"question": "책?", "key": [key(connection, 1), 2]}
    file.write_text(json.dumps(line), encoding="utf-8")
    said = cli.refused("eval", "--questions", str(file), "--table", shelf)
    assert "has no rows with these keys" in said
    assert "own.jsonl, line 1" in said


@pytest.mark.parametrize("wrong", [7, [1], {"Room": "x"}, {"Room": "x", "No.": 1, "other": 2}])
def test_keys_of_another_form_are_explained(
    cli: Cli, shelf: str, tmp_path: Path, wrong: object
) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"question": "책?", "key": wrong}), encoding="utf-8")
    said = cli.refused("eval", "--questions", str(file), "--table", shelf, code=2)
    assert 'expected {"Room": …, "No.": …} or a list of the values' in said


def test_an_index_that_is_not_there_cannot_be_measured(
    cli: Cli, connection: Connection, shelf: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    line = {"question": "책?", "key": [key(connection, 1), 1]}
    file.write_text(json.dumps(line), encoding="utf-8")
    arguments = ["eval", "--questions", str(file), "--table", shelf, "--compare", "exact,hnsw"]
    assert "have no HNSW index" in cli.refused(*arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either DIR, or --questions"),
        (["--questions", "f"], "either DIR, or --questions"),
        (["d", "--questions", "f", "--table", "t"], "either DIR, or --questions"),
        (["--questions", "f", "--table", "t", "--keep"], "go with DIR"),
        (["d", "--name", "n"], "--name goes with --table"),
        (["d", "--compare", "exact,fast"], "the setting 'fast' is not known"),
        (["d", "--compare", "exact,exact"], "are the same"),
        (["d", "--compare", "lexical=much"], "lexical is 'much'; expected a number"),
        (["d"], "d is not a folder"),
    ],
)
def test_wrong_use_is_said_in_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    assert said in cli.refused("eval", *arguments, code=2)


# Against plain sentence-transformers


def _sets() -> list[Any]:
    """The folders to hold the road against; without any, one test that is skipped loudly."""
    missing = pytest.mark.skip(
        reason="THE RETRIEVAL SETS ARE NOT HERE, SO QUALITY IS NOT TESTED: expected folders in "
        f"BEIR's format in {DATA}; name another place in EMBEDWORKER_EVAL_DATA"
    )
    folders = sorted(file.parent for file in DATA.glob("*/corpus.jsonl"))
    return [pytest.param(f, id=f.name) for f in folders] or [pytest.param(DATA, marks=missing)]


@pytest.mark.data
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("folder", _sets())
def test_the_database_ranks_as_well_as_plain_sentence_transformers(
    database: str, connection: Connection, bundled_model: Path, folder: Path
) -> None:
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    collection = read_beir(folder)
    encoder = SentenceTransformer(str(bundled_model))

    def encode(prefix: str, texts: dict[str, str]) -> Any:
        return encoder.encode([prefix + text for text in texts.values()], normalize_embeddings=True)

    expected = ranked(
        collection,
        encode("query: ", collection.questions),
        encode("passage: ", collection.documents),
    )
    said = embedworker(
        *("eval", str(folder), "--model", BUNDLED_MODEL, "--no-chunk", "--json"),
        *("--compare", dense(connection, "exact", "hnsw")),
        timeout=LONG,
        EMBEDWORKER_DATABASE_URL=database,
    )
    assert said.returncode == 0, said.stderr

    exact, hnsw = json.loads(said.stdout)["settings"]
    assert (exact["road"], hnsw["road"]) == ("exact", "hnsw")
    assert exact["measures"]["nDCG@10"] == pytest.approx(expected["nDCG@10"], abs=EXACT_TOLERANCE)
    assert hnsw["measures"]["nDCG@10"] == pytest.approx(expected["nDCG@10"], abs=INDEX_TOLERANCE)
