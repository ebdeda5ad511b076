"""``embedworker search``: the rows nearest in meaning to a question."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedworker.cli.console import JsonOption, console, note, print_json, settings

if TYPE_CHECKING:
    from embedworker.search.marking import Piece
    from embedworker.search.steps import Hit

__all__ = ["register", "snippet", "title_of"]

MAX_K = 1000
INDENT = " " * len("0.000  ")
MAX_SKIP = 10_000
MAX_RERANK = 200
LONGEST_WAIT = 60.0  # seconds that embed.query waits at most
_TITLES = ("title", "name", "subject", "headline", "제목", "이름")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(search)


def search(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Table, written as in SQL.")],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="Question in your own words.")
    ],
    k: Annotated[
        int, typer.Option("-k", min=1, max=MAX_K, metavar="N", help="Number of rows.")
    ] = 10,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the source, if a table is enabled several times."
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_RERANK, metavar="N", help="Let a cross-encoder order the best N rows."
        ),
    ] = None,
    matching: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Search only rows with this value; repeat it for another column, or for a list.",
        ),
    ] = None,
    skip: Annotated[
        int, typer.Option(min=0, max=MAX_SKIP, metavar="N", help="Leave out the best N rows.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Find the rows of a table that are nearest in meaning to a question."""
    import warnings

    from embedworker.cli.database import connected, find_table
    from embedworker.errors import SearchWarning
    from embedworker.search.functions import search as find
    from embedworker.search.marking import marked

    conditions = _conditions(matching or [])
    timeout = min(settings(context).query_timeout, LONGEST_WAIT)
    with connected(context) as connection, warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", SearchWarning)
        found = find_table(connection, table)
        hits = find(
            connection,
            found.qualified,
            question,
            k,
            name=name,
            rerank=rerank,
            matching=conditions,
            skip=skip,
            timeout=timeout,
        )
        room = console().width - len(INDENT)
        passages = [snippet(hit.passage, title_of(hit.row), room) for hit in hits]
        lines = [] if json else marked(connection, passages, question)
    for remark in remarks:
        note(f"note: {remark.message}")
    if json:
        print_json([asdict(hit) for hit in hits])
        return
    if not hits:
        if hits.degraded:
            note(f"no row of {found.shown} has a word of the question")
        elif matching or skip:
            note("no further rows were found")
        else:
            note(f"{found.shown} has no rows with a vector yet; see `embedworker status`")
        return
    _print(hits, lines)


def _conditions(given: list[str]) -> dict[str, Any] | None:
    """Return what is written as COLUMN=VALUE by column; several values of one are a list."""
    values: dict[str, list[str]] = {}
    for condition in given:
        column, sign, value = condition.partition("=")
        if not sign or not column:
            raise typer.BadParameter(
                f"{condition!r} is no condition; expected COLUMN=VALUE, for example lang=ko",
                param_hint="--matching",
            )
        values.setdefault(column, []).append(value)
    return {column: found[0] if len(found) == 1 else found for column, found in values.items()}


def _print(hits: "list[Hit]", lines: "list[list[Piece]]") -> None:
    """Two lines a hit: score, key and title, the key whole; then a line of its passage."""
    from rich.text import Text

    shown = console()
    for hit, pieces in zip(hits, lines, strict=True):
        title = title_of(hit.row)
        key = ", ".join(str(value) for value in hit.key.values())
        head = Text.assemble((f"{hit.score:.3f}", "bold"), "  ", (key, "cyan"))
        room = shown.width - head.cell_len - 2
        if title and room > 0:
            head.append(f"  {cut(title, room)}", style="bold")
        shown.print(head)
        line = Text(INDENT)
        for piece, found in pieces:
            line.append(piece, style="bold underline" if found else "")
        shown.print(line)


def title_of(row: dict[str, Any]) -> str:
    """Return a name for the row: the column that is named like a title, or nothing."""
    for column in _TITLES:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def snippet(passage: str, title: str, cells: int) -> str:
    """Return the passage on one line, without its title, cut to ``cells`` of a terminal.

    A Korean character takes two cells.
    """
    line = " ".join(passage.split())
    if title and line.startswith(title):
        line = line.removeprefix(title).lstrip() or line
    return cut(line, cells)


def cut(line: str, cells: int) -> str:
    """Return as much of a line as ``cells`` of a terminal hold, with … where it was cut."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(line) <= cells:
        return line
    return set_cell_size(line, max(cells - 1, 0)).rstrip() + "…"
