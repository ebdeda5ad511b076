"""``embedworker eval`` on a real server: what it measures is what the database answers.

The tests with the deterministic encoder work the expected ranking out from its vectors. The one
marked ``data`` compares the whole way with plain sentence-transformers with the same real model.
"""

import hashlib
import json
import logging
import random
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fix_cli import Cli, embedworker
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_drain import drain_url
from fix_evaluation import data_sets

from embedworker.cli.app import main
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.model.catalog import BUNDLED_MODEL, TESTING_MODEL
from embedworker.model.cpu import cpu_quota
from embedworker.model.testing import hash_vector
from embedworker.search.beir import Collection, read_beir
from embedworker.search.measures import means, measured
from embedworker.settings.worker import DEFAULT_INDEX_AFTER_ROWS

EXACT_TOLERANCE = 0.002  # of nDCG@10, comparing all vectors
INDEX_TOLERANCE = 0.005  # of nDCG@10, by HNSW
SAME_VECTOR = 1e-5  # 1 - cosine, where only the order of summing differs
ASKED = 150  # questions of a set
OTHERS = 50  # documents compared beside those that are right answers
SCHEMA = "select to_regnamespace('embedworker_eval') is not null"
LONG = 900  # seconds, for a real model on a busy machine


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


def dense(connection: Connection, *paths: str) -> str:
    """Settings that compare by vectors alone, whether or not this version can weigh words."""
    (known,) = fetch_one(connection.execute(statement("evaluate_has_lexical")))
    return ",".join(f"{path}+lexical=0" if known else path for path in paths)


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
    assert found["path"] == "exact"
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    assert fetch_one(connection.execute(SCHEMA)) == (False,)  # nothing is left behind


@pytest.mark.slow
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
    assert (exact["path"], hnsw["path"]) == ("exact", "hnsw")
    # A question remembered from the setting before would take no time at the model.
    assert min(exact["p50_ms"], hnsw["p50_ms"]) >= 100
    assert hnsw["difference"].keys() == hnsw["measures"].keys()
    for name, value in hnsw["difference"].items():
        assert value["difference"] == pytest.approx(
            hnsw["measures"][name] - exact["measures"][name]
        )
    assert "difference" not in exact


@pytest.mark.slow
def test_a_run_goes_on_after_the_server_was_lost(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    """An evaluation may take a quarter of an hour; each lost connection used to end it."""
    collection = write_set(tmp_path / "small", questions=150)
    documents = [hash_vector(f"passage: {text}") for text in collection.documents.values()]
    questions = [hash_vector(f"query: {text}") for text in collection.questions.values()]
    ended = threading.Event()
    lost: list[str] = []

    def end_sessions() -> None:
        for stage in ("embedded", "asked", "asked"):
            while connection.execute(STAGES[stage]).fetchone() is None:
                if ended.wait(0.01):
                    return
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            lost.append(stage)
            ended.wait(1.0)

    ending = threading.Thread(target=end_sessions)
    ending.start()
    try:
        report = cli.json("eval", str(tmp_path / "small"), "--compare", dense(connection, "exact"))
    finally:
        ended.set()
        ending.join()
    assert lost == ["embedded", "asked", "asked"]
    assert report["settings"][0]["measures"] == pytest.approx(
        ranked(collection, np.array(questions), np.array(documents))
    )
    assert fetch_one(connection.execute(SCHEMA)) == (False,)


# Sessions of the command while it waits for the documents, and while it asks the questions.
STAGES = {
    "embedded": (
        "select from pg_stat_activity where datname = current_database()"
        " and application_name = 'embedworker cli' and to_regclass('embedworker_eval.document')"
        " is not null and query like '%embedworker_eval%'"
    ),
    "asked": (
        "select from pg_stat_activity where datname = current_database()"
        " and application_name = 'embedworker cli' and query like '%embed.search%'"
    ),
}


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


@pytest.mark.slow
def test_a_quick_evaluation_ranks_alike(cli: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "small", questions=3)
    arguments = ["eval", str(tmp_path / "small"), "--compare", "lexical=0,exact+lexical=0.2"]
    usual = cli.json(*arguments)
    quick = cli.json(*arguments, "--quick")
    for one_way, other in zip(usual["settings"], quick["settings"], strict=True):
        assert one_way["measures"].pop("recall@100") > 0
        assert other["measures"] == one_way["measures"]
        assert other["by_question"] == one_way["by_question"]
        mean = sum(other["by_question"].values()) / 3
        assert other["measures"]["nDCG@10"] == pytest.approx(mean)
        assert (other["p50_ms"], other["p95_ms"]) == (None, None)


@pytest.mark.slow
def test_a_table_for_people_names_what_was_measured(cli: Cli, tmp_path: Path) -> None:
    write_set(tmp_path / "small")
    said = cli.ok("eval", str(tmp_path / "small"), "-k", "5", "--quick")
    assert "small: 8 questions, 30 passages" in said
    assert TESTING_MODEL in said
    assert "nDCG@5" in said
    assert "nDCG@10" not in said  # five rows cannot tell
    *_, measured, errors = said.splitlines()
    assert measured.split()[-2:] == ["-", "-"]  # nothing was timed
    assert errors.split()[:2] == ["standard", "error"]


@pytest.mark.slow
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
    assert fetch_one(connection.execute(SCHEMA)) == (False,)


def test_a_schema_of_somebody_else_is_left_alone(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    connection.execute("create schema embedworker_eval")
    connection.execute("create table embedworker_eval.document (mine text)")
    assert "no evaluation made" in cli.refused("eval", str(tmp_path / "small"))
    assert fetch_one(connection.execute("select count(*) from embedworker_eval.document")) == (0,)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said_and_nothing_stays(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    connection.execute("select embed.add_model('/nowhere/model', 384, 512, '', '')")
    asked = "eval", str(tmp_path / "small")
    for said in (
        cli.refused(*asked, "--model", "/nowhere/model"),
        cli.refused(*asked, EMBEDWORKER_MODEL="/nowhere/model"),
    ):
        assert "the documents cannot be embedded" in said
        assert "/nowhere/model" in said
    assert fetch_one(connection.execute(SCHEMA)) == (False,)


@pytest.mark.slow
def test_documents_that_were_given_up_are_no_silent_misses(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    write_set(folder)
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace("4번째 글", "4번째 글 <<fail>>"), "utf-8")
    said = cli.refused("eval", str(folder), EMBEDWORKER_MAX_ATTEMPTS="1")
    assert "of 30 documents 0 are not embedded yet and 3 were given up" in said
    assert "<<fail>>" in said


# One's own questions

BOOKS = range(1, 21)
SHELF = '"Book shelf"'
SEVERAL = "in a column"  # the second name under which the table is enabled


@pytest.fixture(scope="module")
def library(server: Cluster, hash_template: str) -> Iterator[Cli]:
    """A database of somebody, where a table is enabled and embedded; no test changes it.

    Its key has two columns that have to be quoted.
    """
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as url:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with connect(url) as connection:
            set_up_loopback(connection)
            connection.execute(
                'create table "Book shelf" ("Room" uuid, "No." int, content text, v vector(384),'
                ' embed_place int, primary key ("Room", "No."))'
            )
            connection.execute(
                'insert into "Book shelf"'
                " select md5(n::text)::uuid, n, n || %s from generate_series(1, 20) n",
                [" 번째 책"],
            )
            connection.execute("select embed.enable('\"Book shelf\"', array['content'])")
            connection.execute(
                "select embed.enable('\"Book shelf\"', array['content'], into_column => 'v',"
                " name => %s)",
                [SEVERAL],
            )
            connection.execute("create table later (id int primary key, content text)")
            connection.execute("select embed.enable('later', array['content'])")
            connection.execute("create table ordinary (id int primary key, content text)")
        assert drain_url(url) == []
        with connect(url) as connection:  # as before a worker came
            connection.execute(
                "update embed.source_state set fingerprint = null where source ="
                " (select id from embed.source where name = 'later')"
            )
        yield Cli(url)


def key(number: int) -> str:
    return str(uuid.UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()))


def by_meaning() -> list[int]:
    """The books as the question 책? finds them."""
    documents = np.array([hash_vector(f"passage: {n} 번째 책") for n in BOOKS])
    return [int(n) for n in nearest(hash_vector("query: 책?"), documents, [*map(str, BOOKS)], 20)]


def write_own(file: Path, *lines: dict[str, Any]) -> list[str]:
    """The arguments of an evaluation with these questions."""
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return ["eval", "--questions", str(file), "--table", SHELF]


def test_own_questions_find_the_rows_of_their_keys(library: Cli, tmp_path: Path) -> None:
    first, second, *_, last = by_meaning()
    arguments = write_own(
        tmp_path / "own.jsonl",
        # Upper-case digits and a number as text: what counts is the value the table has.
        {"question": "책?", "key": {"Room": key(first).upper(), "No.": first}},
        {"question": "책?", "key": [key(second), str(second)]},
        {"question": "책? ", "key": [key(last), last]},
    )

    report = library.json(*arguments, "--compare", "exact+lexical=0")

    assert (report["collection"], report["questions"]) == ("own.jsonl", 1)
    measures = report["settings"][0]["measures"]
    assert measures["MRR@10"] == 1.0
    assert measures["nDCG@1"] == 1.0
    assert measures["recall@10"] == pytest.approx(2 / 3)
    assert measures["recall@100"] == 1.0
    assert report["missed"] == []
    assert report["table"].endswith(SHELF)  # and what was measured is what was asked for


def test_judgements_are_imported_and_asked_when_there_are_enough(
    library: Cli, tmp_path: Path
) -> None:
    lines = [{"question": f"{n} 번째", "key": [key(n), n]} for n in BOOKS]
    write_own(tmp_path / "own.jsonl", *lines, lines[0])
    done = library.ok("judgements", "import", SHELF, str(tmp_path / "own.jsonl"))
    assert done.startswith("20 judgements of 20 questions")
    arguments = ["eval", "--from-judgements", "--table", SHELF, "--quick", "--lexical", "100"]
    said = library.refused(*arguments)
    assert "20 judged questions, too few to conclude from: at least 30" in said

    more = [{"question": f"{n} 번째 책", "key": [key(n), n]} for n in BOOKS]
    wrong = tmp_path / "wrong.jsonl"
    write_own(wrong, *more, {"question": "없는 책", "key": [key(1), 99]})
    assert "no rows with these keys" in library.refused("judgements", "import", SHELF, str(wrong))
    assert "20 judged questions" in library.refused(*arguments)  # the others were not kept
    write_own(tmp_path / "more.jsonl", *more)
    library.ok("judgements", "import", SHELF, str(tmp_path / "more.jsonl"))
    report = library.json(*arguments)
    (setting,) = report["settings"]
    assert (report["questions"], setting["measures"]["nDCG@1"]) == (40, 1.0)
    assert setting["standard_error"]["nDCG@1"] == 0


@pytest.mark.parametrize("name", [None, SEVERAL])
@pytest.mark.slow
def test_own_questions_compare_settings(library: Cli, tmp_path: Path, name: str | None) -> None:
    """By words each number finds its book; its vector knows no numbers."""
    arguments = write_own(
        tmp_path / "own.jsonl",
        *({"question": f"{n} 번째", "key": [key(n), n]} for n in (11, 13, 17)),
    )
    arguments += ["--name", name] if name else []
    report = library.json(*arguments, "--compare", "lexical=0,lexical=100,default", "--quick")
    dense, by_words, default = report["settings"]
    assert by_words["measures"]["nDCG@1"] == 1.0
    assert dense["measures"]["nDCG@1"] < 1.0
    assert set(by_words["by_question"].values()) == {1.0}
    gained = [1 - value for value in dense["by_question"].values()]
    assert by_words["difference"]["nDCG@10"] == {
        "difference": pytest.approx(np.mean(gained)),
        "standard_error": pytest.approx(np.std(gained, ddof=1) / len(gained) ** 0.5),
    }
    assert default["difference"].keys() == by_words["difference"].keys()


def test_questions_without_a_right_row_are_listed(library: Cli, tmp_path: Path) -> None:
    last = by_meaning()[-1]
    arguments = write_own(tmp_path / "own.jsonl", {"question": "책?", "key": [key(last), last]})
    said = library.ok(*arguments, "--compare", "exact+lexical=0,exact+lexical=100")
    assert said.splitlines()[-2:] == ["no right row among the first 10:", "  책?"]
    assert "standard error" in said


@pytest.mark.slow
def test_rows_that_wait_are_no_silent_misses(
    cli: Cli, connection: Connection, tmp_path: Path
) -> None:
    connection.execute("create table note (id int primary key, content text)")
    connection.execute("select embed.enable('note', array['content'])")
    connection.execute("insert into note values (1, '하나')")
    assert drain_url(cli.url) == []
    connection.execute("insert into note values (2, '둘')")
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "하나?", "key": 1}', encoding="utf-8")
    said = cli("eval", "--questions", str(file), "--table", "note", "--json", "--quick")
    assert said.returncode == 0, said.stderr
    assert "1 of 2 rows of note wait to be embedded and are not found" in said.stderr
    assert json.loads(said.stdout)["settings"][0]["measures"]["MRR@10"] == 1.0


# What is refused

Refused = Callable[..., str]


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Refused]:
    """``refused(url, "eval", …)``: what a command says that has to fail; in this process."""
    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger("embedworker").level

    def run(url: str, *arguments: str, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["embedworker", *arguments])
        monkeypatch.setenv("EMBEDWORKER_DATABASE_URL", url)
        monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert (left.value.code, said.out) == (code, "")
        assert said.err.startswith("error: ")
        return said.err

    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("embedworker").setLevel(level)


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
def test_wrong_use_is_said_in_one_line(
    library: Cli, refused: Refused, arguments: list[str], said: str
) -> None:
    message = refused(library.url, "eval", *arguments, code=2)
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_folder_that_lacks_a_file_is_refused(
    library: Cli, refused: Refused, tmp_path: Path, name: str
) -> None:
    write_set(tmp_path / "small")
    (tmp_path / "small" / name).unlink()
    assert name in refused(library.url, "eval", str(tmp_path / "small"), code=2)
    with connect(library.url) as connection:
        # Found out before anything is made.
        assert fetch_one(connection.execute(SCHEMA)) == (False,)


def test_a_judgement_of_an_unknown_document_is_refused(
    library: Cli, refused: Refused, tmp_path: Path
) -> None:
    write_set(tmp_path / "small")
    with (tmp_path / "small" / "qrels.tsv").open("a", encoding="utf-8") as file:
        file.write("\nq1\tnowhere\t1")
    said = refused(library.url, "eval", str(tmp_path / "small"), code=2)
    assert "the document 'nowhere' is not in corpus.jsonl" in said


def test_keys_that_no_row_has_are_refused(library: Cli, refused: Refused, tmp_path: Path) -> None:
    arguments = write_own(
        tmp_path / "own.jsonl",
        {"question": "책?", "key": [key(1), 1]},
        {"question": "책?", "key": [key(1), 2]},
    )
    said = refused(library.url, *arguments, code=1)
    assert "has no rows with these keys" in said
    assert "own.jsonl, line 2" in said
    assert "line 1" not in said


def test_a_key_that_its_type_does_not_read_is_refused(
    library: Cli, refused: Refused, tmp_path: Path
) -> None:
    arguments = write_own(tmp_path / "own.jsonl", {"question": "책?", "key": [key(1), "first"]})
    assert '"first"' in refused(library.url, *arguments, code=1)


@pytest.mark.parametrize("wrong", [7, [1], {"Room": "x"}, {"Room": "x", "No.": 1, "other": 2}])
def test_keys_of_another_form_are_explained(
    library: Cli, refused: Refused, tmp_path: Path, wrong: object
) -> None:
    arguments = write_own(tmp_path / "own.jsonl", {"question": "책?", "key": wrong})
    said = refused(library.url, *arguments, code=2)
    assert 'expected {"Room": …, "No.": …} or a list of the values' in said


def test_an_index_that_is_not_there_cannot_be_measured(
    library: Cli, refused: Refused, tmp_path: Path
) -> None:
    arguments = write_own(tmp_path / "own.jsonl", {"question": "책?", "key": [key(1), 1]})
    said = refused(library.url, *arguments, "--compare", "exact,hnsw", code=2)
    assert "have no HNSW index" in said


@pytest.mark.parametrize(
    ("table", "more", "said"),
    [
        ("later", [], "no worker has embedded the table yet"),
        ("ordinary", [], "ordinary is not enabled"),
        (SHELF, ["--name", "other"], "is not enabled under the name 'other'"),
        ("book_shelf", [], "did you mean"),
    ],
)
def test_a_table_that_cannot_be_asked_is_explained(
    library: Cli, refused: Refused, tmp_path: Path, table: str, more: list[str], said: str
) -> None:
    write_own(tmp_path / "own.jsonl", {"question": "책?", "key": 1})
    arguments = ["eval", "--questions", str(tmp_path / "own.jsonl"), "--table", table, *more]
    assert said in refused(library.url, *arguments, code=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        ("", "is empty; expected lines of"),
        ("책? 1", "line 1 is not JSON"),
        ('{"question": "책?"}', 'line 1: expected "key"'),
    ],
)
def test_a_file_of_questions_that_cannot_be_read_is_explained(
    library: Cli, refused: Refused, tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "own.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    arguments = ["eval", "--questions", str(file), "--table", SHELF]
    assert said in refused(library.url, *arguments, code=2)


# Against plain sentence-transformers


@pytest.fixture(scope="module")
def reference(bundled_model: Path) -> Any:
    """Plain sentence-transformers; knows nothing of this project but the model's folder."""
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    encoder = SentenceTransformer(str(bundled_model), device="cpu")

    def encode(prefix: str, texts: Iterable[str]) -> Any:
        prefixed = [prefix + text for text in texts]
        # On a CPU small batches are quicker: less padding, and activations stay in the cache.
        return encoder.encode(prefixed, batch_size=8, normalize_embeddings=True)

    return encode


def sampled(collection: Collection, folder: Path) -> tuple[Collection, list[str]]:
    """Write the set with ``ASKED`` of its questions; also return the documents to compare.

    These are what the questions are judged by, and ``OTHERS`` of the rest. A set that is large
    enough for an index keeps all the other documents, too: with fewer the index would lose less.
    """
    chance = random.Random(20260101)
    numbers = sorted(collection.questions)
    asked = set(chance.sample(numbers, min(ASKED, len(numbers))))
    judged = [
        (question, document, grade)
        for question in sorted(asked)
        for document, grade in collection.relevance[question].items()
    ]
    compared = {document for _, document, _ in judged}
    rest = sorted(collection.documents.keys() - compared)
    compared.update(chance.sample(rest, min(OTHERS, len(rest))))
    kept = collection.documents.keys()
    if len(kept) < DEFAULT_INDEX_AFTER_ROWS:
        kept = kept & compared
    folder.mkdir()
    for name, texts in (
        ("corpus", {n: text for n, text in collection.documents.items() if n in kept}),
        ("queries", {n: text for n, text in collection.questions.items() if n in asked}),
    ):
        lines = [json.dumps({"_id": number, "text": text}) for number, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lines = [f"{question}\t{document}\t{grade}" for question, document, grade in judged]
    (folder / "qrels.tsv").write_text("\n".join(lines), encoding="utf-8")
    return read_beir(folder), sorted(compared)


@pytest.mark.data
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("folder", data_sets())
def test_the_database_ranks_as_well_as_plain_sentence_transformers(
    database: str, connection: Connection, reference: Any, tmp_path: Path, folder: Path
) -> None:
    """A sample of the questions; ``benchmarks/quality.py`` asks them all.

    Every vector that the reference makes must be the one in the database. So the other documents,
    which are wrong answers all, can be compared by the vectors of the database.
    """
    collection, compared = sampled(read_beir(folder), tmp_path / "set")
    connection.execute("select embed.use_model(%s)", [BUNDLED_MODEL])  # or another is loaded, too

    said = embedworker(
        *("eval", str(tmp_path / "set"), "--model", BUNDLED_MODEL, "--no-chunk", "--json"),
        *("--compare", "exact+lexical=0,hnsw+lexical=0,default", "--quick", "--keep"),
        timeout=LONG,
        EMBEDWORKER_DATABASE_URL=database,
        EMBEDWORKER_DTYPE="float32",
        EMBEDWORKER_QUERY_THREADS=str(cpu_quota()),  # nothing else runs meanwhile
    )

    assert said.returncode == 0, said.stderr
    exact, hnsw, default = json.loads(said.stdout)["settings"]
    assert (exact["path"], hnsw["path"]) == ("exact", "hnsw")
    stored = dict(
        connection.execute("select id, embedding::real[] from embedworker_eval.document_embedding")
    )
    assert stored.keys() == collection.documents.keys()
    passages = reference("passage: ", [collection.documents[number] for number in compared])
    vectors = np.array([stored[number] for number in compared], np.float32)
    assert 1 - np.sum(passages * vectors, axis=1).min() < SAME_VECTOR
    stored.update(zip(compared, passages, strict=True))
    expected = ranked(
        collection,
        reference("query: ", collection.questions.values()),
        np.array([stored[number] for number in collection.documents], np.float32),
    )
    wanted = expected["nDCG@10"]
    assert exact["measures"]["nDCG@10"] == pytest.approx(wanted, abs=EXACT_TOLERANCE)
    assert hnsw["measures"]["nDCG@10"] == pytest.approx(wanted, abs=INDEX_TOLERANCE)
    assert default["measures"]["nDCG@10"] > wanted  # words are worth more than the index costs
