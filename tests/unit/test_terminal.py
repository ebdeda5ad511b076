"""What commands print, at 80 and at 120 columns: keys whole, words whole, what is wrong first."""

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from embedworker.cli import doctor, search, status
from embedworker.cli.app import app
from embedworker.cli.console import columns
from embedworker.model.catalog import catalog
from embedworker.search.steps import Hit
from embedworker.service.doctor import Finding

WIDTHS = [80, 120]
KEY = "6f1c2a34-9b1e-4d57-8a20-0d5f7c1e9b42"
PASSAGE = "보일러는 겨울에 얼 수 있으니 배관에 보온재를 감고 물을 조금 틀어 두세요. " * 3

Screen = Callable[[int], Callable[[], list[str]]]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of so many columns, without colours; what was written on it, by line."""

    def screen(width: int) -> Callable[[], list[str]]:
        written = io.StringIO()
        terminal = Console(
            file=written,
            width=width,
            force_terminal=True,
            color_system=None,
            highlight=False,
            soft_wrap=True,
        )
        for module in (doctor, search, status):
            monkeypatch.setattr(module, "console", lambda **_: terminal)
        return lambda: written.getvalue().splitlines()

    return screen


def hit(key: object, title: str) -> Hit:
    row = {"id": key, "title": title}
    return Hit({"id": key}, 0.8123, 0.8, 0.06, None, f"{title}\n{PASSAGE}", row)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_hit_has_its_key_whole_and_one_line_of_its_passage(screen: Screen, width: int) -> None:
    lines = screen(width)
    hits = [hit(KEY, "보일러 동파 " * 12), hit(2, "A dry towel")]
    room = width - len(search.INDENT)
    passages = [search.snippet(each.passage, search.title_of(each.row), room) for each in hits]
    search._print(hits, [[(passage[:3], True), (passage[3:], False)] for passage in passages])
    shown = lines()
    assert len(shown) == 4
    assert max(map(cell_len, shown)) <= width
    assert shown[0].startswith(f"0.812  {KEY}  보일러")
    assert shown[0].endswith("…")
    assert shown[1].startswith("       보일러는 겨울에")
    assert shown[2] == "0.812  2  A dry towel"


FINDINGS = [
    Finding("database", "connection", "ok", "postgresql://me@db/shop, 0.3 ms a round trip"),
    Finding("database", "schema", "ok", "version 0003"),
    Finding("public.article", "index", "warning", "none", "A worker builds one. " * 8),
    Finding("workers", "passages", "problem", "0 alive", "Changes wait until a worker runs."),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_doctor_says_first_what_is_wrong(screen: Screen, width: int) -> None:
    lines = screen(width)
    doctor._print(FINDINGS, quiet=False)
    shown = lines()
    assert max(map(cell_len, shown)) <= width
    assert shown[0] == "problem  workers, passages: 0 alive"
    assert shown[1] == "         Changes wait until a worker runs."
    assert shown[2] == "warning  public.article, index: none"
    assert all(line.startswith(" " * 9 + "A worker") or "builds" in line for line in shown[3:5])
    assert shown[-2:] == [
        "ok       database: connection, schema",
        "1 problem, 1 warning, 2 ok",
    ]


def test_the_quiet_doctor_leaves_out_what_is_well(screen: Screen) -> None:
    lines = screen(80)
    doctor._print(FINDINGS, quiet=True)
    assert not any(line.startswith("ok") for line in lines())


def source(name: str, coverage: str, dead: int) -> status.SourceStatus:
    return status.SourceStatus(
        source=name,
        name=name.rpartition(".")[2],
        model="testing:hash",
        state="incomplete" if dead else "embedding",
        coverage=coverage,
        rows=1_234_567,
        embedded=1_200_000,
        pending=34_567,
        stale=12,
        dead=dead,
        removing=0,
        oldest_wait=timedelta(minutes=7),
        rows_per_second=123.4,
        eta=timedelta(minutes=5),
        truncated=0,
        split=0,
        paused=False,
        index_state="valid",
        error=None,
        counted_at=datetime.now(UTC),
        estimated=False,
        words=True,
        storage="vector",
        row_bytes=1700,
        index_bytes=200_000_000,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_status_has_a_bar_and_fits(screen: Screen, width: int) -> None:
    lines = screen(width)
    report = status.Report([source("shop.article", "0.972", 3)], [], 0, [])
    status.console().print(status._render(report, width), soft_wrap=False)
    shown = [line.rstrip() for line in lines()]
    assert max(map(cell_len, shown)) <= width
    assert shown[1].startswith("shop.article incomplete ━━━")
    assert "97.2 %" in shown[1]
    assert "1,234,567" in shown[1]
    assert ("1,200,000" in shown[1]) == (width == 120)


def test_a_bar_is_full_only_at_the_end() -> None:
    assert status._bar("0.999", 10).plain == "━━━━━━━━━─"
    assert status._bar("1", 10).plain == "━━━━━━━━━━"
    assert status._bar(None, 3).plain == "───"


@pytest.mark.parametrize("width", WIDTHS)
def test_cells_stay_whole_where_a_table_is_too_wide(width: int) -> None:
    table = [
        ("model", "dims", "prefix"),
        ("a/name-that-is-long-" + "x" * 50, "384", "'query: ' / 'passage: '"),
    ]
    shown = list(columns(table, width))
    assert max(map(len, shown)) <= width
    assert any(line.startswith(table[1][0]) for line in shown)
    assert "'query: ' / 'passage: '" in shown[-1]
    assert len(shown) == 2
    assert shown[0].startswith("model") == (width == 120)


def test_numbers_are_set_to_the_right() -> None:
    table = [("", "p50 ms"), ("exact", "1.5"), ("보일러", "10.5")]
    assert list(columns(table, 80, right=[1])) == [
        "        p50 ms",
        "exact      1.5",
        "보일러    10.5",
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["", "run", "serve", "web", "search", "eval"])
def test_help_has_names_whole(command: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    arguments = [command, "--help"] if command else ["--help"]
    shown = CliRunner().invoke(app, arguments, prog_name="embedworker").output
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "_…" not in shown
    assert "..." not in shown.replace("[ARGS]...", "")
    assert "<bool>" not in shown
    if not command:
        assert "EMBEDWORKER_DATABASE_URL" in shown


@pytest.mark.parametrize("width", WIDTHS)
def test_models_have_names_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = CliRunner().invoke(app, ["models"]).output.splitlines()
    assert max(map(cell_len, shown)) <= width
    for name in catalog():
        assert any(line.startswith(name) for line in shown), name
