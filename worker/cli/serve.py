"""``embedworker serve``: an embeddings API over HTTP, as OpenAI's clients speak it."""

from typing import Annotated

import typer

from worker.cli.console import settings
from worker.errors import ConfigurationError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_SERVE_HOST",
            help="Address to listen on; any but this machine's own needs a token. "
            "[default: 127.0.0.1]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="EMBEDWORKER_SERVE_PORT", help="Port; 0 takes any that is free. [default: 8100]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar="EMBEDWORKER_MODEL", help="Model to serve.")
    ] = None,
    query_prefix: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_QUERY_PREFIX",
            help="What stands before a question, for a model that is not in the catalogue; "
            "an empty one can only be said here.",
        ),
    ] = None,
    passage_prefix: Annotated[
        str | None,
        typer.Option(envvar="EMBEDWORKER_PASSAGE_PREFIX", help="The same before a passage."),
    ] = None,
) -> None:
    """Answer POST /v1/embeddings as OpenAI's API does, with a model in this process.

    Needs no database. Tokens of clients: EMBEDWORKER_SERVE_TOKEN, or EMBEDWORKER_SERVE_TOKEN_FILE
    with one a line; never a flag, which every process of the machine could read.
    """
    chosen = settings(
        context,
        serve_host=host,
        serve_port=port,
        model=model,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )
    try:
        from worker.serving.server import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigurationError(
            f"{error.name} is not installed; pip install 'embedworker[serve]'"
        ) from error
    from worker.service.logs import set_up_logs

    set_up_logs(chosen)
    run(chosen)
