"""``embedworker mcp``: tools for assistants."""

from typing import Annotated

import typer

from embedworker.cli.console import database_url, settings
from embedworker.extras import require

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(mcp)


def mcp(
    context: typer.Context,
    tables: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_MCP_TABLES",
            metavar="A,B",
            help="Tables to show; without it, all that the login may read.",
        ),
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Answer over HTTP instead of standard input and output.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_MCP_HOST",
            help="Address of --http; it needs a token if other machines can reach it. "
            "[default: 127.0.0.1]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="EMBEDWORKER_MCP_PORT",
            help="Port of --http; 0 takes any free port. [default: 8300]",
        ),
    ] = None,
) -> None:
    """Give assistants tools to search tables, over the Model Context Protocol.

    It only reads, with the rights of the login. For --http set the tokens of clients in
    EMBEDWORKER_MCP_TOKEN, or one per line in EMBEDWORKER_MCP_TOKEN_FILE.
    """
    chosen = settings(context, mcp_tables=tables, mcp_host=host, mcp_port=port)
    require("`embedworker mcp`", "mcp")
    from embedworker.assistant.server import serve
    from embedworker.cli.database import explained
    from embedworker.service.logs import set_up_logs

    set_up_logs(chosen)
    with explained():
        serve(database_url(context), chosen, http=http)
