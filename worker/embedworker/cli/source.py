"""``enable``, ``disable``, ``pause``, ``resume``, ``sweep`` and ``retry``: what a table is told."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedworker.cli.console import JsonOption, console, note, print_json

if TYPE_CHECKING:
    import psycopg

    from embedworker.cli.database import Connection, Table
    from embedworker.queue.source import Source
    from embedworker.queue.sweep import Page

__all__ = ["register"]

LOCK_POLL = 0.2  # seconds between looks at whether another sweep is over

TableArgument = Annotated[str, typer.Argument(metavar="TABLE", help="Table, written as in SQL.")]
OptionalTable = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="Table, written as in SQL; not given: all enabled."),
]
NameOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the source, if a table is enabled several times."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE", help="Type of the vectors: vector, or halfvec with half the bytes."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (enable, disable, pause, resume, sweep, retry):
        app.command()(command)


def enable(
    context: typer.Context,
    table: TableArgument,
    columns: Annotated[
        list[str], typer.Argument(metavar="COLUMN...", help="Text columns to search, by name.")
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the source, to enable a table several times."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model; not given: the database's default."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="How the columns become one text: '{title}: {content}'."),
    ] = None,
    into_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Keep one vector in this column instead of a vector table."
        ),
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="SQL", help="Only rows that meet this condition."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column of the key, instead of the primary key's."),
    ] = None,
    no_chunk: Annotated[
        bool, typer.Option("--no-chunk", help="One vector per row, for a text of any length.")
    ] = False,
    no_words: Annotated[
        bool, typer.Option("--no-words", help="Search by meaning alone, without the words.")
    ] = False,
    storage: StorageOption = None,
) -> None:
    """Make a table searchable. Workers embed its rows now, and again after each change."""
    from embedworker.cli.database import connected, find_table
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    with connected(context) as connection:
        found = find_table(connection, table)
        remarks: list[str] = []

        def hear(notice: "psycopg.errors.Diagnostic") -> None:
            if notice.severity_nonlocalized == "NOTICE" and notice.message_hint:
                remarks.append(f"note: {notice.message_primary}\n{notice.message_hint}")

        connection.add_notice_handler(hear)
        with _saying(f"enabling {found.shown} ({', '.join(columns)})"):
            (vectors,) = fetch_one(
                connection.execute(
                    statement("cli_enable"),
                    {
                        "relation": found.oid,
                        "columns": columns,
                        "name": name,
                        "model": model,
                        "template": template,
                        "into_column": into_column,
                        "chunk": not no_chunk,
                        "filter": filter_,
                        "key": key or None,
                        "words": not no_words,
                        "storage": storage,
                    },
                )
            )
        typer.echo(f"vectors:   {vectors}{f'.{into_column}' if into_column else ''}")
        for remark in remarks:
            note(remark)
        (workers,) = fetch_one(connection.execute(statement("cli_workers_for")))
        if not workers:
            note("note: no worker is running; start one with `embedworker run`")


def disable(
    context: typer.Context,
    table: TableArgument,
    drop_vectors: Annotated[
        bool, typer.Option("--drop-vectors", help="Also drop its vectors, which stay otherwise.")
    ] = False,
    name: NameOption = None,
) -> None:
    """Stop keeping the vectors of a table: of all its sources, or of the one with this name."""
    _tell(context, table, "disabling", "cli_disable", drop_vectors=drop_vectors, name=name)


def pause(context: typer.Context, table: TableArgument) -> None:
    """Let the changes of a table wait until `resume`."""
    _tell(context, table, "pausing", "cli_pause")


def resume(context: typer.Context, table: TableArgument) -> None:
    """Continue with a paused table."""
    _tell(context, table, "resuming", "cli_resume")


def retry(context: typer.Context, table: OptionalTable = None) -> None:
    """Try failed rows again; `embedworker status` shows them."""
    from embedworker.cli.database import connected
    from embedworker.database.rows import fetch_one
    from embedworker.database.statements import statement

    with connected(context) as connection:
        for found in _chosen(connection, table):
            (count,) = fetch_one(
                connection.execute(statement("cli_retry"), {"relation": found.oid})
            )
            typer.echo(f"{found.shown}: {count} {'row' if count == 1 else 'rows'} to try again")


@dataclass(slots=True)
class _Swept:
    """What a sweep of one source found, in rows."""

    source: str
    name: str
    visited: int = 0
    missing: int = 0
    stale: int = 0
    orphaned: int = 0
    queued: int = 0
    error: str | None = None

    @property
    def clean(self) -> bool:
        return self.error is None and self.missing + self.stale + self.orphaned == 0


def sweep(
    context: typer.Context,
    table: OptionalTable = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare; exit with 1 if a vector is wrong.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare every row with its vector. Workers repair missing, stale and orphaned vectors.

    Rows that wait for a worker count as missing or stale.
    """
    from embedworker.cli.database import connected
    from embedworker.queue.source import load_sources

    with connected(context) as connection:
        tables = {found.qualified: found for found in _chosen(connection, table)}
        swept = [
            _sweep(connection, source, tables[source.relation], repair=not check)
            for source in load_sources(connection)
            if source.relation in tables
        ]
    if json:
        print_json([asdict(one) for one in swept])
    else:
        _print_swept(swept, repair=not check)
    if any(one.error for one in swept) or (check and not all(one.clean for one in swept)):
        raise typer.Exit(1)


def _sweep(connection: "Connection", source: "Source", table: "Table", *, repair: bool) -> _Swept:
    swept = _Swept(table.shown, source.name)
    if not source.usable:
        swept.error = (
            "a column or the vector table was dropped; disable the table and enable it again"
        )
    elif source.fingerprint is None:
        swept.error = "no worker has run yet; start one with `embedworker run`"
    if swept.error is not None:
        return swept
    with _progress(f"sweeping {table.shown}", table.estimate) as advance:
        for page in (
            _repair(connection, source) if repair else _pages(connection, source, repair=False)
        ):
            swept.visited += page.visited
            swept.missing += page.missing
            swept.stale += page.stale
            swept.orphaned += page.orphaned
            swept.queued += page.queued
            advance(page.visited)
    return swept


def _repair(connection: "Connection", source: "Source") -> Iterator["Page"]:
    from embedworker.database.connection import advisory_lock
    from embedworker.queue.sweep import Sweep

    while True:
        with advisory_lock(connection, "sweep_turn", source=source.id) as ours:
            if ours:
                Sweep.begin(connection, source)
                yield from _pages(connection, source, repair=True)
                return
        time.sleep(LOCK_POLL)  # a worker sweeps it now


def _pages(connection: "Connection", source: "Source", *, repair: bool) -> Iterator["Page"]:
    from embedworker.errors import SourceError
    from embedworker.queue.sweep import Sweep

    run = Sweep(connection, source, source.fingerprint, repair=repair)
    while not run.done:
        page = run.page()
        if not page.held:
            raise SourceError(
                f"embed.cut_over or embed.roll_back exchanged the vectors of {source} during the "
                "sweep; run `embedworker sweep` again"
            )
        yield page


def _print_swept(swept: list[_Swept], *, repair: bool) -> None:
    from rich.table import Table as Grid

    grid = Grid(box=None, pad_edge=False)
    for heading in ("source", "name"):
        grid.add_column(heading)
    for heading in ("looked at", "missing", "stale", "orphaned"):
        grid.add_column(heading, justify="right")
    if repair:
        grid.add_column("queued", justify="right")
    for one in swept:
        numbers = [one.visited, one.missing, one.stale, one.orphaned]
        numbers += [one.queued] if repair else []
        grid.add_row(one.source, one.name, *(map(str, numbers) if one.error is None else ["-"]))
    if swept:
        console().print(grid, soft_wrap=False)
    else:
        typer.echo("no table is enabled yet; `embedworker enable TABLE COLUMN` does that")
    for one in swept:
        if one.error is not None:
            note(f"{one.source}: {one.error}")


def _tell(context: typer.Context, table: str, doing: str, query: str, **arguments: Any) -> None:
    from embedworker.cli.database import connected, find_table
    from embedworker.database.statements import statement

    with connected(context) as connection:
        found = find_table(connection, table)
        with _saying(f"{doing} {found.shown}"):
            connection.execute(statement(query), {"relation": found.oid, **arguments})


def _chosen(connection: "Connection", table: str | None) -> "list[Table]":
    from embedworker.cli.database import enabled_tables, find_table
    from embedworker.errors import SourceError

    enabled = enabled_tables(connection)
    if table is None:
        return enabled
    found = find_table(connection, table)
    if found.oid not in {one.oid for one in enabled}:
        raise SourceError(
            f"{found.shown} is not enabled; enable it with `embedworker enable {found.shown} "
            "COLUMN`, or see `embedworker status` for what is"
        )
    return [found]


@contextmanager
def _saying(doing: str) -> Iterator[None]:
    """Print ``doing … done``, or FAILED."""
    typer.echo(f"{doing} … ", nl=False)
    try:
        yield
    except BaseException:
        typer.echo("FAILED")
        raise
    typer.echo("done")


@contextmanager
def _progress(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; the number of rows is the server's estimate."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=shown,
        transient=True,
        disable=not shown.is_terminal,
    ) as progress:
        task = progress.add_task(doing, total=total or None)
        yield lambda count: progress.update(task, advance=count)
