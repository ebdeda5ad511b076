"""The model card: how a model was made, and what was measured before it was accepted."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from embedworker.adapt.training import Recipe
from embedworker.search.measures import Difference

__all__ = ["write_card"]

PACKAGES = ("embedworker", "sentence-transformers", "transformers", "torch", "datasets")


def write_card(
    file: Path,
    *,
    base: str,
    revision: str,
    questions: str,
    pairs: int,
    recipe: Recipe,
    weight: float,
    figures: Mapping[str, Mapping[str, Difference]],
    before: Mapping[str, Mapping[str, float]],
) -> None:
    """Write sizes, seed, versions and figures. No question and no text of a row is in it."""
    lines = [
        "# A model adapted to one table",
        "",
        f"Made by `embedworker adapt` from {base} ({revision}).",
        "",
        f"- questions: {questions}; {pairs} pairs of a question and a row",
        f"- recipe: {', '.join(f'{name} {value}' for name, value in asdict(recipe).items())}",
        f"- {weight:g} of the trained weights and {1 - weight:g} of the base's",
        f"- versions: {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
        "",
        "| nDCG@10 | ranking | base | difference | standard error |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {way} | {before[name][way]:.4f} | {one.difference:+.4f} |"
        f" {one.standard_error:.4f} |"
        for name, ways in figures.items()
        for way, one in ways.items()
    ]
    file.write_text("\n".join(lines) + "\n", "utf-8")
