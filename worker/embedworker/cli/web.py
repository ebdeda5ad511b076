"""``embedworker web``: a page for people."""

from typing import Annotated

import typer

from embedworker.cli.console import database_url, settings
from embedworker.extras import require

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(web)


def web(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_WEB_HOST", help="Address to listen on. [default: 127.0.0.1]"
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="EMBEDWORKER_WEB_PORT", help="Port; 0 takes any free port. [default: 8200]"
        ),
    ] = None,
    allow_actions: Annotated[
        bool,
        typer.Option(
            "--allow-actions",
            envvar="EMBEDWORKER_WEB_ALLOW_ACTIONS",
            help="Show buttons for pause, resume, sweep and retry; without it the page only reads.",
        ),
    ] = False,
    path: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_WEB_PATH", help="Path behind a proxy, such as /embedworker."
        ),
    ] = None,
) -> None:
    """Show the progress of tables, failures and a search in a browser.

    Prints the address with a token. Set your own token in EMBEDWORKER_WEB_TOKEN, or one per line in
    EMBEDWORKER_WEB_TOKEN_FILE.
    """
    chosen = settings(
        context,
        web_host=host,
        web_port=port,
        web_allow_actions=allow_actions or None,
        web_path=path,
    )
    require("`embedworker web`", "web")
    from embedworker.cli.database import explained
    from embedworker.service.logs import set_up_logs
    from embedworker.service.parent import end_with_parent
    from embedworker.web.server import serve

    set_up_logs(chosen)
    end_with_parent()  # of `embedworker run --web`
    with explained():
        serve(database_url(context), chosen)
