"""Commands that take several databases: the flags, and the URLs by name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from embedworker.cli.console import console, note, print_json, settings
from embedworker.errors import ConfigurationError, EmbedworkerError

__all__ = ["DatabaseUrls", "DatabasesFile", "for_each_database", "several_databases"]

DatabaseUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="PostgreSQL to use; repeat the flag for several databases.",
    ),
]
DatabasesFile = Annotated[
    Path | None,
    typer.Option(
        "--databases",
        metavar="FILE",
        help="File with one database URL per line (EMBEDWORKER_DATABASES).",
    ),
]
Read = Callable[[], Mapping[str, str]]


def several_databases(
    context: typer.Context, urls: list[str] | None, file: Path | None
) -> Read | None:
    """Return what reads the URLs of several databases by name; None where there is one.

    A single ``--database-url`` counts as the global flag from here on.
    """
    from embedworker.database.names import named, read_databases, split_urls

    root = context.find_root()
    if urls and file:
        raise ConfigurationError(
            "--database-url and --databases exclude each other; give one of them"
        )
    if urls:
        root.obj["database_url"] = "\n".join(urls)
    chosen = settings(context, databases=file)
    source = root.get_parameter_source("database_url")
    by_flag = urls or (source is not None and source.name == "COMMANDLINE")
    if chosen.databases is not None and (file or not by_flag):
        root.obj["databases"] = chosen.databases
        return partial(read_databases, chosen.databases)
    found = urls or split_urls(chosen.database_url or "")
    return partial(named, found) if len(found) > 1 else None


def for_each_database(
    context: typer.Context,
    urls: list[str] | None,
    file: Path | None,
    show: Callable[[], tuple[Any, bool]],
    *,
    json: bool,
) -> None:
    """Call ``show`` for the database of this call, or for each of several below its name.

    ``show`` prints a report unless for ``json``, and returns it for a machine and whether all is
    well. What goes wrong with one of several is printed, and the next is shown. Exits with 1 unless
    all is well.
    """
    read = several_databases(context, urls, file)
    if read is None:
        report, well = show()
    else:
        given = context.find_root().obj
        report, well = {}, True
        for name, url in read().items():
            given["database_url"] = url
            if not json:
                console().print(name, style="bold")
            try:
                report[name], good = show()
            except EmbedworkerError as error:
                note(f"error: {name}: {error}")
                report[name], good = {"error": str(error)}, False
            well = well and good
    if json:
        print_json(report)
    if not well:
        raise typer.Exit(1)
