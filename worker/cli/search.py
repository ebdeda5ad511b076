"""``embedworker search``: the rows nearest in meaning to a question."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.console import JsonOption, console, note, print_json, settings

if TYPE_CHECKING:
    from worker.search.client import Hit

__all__ = ["register", "snippet", "title_of"]

MAX_K = 1000
MAX_RERANK = 200
LONGEST_WAIT = 60.0  # seconds that embed.query waits at most
_TITLES = ("title", "name", "subject", "headline", "제목", "이름")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(search)


def search(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Table, written as in SQL.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In your own words.")],
    k: Annotated[
        int, typer.Option("-k", min=1, max=MAX_K, metavar="N", help="How many rows.")
    ] = 10,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which one, where a table is enabled several times."),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_RERANK, metavar="N", help="Have a cross-encoder order the best N rows."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the rows of a table that are nearest in meaning to a question."""
    import warnings

    from worker.cli.database import connected, find_table
    from worker.errors import SearchWarning
    from worker.search.client import search as find

    timeout = min(settings(context).query_timeout, LONGEST_WAIT)
    with connected(context) as connection, warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", SearchWarning)
        found = find_table(connection, table)
        hits = find(
            connection, found.qualified, question, k, name=name, rerank=rerank, timeout=timeout
        )
    for remark in remarks:
        note(f"note: {remark.message}")
    if json:
        print_json([asdict(hit) for hit in hits])
        return
    if not hits:
        note(f"{found.shown} has no rows with a vector yet; see `embedworker status`")
        return
    _print(hits)
    note("scores order the rows of one search; how high they are says nothing by itself")


def _print(hits: "list[Hit]") -> None:
    from rich.table import Table
    from rich.text import Text

    shown = console()
    grid = Table(box=None, pad_edge=False)
    grid.add_column("score", no_wrap=True)
    grid.add_column("key", overflow="fold")
    grid.add_column("", overflow="fold")
    for hit in hits:
        title = title_of(hit.row)
        lines = [Text(title, style="bold")] if title else []
        lines.append(Text(snippet(hit.passage, title, 2 * max(shown.width - 20, 20))))
        key = ", ".join(str(value) for value in hit.key.values())
        grid.add_row(f"{hit.score:.3f}", key, Text("\n").join(lines))
    shown.print(grid, soft_wrap=False)


def title_of(row: dict[str, Any]) -> str:
    """What a person would call the row: the column that is named like a title, or nothing."""
    for column in _TITLES:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def snippet(passage: str, title: str, cells: int) -> str:
    """The passage on one line without the title it may begin with, cut to ``cells`` of a terminal.

    A Korean character takes two cells.
    """
    from rich.cells import cell_len, set_cell_size

    line = " ".join(passage.split())
    if title and line.startswith(title):
        line = line.removeprefix(title).lstrip() or line
    if cell_len(line) <= cells:
        return line
    return set_cell_size(line, cells - 1).rstrip() + "…"
