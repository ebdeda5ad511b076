"""``embedworker db``: the embedded PostgreSQL."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.console import JsonOption, note, print_json, settings, step

if TYPE_CHECKING:
    from worker.database.embedded import Status

__all__ = ["register"]

group = typer.Typer(help="The embedded PostgreSQL, used when no database is named.")


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="db")


@group.command()
def start(context: typer.Context) -> None:
    """Start the embedded PostgreSQL, creating it at the first call."""
    from worker.database import embedded

    chosen = settings(context)
    with step("starting PostgreSQL"):
        embedded.start(chosen)
    _print_status(embedded.status(chosen))
    typer.echo('connect:  psql "$(embedworker db url)"')


@group.command()
def stop(context: typer.Context) -> None:
    """Stop it; the data stays."""
    from worker.database import embedded

    stopped = embedded.stop(settings(context))
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
    """Print its URL, starting it if need be: psql "$(embedworker db url)".

    The URL names the password file instead of holding the password, so that neither the screen nor
    a process list shows it; psql and every other libpq client read that file.
    """
    from worker.database import embedded

    chosen = settings(context)
    if not embedded.status(chosen).running:
        note("starting the embedded PostgreSQL")
        embedded.start(chosen)
    typer.echo(embedded.url(chosen, password=with_password))


@group.command()
def status(context: typer.Context, json: JsonOption = False) -> None:
    """Say whether it runs, where, and where its data is."""
    from worker.database import embedded

    found = embedded.status(settings(context))
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
