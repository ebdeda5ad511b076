"""``embedworker judgements``: which rows answer which questions of a table."""

from pathlib import Path
from typing import Annotated

import typer

from embedworker.cli.source import NameOption, TableArgument

__all__ = ["register"]

group = typer.Typer(help="Keep which rows answer which questions of a table.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="judgements")


@group.callback()
def _group() -> None:
    pass


@group.command("import")
def import_(
    context: typer.Context,
    table: TableArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='Lines of {"question": "…", "key": …}.')
    ],
    name: NameOption = None,
) -> None:
    """Write the questions of a file, and the keys of the rows that answer them, to embed.judgement.

    One line for each right row: {"question": "how do I …?", "key": 17}. A key of several columns is
    a list, or an object by column. A line that is there already changes nothing.
    """
    from embedworker.cli.database import connected, find_table
    from embedworker.search.beir import read_questions
    from embedworker.search.collection import find_source
    from embedworker.search.judgements import import_questions

    own = read_questions(file)
    with connected(context) as connection:
        source = find_source(connection, find_table(connection, table).oid, name)
        written = import_questions(connection, source, own)
    asked = len({line.question for line in own})
    typer.echo(f"{written} judgements of {asked} questions are kept for {source.qualified}")
