"""``embedworker adapt``: train a model on a table's own questions, and keep it if it is better."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedworker.cli.console import columns, console, note, settings
from embedworker.cli.source import NameOption, TableArgument
from embedworker.errors import SourceError
from embedworker.extras import require

if TYPE_CHECKING:
    from embedworker.adapt.adaptation import Outcome

__all__ = ["register"]

REFUSED = 1  # exit code


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adapt)


def adapt(
    context: typer.Context,
    table: TableArgument,
    guard: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder in BEIR's format that may lose 0.005 at most."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the model goes; not given: the cache folder."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the split and the training.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Times each pair is read.")] = 2,
    search: Annotated[
        bool, typer.Option("--search", help="Train four candidates: two rates, two margins.")
    ] = False,
    switch: Annotated[
        bool, typer.Option("--switch", help="Begin the switch to the model if it is accepted.")
    ] = False,
    name: NameOption = None,
) -> None:
    """Train the table's model on its judged questions; keep the result only if it is better.

    Seven tenths of the questions are trained on, one chooses the mixture with the present model,
    and two are held out. The new model is kept if it gains on the held-out questions more than two
    standard errors of nDCG@10, and loses at most 0.005 on every guard set: three of the table's own
    texts, and each --guard. Otherwise nothing is changed. A run that was stopped goes on.
    """
    require("`embedworker adapt`", "worker", "eval", "adapt")
    from filelock import FileLock, Timeout

    from embedworker.adapt.adaptation import Adaptation
    from embedworker.adapt.material import read_material
    from embedworker.adapt.questions import FEWEST
    from embedworker.adapt.training import Recipe
    from embedworker.cli.database import connected, find_table
    from embedworker.cli.evaluation import progress_bar
    from embedworker.database.statements import statement
    from embedworker.model.bundled import models_folder
    from embedworker.model.cpu import cpu_quota, set_threads
    from embedworker.model.factory import card_for
    from embedworker.model.locate import locate
    from embedworker.queue.source import load_sources
    from embedworker.search.collection import find_source

    chosen = settings(context)
    os.nice(chosen.nice)
    set_threads(cpu_quota())
    with connected(context) as connection:
        source = find_source(connection, find_table(connection, table).oid, name)
        row = connection.execute(statement("model_card"), {"name": source.model}).fetchone()
        if row is None:
            raise SourceError(f"the database does not know the model {source.model!r}")
        material = read_material(connection, source, seed, guard or [], FEWEST)
        (lexical,) = connection.execute(
            statement("adapt_lexical"), {"source": source.id}
        ).fetchone() or (0.0,)
        number = next(one.id for one in load_sources(connection) if one.id == source.id)
    card = card_for(source.model, query_prefix=row[3], passage_prefix=row[4])
    located = locate(card, chosen.cache_dir, None)
    folder = models_folder(chosen.cache_dir).parent / "adapted" / f"{number}-{seed}"
    made = output or folder / "model"
    if made.exists():
        raise SourceError(f"{made} is there already; name another folder with --output")
    first = Recipe(seed=seed, epochs=epochs)
    recipes = [first]
    if search:
        recipes = [
            replace(first, rate=rate, margin=margin)
            for rate in (first.rate, first.rate / 2)
            for margin in (first.margin, 0.05)
        ]
    note(str(material.questions))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", blocking=False):
            adaptation = Adaptation(card, located, material, lexical, folder / "work", progress_bar)
            outcome = adaptation.run(recipes, made)
    except Timeout:
        raise SourceError(f"another adaptation of {table} runs; wait until it has ended") from None
    _print(outcome)
    if not outcome.verdict.accepted:
        for reason in outcome.verdict.reasons:
            note(f"refused: {reason}")
        raise typer.Exit(REFUSED)
    typer.echo(f"accepted: {made}")
    known = {
        "name": str(made.resolve()),
        "dimensions": row[1],
        "max_tokens": row[2],
        "query_prefix": row[3],
        "passage_prefix": row[4],
    }
    with connected(context) as connection:
        connection.execute(statement("adapt_model"), known)
        if switch:
            begun = {"relation": source.relation, "model": known["name"], "name": name}
            connection.execute(statement("switch_begin"), begun | {"storage": None})
            typer.echo("the switch has begun; see `embedworker switch status`")
        else:
            typer.echo(f"next: embedworker switch start {table} {known['name']}")


def _print(outcome: "Outcome") -> None:
    typer.echo(
        f"{outcome.weight:g} of the trained weights and {1 - outcome.weight:g} of the base's, "
        f"rate {outcome.recipe.rate:g}, margin {outcome.recipe.margin:g}"
    )
    lines = [["nDCG@10", "ranking", "base", "difference", "standard error"]]
    for name, ways in outcome.figures.items():
        for way, one in ways.items():
            lines.append(
                [
                    name,
                    way,
                    f"{outcome.base[name][way]:.4f}",
                    f"{one.difference:+.4f}",
                    f"{one.standard_error:.4f}",
                ]
            )
    for line in columns(lines, console().width, right=range(2, 5)):
        typer.echo(line)
