"""What the commands share: consoles, ``--json``, settings of a call, errors on one line."""

import json
import sys
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from worker.settings import Settings

__all__ = [
    "JsonOption",
    "console",
    "database_url",
    "fail",
    "note",
    "print_json",
    "settings",
    "step",
]

EXIT_FAILED = 1
EXIT_WRONG_USE = 2

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def console(*, stderr: bool = False) -> "Console":
    """Return a rich console; made on demand so that it follows a replaced ``sys.stdout``."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """Tell the person something that is not the result: to stderr."""
    typer.echo(message, err=True)


def step(message: str) -> "AbstractContextManager[object]":
    """Show ``message`` with a spinner on a terminal while something takes long."""
    shown = console(stderr=True)
    return shown.status(message) if shown.is_terminal else nullcontext()


def print_json(value: Any) -> None:
    """Print ``value`` as one JSON document; paths and times become text."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def settings(context: typer.Context, **flags: Any) -> "Settings":
    """Return the settings of this call: the environment, with the global flags on top.

    ``flags`` are those of the command itself.
    """
    from worker.settings import load

    _warn_of_misspelt()
    return load(**{**(context.find_root().obj or {}), **flags})


@cache
def _warn_of_misspelt() -> None:
    from worker.settings import misspelt

    for variable, meant in misspelt().items():
        note(f"{variable} is no setting and has no effect; did you mean {meant}?")


def database_url(context: typer.Context) -> str:
    """Return the URL of the named database, else of the embedded server, starting it if need be."""
    from worker.database import embedded

    chosen = settings(context)
    if chosen.database_url is not None:
        return chosen.database_url
    with step("starting the embedded PostgreSQL"):
        return embedded.start(chosen)


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print ``message`` as an error and leave with ``code``."""
    prefix = typer.style("error:", fg=typer.colors.RED, bold=True)
    typer.echo(f"{prefix} {message}", err=True)
    sys.exit(code)
