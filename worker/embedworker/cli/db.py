"""``embedworker db``: the embedded PostgreSQL."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embedworker.cli.console import JsonOption, note, print_json, settings, step

if TYPE_CHECKING:
    from embedworker.database.embedded.server import Status

__all__ = ["register"]

group = typer.Typer(help="The embedded PostgreSQL, used when no database is named.")


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="db")


@group.command()
def start(context: typer.Context) -> None:
    """Start the embedded PostgreSQL; the first call creates it."""
    from embedworker.database.embedded import server

    chosen = settings(context)
    with step("starting PostgreSQL"):
        server.start(chosen)
    _print_status(server.status(chosen))
    typer.echo('connect:  psql "$(embedworker db url)"')


@group.command()
def stop(context: typer.Context) -> None:
    """Stop the embedded PostgreSQL; the data stays."""
    from embedworker.database.embedded import server

    stopped = server.stop(settings(context))
    typer.echo("stopped" if stopped else "was not running")


@group.command()
def url(
    context: typer.Context,
    with_password: Annotated[
        bool,
        typer.Option(
            "--with-password",
            help="Put the password into the URL, for drivers that do not read password files.",
        ),
    ] = False,
) -> None:
    """Print its URL, and start it if it is stopped: psql "$(embedworker db url)".

    The URL names the password file and does not contain the password, so that neither the screen
    nor a process list shows it. psql and every other libpq client read that file.
    """
    from embedworker.database.embedded import server

    chosen = settings(context)
    if not server.status(chosen).running:
        note("starting the embedded PostgreSQL")
        server.start(chosen)
    typer.echo(server.url(chosen, password=with_password))


@group.command()
def status(context: typer.Context, json: JsonOption = False) -> None:
    """Show whether it runs, its address and its data folder."""
    from embedworker.database.embedded import server

    found = server.status(settings(context))
    if json:
        print_json(asdict(found))
    else:
        _print_status(found)


def _print_status(found: "Status") -> None:
    if not found.created:
        typer.echo(f"not created yet; `embedworker db start` makes it in {found.folder}")
        return
    state = f"running on 127.0.0.1:{found.port}, pid {found.pid}" if found.running else "stopped"
    typer.echo(f"embedded PostgreSQL {found.version}: {state}")
    typer.echo(f"data:     {found.folder}")
