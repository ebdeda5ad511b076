"""Reading benchmarks and a person's questions, and what is said of files that are wrong."""

from pathlib import Path

import pytest

from embedworker.errors import ConfigurationError
from embedworker.search.beir import OwnQuestion, read_beir, read_questions

CORPUS = """\
{"_id": "1", "title": "제목", "text": "본문"}
{"_id": "2", "title": "", "text": "  본문만 "}
{"_id": "3", "text": "없는 제목"}
{"_id": "4", "title": "제목만", "text": ""}
"""
QUERIES = """\
{"_id": "q1", "text": "무엇?"}
{"_id": "q2", "text": "누구?"}
"""
QRELS = "query-id\tcorpus-id\tscore\nq1\t1\t1\nq1\t2\t0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    made.mkdir()
    (made / "corpus.jsonl").write_text(CORPUS, encoding="utf-8")
    (made / "queries.jsonl").write_text(QUERIES, encoding="utf-8")
    (made / "qrels.tsv").write_text(QRELS, encoding="utf-8")
    return made


def test_text_is_title_a_space_and_text_without_blanks_around(folder: Path) -> None:
    assert read_beir(folder).documents == {
        "1": "제목 본문",
        "2": "본문만",
        "3": "없는 제목",
        "4": "제목만",
    }


def test_only_judged_questions_are_asked(folder: Path) -> None:
    collection = read_beir(folder)
    assert collection.name == "set"
    assert collection.questions == {"q1": "무엇?"}
    assert collection.relevance == {"q1": {"1": 1, "2": 0}}


def test_judgements_may_lie_where_beir_puts_them(folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")
    assert read_beir(folder).relevance == {"q1": {"1": 1, "2": 0}}


def test_a_first_line_that_is_no_header_is_not_lost(folder: Path) -> None:
    (folder / "qrels.tsv").write_text("q2\t3\t1\r\nq1\t1\t2\r\n", encoding="utf-8")
    assert read_beir(folder).relevance == {"q2": {"3": 1}, "q1": {"1": 2}}


def test_line_separators_inside_a_text_do_not_end_the_line(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "5", "title": "", "text": "한 줄\u2028두 줄\x85세 줄"}\n\n')
    assert read_beir(folder).documents["5"] == "한 줄\u2028두 줄\x85세 줄"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("corpus.jsonl", "{", r"corpus\.jsonl, line 1 is not JSON"),
        ("corpus.jsonl", "[1]", r"line 1: expected an object"),
        ("corpus.jsonl", '\n{"_id": "1"}', r'line 2: expected "text" with a text, got None'),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}', r'expected "_id" with a text, got 1'),
        ("corpus.jsonl", CORPUS + CORPUS, r"line 5: the id '1' is there already"),
        ("qrels.tsv", "header\nq1 1 1", r"line 2: expected question, document and a whole number"),
        ("qrels.tsv", "header\nq1\t1\thigh", r"line 2: expected question"),
        ("qrels.tsv", "header\nq9\t1\t1", r"line 2: the question 'q9' is not in queries\.jsonl"),
        ("qrels.tsv", "header\nq1\t9\t1", r"line 2: the document '9' is not in corpus\.jsonl"),
        ("qrels.tsv", "header\n", r"holds no judgement"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(
    folder: Path, name: str, content: str, said: str
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        read_beir(folder)


def test_a_file_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "queries.jsonl").write_bytes(QUERIES.encode("euc-kr"))
    with pytest.raises(ConfigurationError, match=r"queries\.jsonl is not in UTF-8"):
        read_beir(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=name.replace(".", r"\.")):
        read_beir(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere is not a folder"):
        read_beir(tmp_path / "nowhere")


def test_own_questions_keep_the_key_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"question": " 첫째? ", "key": 7}\n\n{"question": "둘째?", "key": {"a": 1, "b": "x"}}\n',
        encoding="utf-8",
    )
    assert read_questions(file) == [
        OwnQuestion("첫째?", 7, f"{file}, line 1"),
        OwnQuestion("둘째?", {"a": 1, "b": "x"}, f"{file}, line 3"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question": "a"}', r'line 1: expected "key"'),
        ('{"question": "a", "key": null}', r'line 1: expected "key"'),
        ('{"key": 1}', r'line 1: expected "question"'),
        ('{"question": " ", "key": 1}', r"line 1: the question is blank"),
        ("", r"is empty; expected lines of"),
    ],
)
def test_own_questions_that_are_wrong_are_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        read_questions(file)
