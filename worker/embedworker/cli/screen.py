"""What the demonstration prints: steps with their time, SQL, and what was found.

On a terminal with spinners and bars; in a pipe as plain lines of the same content.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len, set_cell_size
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from embedworker.cli.console import console

__all__ = ["Screen"]

LABEL = 12  # cells of the words at the left
LITERAL = 44  # cells of a text in SQL that are shown
INDENT = 3
_LITERAL = re.compile(r"'(?:[^']|'')*'")


class Screen:
    """Prints to stdout, at most as wide as the terminal."""

    def __init__(self) -> None:
        self._console = console()

    def title(self, text: str) -> None:
        """Print a line above everything."""
        self._console.print(Text(text, style="bold"))
        self._console.print()

    def fact(self, label: str, text: str, *, took: float | None = None) -> None:
        """``label   text (1.2 s)``, the text wrapped beside the label."""
        line = Text(text)
        if took is not None:
            line.append(f" ({took:.1f} s)", style="dim")
        room = max(self._console.width - LABEL, 20)
        for number, part in enumerate(line.wrap(self._console, room)):
            beside = Text(label if number == 0 else "", style="bold")
            beside.pad_right(LABEL - beside.cell_len)
            part.rstrip()
            self._console.print(beside + part)

    @contextmanager
    def doing(self, label: str, text: str) -> Iterator[Callable[[str], None]]:
        """Show ``text`` with a spinner, then as a fact with its time; the function replaces it."""
        started = time.monotonic()
        said = text

        def say(other: str) -> None:
            nonlocal said
            said = other

        if self._console.is_terminal:
            with self._console.status(f"{label:{LABEL}}{text} …"):
                yield say
        else:
            yield say
        self.fact(label, said, took=time.monotonic() - started)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[str, float], None]]:
        """Show a bar on a terminal; the function takes the current step and its share, 0 to 1."""
        with Progress(
            TextColumn(f"{label:{LABEL}}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda text, share: progress.update(task, description=text, completed=share)

    def heading(self, number: int, text: str) -> None:
        """Print the heading of a part."""
        self._console.print()
        self._console.print(Text(f"{number}. {text}", style="bold"))

    def sql(self, statement: str) -> None:
        """Print a statement as it was sent; long texts in it are cut."""
        shown = _LITERAL.sub(lambda match: _cut(match[0]), statement.rstrip().rstrip(";") + ";")
        self._indented(Text(shown, style="cyan"), INDENT)

    def hits(self, hits: Sequence[tuple[str, float]]) -> None:
        """Titles and scores, the first one marked. A score orders these hits and no others."""
        for place, (title, score) in enumerate(hits):
            arrow = "→" if place == 0 else " "
            line = Text(f"{arrow:>{INDENT}} {score:.3f}  {title}")
            line.stylize("green" if place == 0 else "dim")
            self._console.print(line)

    def row(self, values: dict[str, object]) -> None:
        """One row of a result, name by name."""
        line = "   ".join(f"{name} {value}" for name, value in values.items())
        self._console.print(Text(f"{'→':>{INDENT}} {line}", style="green"))

    def say(self, text: str) -> None:
        """Print a sentence about the output above."""
        self._indented(Text(text), INDENT + 1)

    def gap(self) -> None:
        """Print an empty line."""
        self._console.print()

    def _indented(self, text: Text, cells: int) -> None:
        for line in text.wrap(self._console, max(self._console.width - cells, 20)):
            line.rstrip()
            line.pad_left(cells)
            self._console.print(line)


def _cut(literal: str) -> str:
    if cell_len(literal) <= LITERAL:
        return literal
    return set_cell_size(literal, LITERAL - 2).rstrip() + "…'"
