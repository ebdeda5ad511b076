"""What the commands share: consoles, ``--json``, settings of a call, errors on one line."""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from embedworker.errors import ConfigurationError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console, RenderableType

    from embedworker.settings import Settings

__all__ = [
    "JsonOption",
    "columns",
    "console",
    "database_url",
    "fail",
    "hanging",
    "note",
    "print_json",
    "settings",
    "step",
    "watch",
]

LABEL = 9  # cells of a label and the gap behind it
WATCH_INTERVAL = 2.0  # seconds between two looks of --watch
EXIT_FAILED = 1
EXIT_WRONG_USE = 2

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def console(*, stderr: bool = False) -> "Console":
    """Return a rich console; made on demand so that it follows a replaced ``sys.stdout``."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def columns(
    lines: Sequence[Sequence[str]], width: int, *, right: Collection[int] = ()
) -> Iterator[str]:
    """Yield lines of cells as a table whose cells are whole, so that they can be copied.

    The first line are the headings, and ``right`` the numbers of the columns that are set to the
    right. Where the table is wider than ``width``, each line is a block: its first cell, and below
    it the others with their headings.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        for line in lines:
            gaps = [" " * (room - cell_len(cell)) for cell, room in zip(line, widths, strict=True)]
            cells = [
                gap + cell if place in right else cell + gap
                for place, (cell, gap) in enumerate(zip(line, gaps, strict=True))
            ]
            yield "  ".join(cells).rstrip()
        return
    headings = lines[0]
    for line in lines[1:]:
        yield line[0]
        text = "  "
        for heading, cell in zip(headings[1:], line[1:], strict=True):
            part = f"{heading} {cell}".strip()
            if not cell:
                continue
            if text.strip() and cell_len(text) + cell_len(part) + 2 > width:
                yield text.rstrip()
                text = "  "
            text += f"  {part}"
        if text.strip():
            yield text


def hanging(shown: "Console", label: tuple[str, str], text: str) -> None:
    """Print a label of one style, and the text beside it.

    On a terminal the text is wrapped at words and stays beside the label; in a pipe it is one line.
    """
    from rich.text import Text

    word, style = label
    head = Text.assemble((word.ljust(LABEL), style))
    body = Text(text)
    lines = [body]
    if shown.is_terminal:
        lines = list(body.wrap(shown, max(shown.width - LABEL, 20)))
    for number, line in enumerate(lines):
        line.rstrip()
        shown.print((head if number == 0 else Text(" " * LABEL)) + line)


def note(message: str) -> None:
    """Tell the person something that is not the result: to stderr."""
    typer.echo(message, err=True)


def step(message: str) -> "AbstractContextManager[object]":
    """Show ``message`` with a spinner on a terminal while something takes long."""
    shown = console(stderr=True)
    return shown.status(message) if shown.is_terminal else nullcontext()


def watch(render: "Callable[[Console], RenderableType]") -> None:
    """Show what ``render`` returns every two seconds, in one place on a terminal, until Ctrl-C."""
    from rich.live import Live

    shown = console()
    try:
        with Live(console=shown, auto_refresh=False) as live:
            while True:
                if shown.is_terminal:
                    live.update(render(shown), refresh=True)
                else:
                    shown.print(render(shown), soft_wrap=False)
                time.sleep(WATCH_INTERVAL)
    except KeyboardInterrupt:
        return


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document; paths and times become text."""
    from embedworker.database.numbers import dumps

    plain = not sys.stdout.encoding.lower().startswith("utf")
    typer.echo(dumps(value, ensure_ascii=plain, indent=2))


def settings(context: typer.Context, **flags: Any) -> "Settings":
    """Return the settings of this call: the environment, with the global flags on top.

    ``flags`` are those of the command itself.
    """
    from embedworker.settings import load

    _warn_of_misspelt()
    return load(**{**(context.find_root().obj or {}), **flags})


@cache
def _warn_of_misspelt() -> None:
    from embedworker.settings import misspelt

    for variable, meant in misspelt().items():
        note(f"{variable} is no setting and has no effect; did you mean {meant}?")


def database_url(context: typer.Context) -> str:
    """Return the URL of the named database, else of the embedded server, starting it if need be."""
    from embedworker.database.embedded import server
    from embedworker.database.names import split_urls

    chosen = settings(context)
    if chosen.database_url is not None:
        if len(split_urls(chosen.database_url)) > 1:
            raise ConfigurationError(
                "the setting names several databases; expected one for this command: give it by "
                "`embedworker --database-url URL`"
            )
        return chosen.database_url
    with step("starting the embedded PostgreSQL"):
        return server.start(chosen)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print ``message`` as an error and leave with ``code``."""
    prefix = typer.style("error:", fg=typer.colors.RED, bold=True)
    typer.echo(f"{prefix} {message}", err=True)
    sys.exit(code)
