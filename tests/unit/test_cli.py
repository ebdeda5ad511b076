"""The parts of the command line that need no database."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from embedworker.cli import screen as screen_module
from embedworker.cli.screen import Screen
from embedworker.cli.search import snippet, title_of
from embedworker.demo.choice import Preparation
from embedworker.demo.material import articles, script
from embedworker.figures import count, percent, size, span
from embedworker.model import BUNDLED_MODEL, DEFAULT_MODEL
from embedworker.model.availability import availability


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        ("1", "100 %"),
        ("1.0", "100 %"),
        ("0", "0.0 %"),
        ("0.9999", "99.9 %"),
        ("0.999", "99.9 %"),
        ("0.57", "57.0 %"),
        ("0.2989", "29.8 %"),
    ],
)
def test_coverage_is_cut_and_never_rounded_up(share: str, shown: str) -> None:
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (-1, "0 s"), (7.4, "7 s"), (119, "119 s"), (180, "3 min"), (7200, "2 h")],
)
def test_a_wait_is_shown_in_its_largest_unit(seconds: float | None, shown: str) -> None:
    assert span(None if seconds is None else timedelta(seconds=seconds)) == shown


def test_numbers_have_thousands_separators() -> None:
    assert [count(n) for n in (None, 0, 999, 1234567, 3.6)] == ["-", "0", "999", "1,234,567", "4"]
    assert [size(n) for n in (None, 999, 1000, 12345, 3_400_000_000)] == [
        "-",
        "999 B",
        "1.0 kB",
        "12 kB",
        "3.4 GB",
    ]


def test_a_snippet_leaves_the_title_out_and_fits() -> None:
    passage = "버스 시간\n402번 버스는   시청에서 강변 공원까지 다닙니다."
    assert snippet(passage, "버스 시간", 100) == "402번 버스는 시청에서 강변 공원까지 다닙니다."
    cut = snippet(passage, "버스 시간", 20)
    assert cut.endswith("…")
    assert cell_len(cut) <= 20
    assert snippet("버스 시간", "버스 시간", 100) == "버스 시간"


def test_a_row_is_called_by_its_title_column() -> None:
    assert title_of({"id": 1, "title": " A\n b "}) == "A b"
    assert title_of({"id": 1, "title": None, "name": "x"}) == "x"
    assert title_of({"id": 1, "content": "x"}) == ""


def test_nothing_the_demo_prints_is_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    narrow = Console(file=written, width=60, highlight=False, soft_wrap=True)
    monkeypatch.setattr(screen_module, "console", lambda: narrow)
    screen = Screen()
    screen.fact("model", "bundled:multilingual-e5-small, because " + "그 밖의 것은 없다 " * 9)
    screen.sql(f"select embed.query('{'긴 질문 ' * 20}') from demo.article where title = 'x'")
    screen.say("a sentence that is longer than a narrow terminal has room for, by some words")
    with screen.doing("step", "working") as say:
        say("worked")
    lines = written.getvalue().splitlines()
    assert max(cell_len(line) for line in lines) <= 60
    assert not any(line != line.rstrip() for line in lines)
    assert "…'" in written.getvalue()
    assert "working" not in written.getvalue()  # a pipe gets the result alone


def test_the_sample_articles_and_questions_belong_together() -> None:
    titles = [article.title for article in articles()]
    assert len(set(titles)) == len(titles) >= 60
    said = script()
    for expected in (said.korean, said.english_to_korean, said.update, said.delete):
        assert expected.expects in titles
    assert said.insert.title not in titles


def test_the_demo_takes_the_model_it_is_told(tmp_path: Path) -> None:
    preparation = Preparation("BAAI/bge-m3", tmp_path)
    preparation.start()
    assert preparation.choice().model == "BAAI/bge-m3"
    preparation.join()


def test_the_demo_takes_the_bundled_model_where_there_is_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path
    monkeypatch.setattr("embedworker.demo.choice.hub_problem", lambda: "no way there")
    monkeypatch.setattr("embedworker.demo.choice.availability", lambda *_: "hub")
    monkeypatch.setattr("embedworker.demo.choice.bundled_folder", lambda folder, *_: folder)
    preparation = Preparation(None, cache)
    preparation.start()
    choice = preparation.choice()
    preparation.join()
    assert choice.model == BUNDLED_MODEL
    assert DEFAULT_MODEL in choice.reason
    assert "no way there" in choice.reason


def test_a_failure_of_the_model_reaches_who_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr("embedworker.demo.choice.availability", broken)
    preparation = Preparation(None, tmp_path)
    preparation.start()
    with pytest.raises(OSError, match="the disk is gone"):
        preparation.choice()
    preparation.join()


def test_availability_connects_nowhere_and_tells_folders_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hf"))
    assert availability(BUNDLED_MODEL, cache) == "bundled"
    assert availability("/no/such/folder", cache) == "missing"
    assert availability(str(cache), cache) == "missing"
    assert availability("nobody/no-such-model", cache) == "hub"
