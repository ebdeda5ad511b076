"""``embedworker migrate``: sets a database up, brings it up to date, or takes it all out again."""

from typing import Annotated

import typer

from embedworker.cli.console import database_url, note, settings
from embedworker.errors import ConfigurationError

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
            help="Default model of the database; not given: no change.",
        ),
    ] = None,
    down: Annotated[
        bool,
        typer.Option("--down", help="Remove the schema embed; your vector tables stay."),
    ] = False,
    loopback_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Host under which the server reaches itself, for embed.query."
        ),
    ] = None,
    primary_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOSTS",
            help="Hosts under which standbys reach the primary, for embed.query there: "
            "db1,db2:5433?sslmode=verify-full. Not given: as before; '': none.",
        ),
    ] = None,
) -> None:
    """Set the database up for embedworker, or upgrade it; safe to repeat."""
    for flag, value in (("--loopback-host", loopback_host), ("--primary-host", primary_host)):
        if down and value is not None:
            raise ConfigurationError(f"--down and {flag} exclude each other")
    from psycopg.conninfo import conninfo_to_dict

    from embedworker.cli.database import explained
    from embedworker.database.connect import dsn
    from embedworker.database.migrate import downgrade
    from embedworker.database.migrate import migrate as upgrade

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
                    url,
                    model=model,
                    loopback_host=loopback_host or chosen.loopback_host,
                    primary_host=chosen.primary_host if primary_host is None else primary_host,
                )
    except BaseException:
        typer.echo("FAILED")
        raise
    typer.echo("done")
    for remark in remarks:
        note(f"note: {remark}")
