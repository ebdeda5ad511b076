"""The command ``embedworker``: global flags, and the command groups put together.

A group is a module with ``register(app)``; add it to ``_GROUPS``. Modules here import what is heavy
(torch, SQLAlchemy, the settings) inside their commands, so that ``--help`` answers at once.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from embedworker.cli import (
    adapt,
    db,
    demo,
    doctor,
    fleet,
    judgements,
    mcp,
    migrate,
    models,
    run,
    search,
    serve,
    source,
    status,
    switch,
    web,
)
from embedworker.cli import eval as evaluation
from embedworker.cli.console import EXIT_WRONG_USE, fail
from embedworker.errors import ConfigurationError, EmbedworkerError

__all__ = ["app", "main"]

_GROUPS = (
    demo,
    migrate,
    source,
    switch,
    run,
    fleet,
    search,
    status,
    doctor,
    evaluation,
    judgements,
    adapt,
    models,
    serve,
    web,
    mcp,
    db,
)
_EPILOG = (
    "The help of a command names the environment variable of each flag that has one. Without a "
    "database URL an embedded PostgreSQL is used. Exit codes: 0 done, 1 failed, 2 wrong use."
)


class _Command(TyperCommand):
    """Its usage says TABLE COLUMN...; newer versions of typer would say {TABLE} {COLUMN...}..."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        options = [self.options_metavar] if self.options_metavar else []
        return options + [p.metavar or str(p.name).upper() for p in arguments]

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence whole; click would cut it to one line."""
        return super().get_short_help_str(max(limit, 1000))


class _Commands(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, cls=_Command, **options)


app = _Commands(
    name="embedworker",
    help="Text columns of PostgreSQL tables, searchable by meaning.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,  # its panels cut the names of variables at 80 columns, and say <bool>
    pretty_exceptions_enable=False,  # its tracebacks show local variables, passwords among them
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"embedworker {version('embedworker')}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    database_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar=["EMBEDWORKER_DATABASE_URL", "DATABASE_URL"],
            help="PostgreSQL to use; without one, the embedded server.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="EMBEDWORKER_DATA_DIR", help="Folder of the embedded server."),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(envvar="EMBEDWORKER_CACHE_DIR", help="Folder of the models.")
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_LOG_FORMAT", metavar="human|json", help="Format of log lines."
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            envvar="EMBEDWORKER_LOG_LEVEL",
            metavar="debug|info|warning|error",
            help="Lowest level of logged lines.",
        ),
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = {
        "database_url": database_url,
        "data_dir": data_dir,
        "cache_dir": cache_dir,
        "log_format": log_format,
        "log_level": log_level,
    }


for _group in _GROUPS:
    _group.register(app)


def main() -> None:
    """Run the command line: one line for an expected error, a traceback for a fault of ours."""
    from embedworker.cli.text import settle
    from embedworker.settings import forget_service_links

    try:
        settle()
        forget_service_links()
        app()
    except EmbedworkerError as error:
        if os.environ.get("EMBEDWORKER_DEBUG"):
            raise
        fail(str(error), EXIT_WRONG_USE if isinstance(error, ConfigurationError) else 1)
