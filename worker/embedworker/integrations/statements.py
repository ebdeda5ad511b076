"""Queries of ``sql/`` for SQLAlchemy, which writes parameters as each of its drivers has them."""

import re
from functools import cache

from sqlalchemy import TextClause, text

from embedworker.database.statements import statement

__all__ = ["clause"]

_PARAMETER = re.compile(r"%\((\w+)\)s|%%|(?<!:):(?!:)")


@cache
def clause(name: str) -> TextClause:
    """Return the query ``name`` with its parameters as SQLAlchemy's own."""

    def translated(match: re.Match[str]) -> str:
        if match[1] is not None:
            return f"(:{match[1]})"  # or SQLAlchemy would read :name::text as another name
        return "%" if match[0] == "%%" else r"\:"

    return text(_PARAMETER.sub(translated, statement(name)))
