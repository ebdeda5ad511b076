"""What an adaptation reads from the table: texts, judged questions, and guard sets of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from embedworker.adapt.questions import Relevance, Split, split
from embedworker.adapt.ranking import QuestionSet
from embedworker.queue.source import load_sources
from embedworker.search.beir import read_beir
from embedworker.search.collection import Searched
from embedworker.search.judgements import judged_collection, key_texts

__all__ = ["Material", "read_beir_set", "read_material"]

ROWS: Final = 20_000  # texts that the held-out questions are asked of
CHOICE_ROWS: Final = 2_000  # texts that candidates are chosen by
CHARACTERS: Final = 2_000  # of a text; the bundled model reads about 1,200 of Korean
# Texts of each guard set. Of 100, one that falls from the first place to the second costs 0.0037 of
# the 0.005 that a set may lose: its chance decided, and held a gain of 0.0121 at a mixture of 0.2.
GUARDED: Final = 500
LONG: Final = 60  # characters that a text needs to be a third of a question

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Material:
    """Everything that is learned from and measured with; nothing else is read from the database."""

    texts: dict[str, str]
    questions: Split
    guards: tuple[QuestionSet, ...]

    def asked(self, name: str, relevance: Relevance, most: int = ROWS) -> QuestionSet:
        """Return questions about the texts that are right for them, and others up to ``most``."""
        right = dict.fromkeys(key for grades in relevance.values() for key in grades)
        keys = [key for key in right if key in self.texts]
        keys += [key for key in self.texts if key not in right][: max(0, most - len(keys))]
        at = {key: number for number, key in enumerate(keys)}
        known = {
            question: {at[key]: grade for key, grade in grades.items() if key in at}
            for question, grades in relevance.items()
        }
        found = {question: grades for question, grades in known.items() if any(grades.values())}
        return QuestionSet(name, [self.texts[key] for key in keys], found)


def read_material(
    connection: Connection, source: Searched, seed: int, guards: Sequence[Path], fewest: int
) -> Material:
    """Read texts and judgements of a table, and guard sets from folders in BEIR's format.

    Raises:
        SourceError: too few questions are judged.
        ConfigurationError: a folder is not in BEIR's format.
    """
    folders = [read_beir_set(folder) for folder in guards]
    questions = split(judged_collection(connection, source, fewest=0).relevance, seed, fewest)
    own = next(one for one in load_sources(connection) if one.id == source.id)
    query = own.render("adapt_rows", keys=source.columns("s"), texts=key_texts(source, "s"))
    asked = {"relation": source.relation, "characters": CHARACTERS, "most": ROWS}
    texts = {source.document(key): text for text, *key in connection.execute(query, asked)}
    return Material(texts, questions, (*own_guards(list(texts.values())), *folders))


def read_beir_set(folder: Path) -> QuestionSet:
    """Return a benchmark as questions about texts."""
    collection = read_beir(folder)
    at = {document: number for number, document in enumerate(collection.documents)}
    relevance = {
        collection.questions[number]: {at[document]: grade for document, grade in grades.items()}
        for number, grades in collection.relevance.items()
    }
    return QuestionSet(collection.name, list(collection.documents.values()), relevance)


def own_guards(texts: Sequence[str]) -> list[QuestionSet]:
    """Return sets whose question is a third of a text, which is to find its text among others.

    They need no judgement, and say whether the model still tells the table's rows apart.
    """
    pool = list(dict.fromkeys(texts))[:CHOICE_ROWS]
    sample = [number for number, text in enumerate(pool) if len(text) >= LONG][:GUARDED]
    sets = []
    for third, name in enumerate(("beginnings", "middles", "ends")):
        relevance = {}
        for number in sample:
            size = len(pool[number]) // 3
            relevance[pool[number][third * size : (third + 1) * size].strip()] = {number: 1}
        if relevance:
            sets.append(QuestionSet(f"the table's own {name}", pool, relevance))
    return sets
