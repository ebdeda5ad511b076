"""``embedworker status``: how far every source is, what failed, and who is working."""

import time
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from worker.cli.console import JsonOption, console, print_json
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from worker.cli.database import Connection

__all__ = ["coverage_percent", "register"]

INTERVAL = 2.0  # seconds between two looks of --watch
FAILURES = 5  # shown; --json has all
_ALL = 1_000_000
_WELL = ("ready", "embedding", "paused")
_STYLES = {"ready": "green", "embedding": "cyan", "paused": "yellow"}


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One row of the view ``embed.status``."""

    source: str
    name: str
    model: str
    state: str
    coverage: str
    rows: int | None
    embedded: int | None
    pending: int | None
    stale: int | None
    dead: int | None
    removing: int | None
    oldest_wait: timedelta | None
    rows_per_second: float
    eta: timedelta | None
    truncated: int | None
    split: int | None
    paused: bool
    index_state: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """One row of the view ``embed.failure``."""

    source: str
    name: str
    key: dict[str, Any]
    attempts: int
    error: str | None
    since: datetime
    retry_at: datetime | None
    dead: bool


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """One row of the view ``embed.worker``."""

    id: int
    host: str
    pid: int
    lanes: list[str]
    model: str | None
    embedded: int
    rows_per_second: float
    started_at: datetime
    seen_at: datetime


class Report(NamedTuple):
    """Everything at one moment."""

    sources: list[SourceStatus]
    failures: list[Failure]
    failure_count: int
    workers: list[LiveWorker]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(status)


def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 1 unless every source is ready, embedding or paused."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show how far every source is, the rows that failed, and the live workers."""
    if watch and (json or check):
        raise ConfigurationError("--watch goes on until it is stopped: not with --json or --check")
    from worker.cli.database import connected

    with connected(context) as connection:
        if watch:
            _watch(connection)
            return
        report = _report(connection, failures=_ALL if json else FAILURES)
    if json:
        print_json(_for_machines(report))
    else:
        console().print(_render(report), soft_wrap=False)
    if check and not all(source.state in _WELL for source in report.sources):
        raise typer.Exit(1)


def coverage_percent(coverage: str) -> str:
    """``coverage``, a share that the server has cut and not rounded, as a percentage, cut too."""
    tenths = int(Decimal(coverage) * 1000)
    return "100 %" if tenths == 1000 else f"{tenths // 10}.{tenths % 10} %"


def _report(connection: "Connection", *, failures: int) -> Report:
    from psycopg.rows import class_row

    from worker.database.rows import one
    from worker.database.statements import statement

    with connection.cursor(row_factory=class_row(SourceStatus)) as cursor:
        sources = cursor.execute(statement("cli_status")).fetchall()
    with connection.cursor(row_factory=class_row(Failure)) as cursor:
        failed = cursor.execute(statement("cli_failures"), {"limit": failures}).fetchall()
    with connection.cursor(row_factory=class_row(LiveWorker)) as cursor:
        workers = cursor.execute(statement("cli_workers")).fetchall()
    (count,) = one(connection.execute(statement("cli_failure_count")))
    return Report(sources, failed, count, workers)


def _watch(connection: "Connection") -> None:
    from rich.live import Live

    shown = console()
    try:
        with Live(console=shown, auto_refresh=False) as live:
            while True:
                report = _render(_report(connection, failures=FAILURES))
                if shown.is_terminal:
                    live.update(report, refresh=True)
                else:
                    shown.print(report, soft_wrap=False)
                time.sleep(INTERVAL)
    except KeyboardInterrupt:
        return


def _for_machines(report: Report) -> dict[str, Any]:
    def plain(row: Any) -> dict[str, Any]:
        return {
            name: value.total_seconds() if isinstance(value, timedelta) else value
            for name, value in asdict(row).items()
        }

    sources = [plain(row) | {"coverage": float(row.coverage)} for row in report.sources]
    return {
        "sources": sources,
        "failures": [plain(row) for row in report.failures],
        "workers": [plain(row) for row in report.workers],
    }


def _render(report: Report) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if report.sources:
        parts.append(_sources(report.sources))
        parts += [Text(line) for source in report.sources for line in _remarks(source)]
    else:
        parts.append(Text("no table is enabled yet; `embedworker enable TABLE COLUMN` does that"))
    if report.failures:
        parts += [Text(), Text("rows that could not be embedded", style="bold")]
        parts += [Text(_failure(row)) for row in report.failures]
        rest = report.failure_count - len(report.failures)
        parts += [Text(f"… and {rest} more: --json shows all")] if rest > 0 else []
    parts.append(Text())
    if report.workers:
        parts.append(_workers(report.workers))
    else:
        parts.append(Text("no worker is running; start one with `embedworker run`", style="yellow"))
    return Group(*parts)


def _sources(sources: list[SourceStatus]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, collapse_padding=True)
    grid.add_column("source", overflow="fold")
    grid.add_column("state", no_wrap=True)
    for heading in ("rows", "embedded", "pending", "stale", "dead", "done", "rows/s", "wait"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in sources:
        bare = row.source.rpartition(".")[2].strip('"')
        grid.add_row(
            row.source if row.name == bare else f"{row.source} ({row.name})",
            Text(row.state, style=_STYLES.get(row.state, "red")),
            *(
                "-" if count is None else str(count)
                for count in (row.rows, row.embedded, row.pending, row.stale, row.dead)
            ),
            coverage_percent(row.coverage),
            f"{row.rows_per_second:.0f}",
            _short(row.oldest_wait),
        )
    return grid


def _remarks(source: SourceStatus) -> list[str]:
    remarks = []
    if source.error:
        remarks.append(source.error)
    if source.eta:
        remarks.append(f"done in about {_short(source.eta)}")
    if source.index_state == "invalid":
        remarks.append("its index is invalid: drop it, and a worker builds it anew")
    elif source.index_state == "building":
        remarks.append("its index is being built")
    if source.truncated:
        remarks.append(f"{source.truncated} texts were longer than the model's window and cut")
    if source.removing:
        remarks.append(f"{source.removing} vectors of rows that are gone wait to be removed")
    return [f"{source.source}: {remark}" for remark in remarks]


def _failure(row: Failure) -> str:
    key = ", ".join(f"{name}={value}" for name, value in row.key.items())
    fate = f"given up after {row.attempts} attempts" if row.dead else f"attempt {row.attempts}"
    return f"{row.source} {key}: {row.error or 'no reason known'} ({fate})"


def _workers(workers: list[LiveWorker]) -> "RenderableType":
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("worker", "lanes", "pid", "host", "embedded", "model"):
        grid.add_column(heading, justify="right" if heading in ("pid", "embedded") else "left")
    for row in workers:
        grid.add_row(
            str(row.id),
            ", ".join(row.lanes),
            str(row.pid),
            row.host,
            str(row.embedded),
            row.model or "-",
        )
    return grid


def _short(span: timedelta | None) -> str:
    """A time as its largest unit: 12 s, 3 min, 5 h, 2 d."""
    if span is None:
        return "-"
    seconds = max(span.total_seconds(), 0.0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
