"""The words of a question in passages, marked by the database, so that a person sees the match."""

import re
from collections.abc import Sequence
from typing import Any

import psycopg

from embedworker.database.statements import statement

__all__ = ["Piece", "marked"]

Piece = tuple[str, bool]
"""A part of a passage, and whether it is marked."""

_MARKED = re.compile("\x01(.*?)\x02", re.DOTALL)


def marked(
    connection: psycopg.Connection[Any], passages: Sequence[str], question: str
) -> list[list[Piece]]:
    """Return each passage in pieces, which joined are the passage. Raises psycopg.Error."""
    rows = connection.execute(
        statement("search_marked"), {"passages": list(passages), "question": question}
    )
    # re.split with one group: every second part was between the two characters.
    return [
        [(part, place % 2 == 1) for place, part in enumerate(_MARKED.split(text or "")) if part]
        for (text,) in rows
    ]
