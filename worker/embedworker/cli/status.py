"""``embedworker status``: how far every source is, what failed, and who is working."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from embedworker.cli.console import JsonOption, console, step
from embedworker.cli.console import watch as watch_report
from embedworker.cli.databases import (
    DatabasesFile,
    DatabaseUrls,
    for_each_database,
    several_databases,
)
from embedworker.errors import ConfigurationError
from embedworker.figures import count, percent, span
from embedworker.state.status import SourceStatus

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from embedworker.cli.database import Connection

__all__ = ["register"]

WIDE = 100  # cells from which all columns are shown
FAILURES = 5  # shown; --json has all
_ALL = 1_000_000
_WELL = ("ready", "embedding", "paused")
_STYLES = {"ready": "green", "embedding": "cyan", "paused": "yellow"}


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
    process: int
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
    database_url: DatabaseUrls = None,
    databases: DatabasesFile = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every two seconds, until Ctrl-C.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 1 unless every source is ready, embedding or paused."
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Count every row instead of reading the counters of the workers."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show the progress of every source, the failed rows, and the live workers.

    Several databases have a part each.
    """
    if watch and (json or check or exact):
        raise ConfigurationError(
            "--watch goes on until it is stopped: not with --json, --check or --exact"
        )
    if watch and several_databases(context, database_url, databases) is not None:
        raise ConfigurationError("--watch shows one database; expected one --database-url")
    from embedworker.cli.database import connected

    def show() -> tuple[dict[str, Any], bool]:
        with connected(context) as connection:
            if watch:
                watch_report(
                    lambda shown: _render(_report(connection, failures=FAILURES), shown.width)
                )
                return {}, True
            with step("counting every row" if exact else "reading the counters"):
                report = _report(connection, failures=_ALL if json else FAILURES, exact=exact)
        if not json:
            shown = console()
            shown.print(_render(report, shown.width), soft_wrap=False)
        well = all(source.state in _WELL for source in report.sources)
        return _for_machines(report), well or not check

    for_each_database(context, database_url, databases, show, json=json)


def _report(connection: "Connection", *, failures: int, exact: bool = False) -> Report:
    from psycopg.rows import class_row
    from psycopg.types.json import set_json_loads

    from embedworker.database.numbers import loads
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    with connection.cursor(row_factory=class_row(SourceStatus)) as cursor:
        sources = cursor.execute(
            statement("cli_status_exact" if exact else "cli_status")
        ).fetchall()
    with connection.cursor(row_factory=class_row(Failure)) as cursor:
        set_json_loads(loads, cursor)
        failed = cursor.execute(statement("cli_failures"), {"limit": failures}).fetchall()
    with connection.cursor(row_factory=class_row(LiveWorker)) as cursor:
        workers = cursor.execute(statement("cli_workers")).fetchall()
    (total,) = fetch_one(connection.execute(statement("cli_failure_count")))
    return Report(sources, failed, total, workers)


def _for_machines(report: Report) -> dict[str, Any]:
    def plain(row: Any) -> dict[str, Any]:
        return {
            name: value.total_seconds() if isinstance(value, timedelta) else value
            for name, value in asdict(row).items()
        }

    sources = [
        plain(row) | {"coverage": None if row.coverage is None else float(row.coverage)}
        for row in report.sources
    ]
    return {
        "sources": sources,
        "failures": [plain(row) for row in report.failures],
        "workers": [plain(row) for row in report.workers],
    }


def _render(report: Report, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if report.sources:
        parts.append(_sources(report.sources, width))
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


def _sources(sources: list[SourceStatus], width: int) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    numbers = ("rows", "embedded", "pending", "stale", "dead", "rows/s", "wait")
    shown = [name for name in numbers if wide or name not in ("embedded", "stale")]
    grid = Table(box=None, pad_edge=False, collapse_padding=True)
    grid.add_column("source", overflow="fold")
    grid.add_column("state", no_wrap=True)
    grid.add_column("done", no_wrap=True)
    for heading in shown:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in sources:
        values = {
            "rows": count(row.rows),
            "embedded": count(row.embedded),
            "pending": count(row.pending),
            "stale": count(row.stale),
            "dead": count(row.dead),
            "rows/s": count(row.rows_per_second),
            "wait": span(row.oldest_wait),
        }
        grid.add_row(
            row.title,
            Text(row.state, style=_STYLES.get(row.state, "red")),
            Text.assemble(_bar(row.coverage, 10 if wide else 6), " ", percent(row.coverage)),
            *(Text(values[name], style=_alarm(name, row)) for name in shown),
        )
    return grid


def _bar(coverage: str | None, cells: int) -> "Text":
    """Return a share as a bar, which is full only if nothing is left to do."""
    from rich.text import Text

    full = int(float(coverage or 0) * cells)
    return Text.assemble(("━" * full, "green"), ("─" * (cells - full), "dim"))


def _alarm(name: str, row: SourceStatus) -> str:
    return "red" if name == "dead" and row.dead else ""


def _remarks(source: SourceStatus) -> list[str]:
    remarks = []
    if source.error:
        remarks.append(source.error)
    if source.estimated and source.pending:
        remarks.append("these numbers are estimates; --exact counts every row")
    if source.eta:
        remarks.append(f"done in about {span(source.eta)}")
    if source.index_state == "invalid":
        remarks.append("its index is invalid: drop it, and a worker builds it again")
    elif source.index_state == "building":
        remarks.append("its index is being built")
    if not source.words:
        remarks.append("searches rank by meaning alone (words => false)")
    if source.truncated:
        remarks.append(
            f"{count(source.truncated)} texts were longer than the model's window and cut"
        )
    if source.removing:
        remarks.append(f"{count(source.removing)} vectors of rows that are gone wait to be removed")
    return [f"{source.source}: {remark}" for remark in remarks]


def _failure(row: Failure) -> str:
    key = ", ".join(f"{name}={value}" for name, value in row.key.items())
    fate = f"given up after {row.attempts} attempts" if row.dead else f"attempt {row.attempts}"
    return f"{row.source} {key}: {row.error or 'no reason known'} ({fate})"


def _workers(workers: list[LiveWorker]) -> "RenderableType":
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("worker", "lanes", "embedded", "answered", "model"):
        grid.add_column(heading, justify="right" if heading in ("embedded", "answered") else "left")
    # The lanes of one `embedworker run` are two processes, and are shown as one worker.
    processes: dict[tuple[str, int], list[LiveWorker]] = {}
    for row in workers:
        processes.setdefault((row.host, row.process), []).append(row)
    for (host, process), rows in processes.items():
        done = {"passages": 0, "questions": 0}
        for row in rows:
            done["passages" if "passages" in row.lanes else "questions"] += row.embedded
        grid.add_row(
            f"{host}/{process}",
            ", ".join(sorted({lane for row in rows for lane in row.lanes})),
            count(done["passages"]),
            count(done["questions"]),
            ", ".join(sorted({row.model for row in rows if row.model})) or "-",
        )
    return grid
