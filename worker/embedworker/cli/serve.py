"""``embedworker serve``: an embeddings API over HTTP, as OpenAI's clients speak it."""

from typing import Annotated

import typer

from embedworker.cli.console import settings
from embedworker.extras import require

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
            help="Address to listen on; it needs a token if other machines can reach it. "
            "[default: 127.0.0.1]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="EMBEDWORKER_SERVE_PORT", help="Port; 0 takes any free port. [default: 8100]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(envvar="EMBEDWORKER_MODEL", help="Model to serve.")
    ] = None,
    query_prefix: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_QUERY_PREFIX",
            help="Prefix of a question, for a model that is not in the catalogue; only this flag "
            "can set an empty one.",
        ),
    ] = None,
    passage_prefix: Annotated[
        str | None,
        typer.Option(envvar="EMBEDWORKER_PASSAGE_PREFIX", help="Prefix of a passage, likewise."),
    ] = None,
    default_role: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_SERVE_DEFAULT_ROLE",
            metavar="query|passage",
            help="What a text is where the request does not say: a client that cannot, such as "
            "LangChain's, embeds documents as questions otherwise. [default: query]",
        ),
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_SERVE_ALIAS",
            metavar="NAME",
            help="Second name of the model, for a client that insists on one.",
        ),
    ] = None,
) -> None:
    """Answer POST /v1/embeddings as OpenAI's API does, with a model in this process.

    Needs no database. Set the tokens of clients in EMBEDWORKER_SERVE_TOKEN, or one per line in
    EMBEDWORKER_SERVE_TOKEN_FILE. There is no flag, because every process of the machine could read
    it.
    """
    chosen = settings(
        context,
        serve_host=host,
        serve_port=port,
        model=model,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        serve_default_role=default_role,
        serve_alias=alias,
    )
    require("`embedworker serve`", "worker", "serve")
    from embedworker.service.logs import set_up_logs
    from embedworker.serving.server import serve as run

    set_up_logs(chosen)
    run(chosen)
