"""The two sides of a switch asked by the same questions: how their answers differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from embedworker.search.beir import Collection, read_asked, read_questions
from embedworker.search.collection import Searched, own_collection
from embedworker.search.evaluate import Setting, ask
from embedworker.search.measures import Run, compared, measured

__all__ = ["Change", "Judgement", "collection_of", "judge"]

Connection = psycopg.Connection[tuple[Any, ...]]

SURE = 1.96  # standard errors: 95 of 100 differences are not further away


@dataclass(frozen=True, slots=True)
class Change:
    """A question with its rows on both sides, best first, and the share of rows that both have."""

    question: str
    overlap: float
    before: list[str]
    after: list[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was measured. ``difference`` is of nDCG@k, None where the right rows are not known.

    ``lower`` is the bound below it that 97.5 of 100 differences are above.
    """

    questions: int
    k: int
    overlap: float
    first_changed: int
    difference: float | None
    standard_error: float | None
    lower: float | None
    most_changed: list[Change]


def collection_of(
    connection: Connection, source: Searched, file: Path | None, texts: Sequence[str]
) -> Collection:
    """Return the questions of a file, with the right rows where it names them, or ``texts``.

    Raises:
        ConfigurationError: the file is missing or wrong.
        DatabaseError: rows that it names are not in the table.
    """
    if file is None:
        return Collection("the table's own texts", {text: text for text in texts}, {})
    asked = read_asked(file)
    if asked is not None:
        return Collection(file.name, {text: text for text in asked}, {})
    return own_collection(connection, source, file.name, read_questions(file))


def judge(
    connection: Connection,
    before: Searched,
    after: Searched,
    collection: Collection,
    k: int,
    progress: Callable[[int], None],
) -> Judgement:
    """Ask both sides every question and compare the first ``k`` rows.

    Raises:
        psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
    """
    runs: list[Run] = []
    for number, side in enumerate((before, after)):

        def show(done: int, number: int = number) -> None:
            progress(number * len(collection.questions) + done)

        runs.append(ask(connection, side, collection, [Setting()], k, show, quick=True)[0].run)
    changes = [
        _change(question, runs[0].get(number, {}), runs[1].get(number, {}), k)
        for number, question in collection.questions.items()
    ]
    difference = error = None
    if collection.relevance:
        old, new = (measured(collection.relevance, run, {}, k) for run in runs)
        found = compared(new, old)[f"nDCG@{k}"]
        difference, error = found.difference, found.standard_error
    return Judgement(
        questions=len(changes),
        k=k,
        overlap=sum(change.overlap for change in changes) / len(changes),
        first_changed=sum(change.before[:1] != change.after[:1] for change in changes),
        difference=difference,
        standard_error=error,
        lower=None if difference is None or error is None else difference - SURE * error,
        most_changed=sorted(changes, key=lambda change: change.overlap),
    )


def _change(
    question: str, before: Mapping[str, float], after: Mapping[str, float], k: int
) -> Change:
    rows = [sorted(found, key=found.__getitem__, reverse=True)[:k] for found in (before, after)]
    most = max(len(rows[0]), len(rows[1]), 1)
    return Change(question, len(set(rows[0]) & set(rows[1])) / most, rows[0], rows[1])
