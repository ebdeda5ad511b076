"""The judgements of a table: ``embed.judgement`` filled from a file, and read as a collection."""

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from embedworker.database.numbers import dumps
from embedworker.database.statements import render
from embedworker.errors import SourceError
from embedworker.normalization import normalized
from embedworker.search.beir import Collection, OwnQuestion
from embedworker.search.collection import Searched, key_object, own_collection, plain, quoted

__all__ = ["FEWEST", "import_questions", "judged_collection", "key_texts"]

FEWEST = 30
"""Questions from which on a mean is worth telling. The standard deviation of nDCG@10 over questions
is about 0.3, so the standard error of 30 is 0.055."""

Connection = psycopg.Connection[tuple[Any, ...]]


def import_questions(connection: Connection, source: Searched, own: Sequence[OwnQuestion]) -> int:
    """Write a person's questions and right rows into ``embed.judgement``; all of them or none.

    Returns how many judgements were written. Lines that say the same count once.

    Raises:
        ConfigurationError: a key is not one of the table's form.
        DatabaseError: rows of these keys are not in the table, or a key cannot be read.
    """
    own_collection(connection, source, "", own)  # refuses keys that no row has
    columns = [plain(key) for key in source.keys]
    given = [
        {"question": normalized("NFC", line.question), "key": key_object(line, columns)}
        for line in own
    ]
    query = render(
        "judgements_import", texts=key_texts(source, "given"), relation=_relation(source)
    )
    return connection.execute(
        query, {"given": Jsonb(given, dumps=dumps), "relation": source.relation}
    ).rowcount


def judged_collection(connection: Connection, source: Searched, fewest: int = FEWEST) -> Collection:
    """Return the judged questions that a row answers, with the grades of their rows.

    Judgements of rows that are gone are left out.

    Raises:
        SourceError: there are fewer than ``fewest`` questions, too few to conclude from.
    """
    query = render(
        "judgements_read",
        found=source.columns("found"),
        texts=key_texts(source, "found"),
        only=sql.SQL("" if source.partitioned else "only"),
        relation=_relation(source),
    )
    questions: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for question, grade, *key in connection.execute(query, {"relation": source.relation}):
        relevance.setdefault(question, {})[source.document(key)] = grade
    for question in list(relevance):
        if any(relevance[question].values()):
            questions[question] = question
        else:
            del relevance[question]
    if len(questions) < fewest:
        raise SourceError(
            f"{source.qualified} has {len(questions)} judged questions, too few to conclude from: "
            f"at least {fewest} are needed; add some with `embedworker judgements import`, or keep "
            "what people choose with embed.log_questions"
        )
    return Collection("judgements", questions, relevance)


def key_texts(source: Searched, row: str) -> sql.Composed:
    """Return the key columns of ``row`` as embed.judgement has them."""
    each = [
        sql.SQL("pg_catalog.to_jsonb({}) #>> '{{}}'").format(quoted(f"{row}.{key}"))
        for key in source.keys
    ]
    return sql.SQL(", ").join(each)


def _relation(source: Searched) -> sql.SQL:
    return quoted(source.qualified)
