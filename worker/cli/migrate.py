"""``embedworker migrate``: sets a database up, brings it up to date, or takes it all out again."""

from typing import Annotated

import typer

from worker.cli.console import database_url, note, settings
from worker.errors import ConfigurationError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(migrate)


def migrate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_MODEL",
            metavar="NAME",
            help="Default model of the database; not given: the one it has.",
        ),
    ] = None,
    down: Annotated[
        bool,
        typer.Option("--down", help="Take the schema embed out; vector tables of yours stay."),
    ] = False,
    loopback_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Host under which the server reaches itself, for embed.query."
        ),
    ] = None,
) -> None:
    """Set the database up for embedworker, or bring it up to date; safe to repeat."""
    if down and loopback_host is not None:
        raise ConfigurationError("--down and --loopback-host exclude each other")
    from psycopg.conninfo import conninfo_to_dict

    from worker.cli.database import explained
    from worker.database.connect import dsn
    from worker.database.migrate import downgrade
    from worker.database.migrate import migrate as upgrade

    chosen = settings(context)
    url = database_url(context)
    known = conninfo_to_dict(dsn(url))
    name = known.get("dbname") or known.get("user") or "the database"
    remarks: list[str] = []
    typer.echo(f"{'taking embed out of' if down else 'migrating'} {name} … ", nl=False)
    try:
        with explained():
            if down:
                downgrade(url)
            else:
                remarks = upgrade(
                    url, model=model, loopback_host=loopback_host or chosen.loopback_host
                )
    except BaseException:
        typer.echo("FAILED")
        raise
    typer.echo("done")
    for remark in remarks:
        note(f"note: {remark}")
