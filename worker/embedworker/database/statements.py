"""The named queries of ``sql/queries/*.sql``, for Python to name and never to write.

A file holds any number of these, separated by blank lines::

    -- claim
    -- Lease up to a window of due rows and return their keys.
    select …
    from {queue}
    where due <= %(now)s;

The first comment line is the name, the next ones say what the query is for. ``%(named)s`` is a
parameter, ``{queue}`` an identifier. A literal brace is doubled; a literal percent sign too, and
parameters are then always passed to ``execute``, if only as ``{}``.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import LiteralString

from psycopg import sql

from embedworker.resources import sql_folder

__all__ = ["purpose", "render", "statement"]

_HEADER = re.compile(
    r"-- (?P<name>[a-z][a-z0-9_]*)\n(?P<purpose>(?:--[^\n]*\n)+)(?P<body>[^-\s].*)", re.S
)
_NEXT_HEADER = re.compile(r"\n\s*\n(?=-- [a-z][a-z0-9_]*\n--)")


def statement(name: str) -> LiteralString:
    """Return the query ``name``, which has no identifiers to fill in."""
    return _statement(sql_folder() / "queries", name)


@cache
def _statement(folder: Path, name: str) -> LiteralString:
    text = _lookup(folder, name)[1]
    needed = sorted({field for _, field, _, _ in Formatter().parse(text) if field is not None})
    if needed:
        raise ValueError(
            f"the query {name!r} needs the identifiers {', '.join(needed)}; use render"
        )
    return text.format()


def render(name: str, **identifiers: sql.Composable) -> sql.Composed:
    """Return the query ``name`` with its ``{placeholders}`` filled in, quoted by psycopg."""
    return sql.SQL(_lookup(sql_folder() / "queries", name)[1]).format(**identifiers)


def purpose(name: str) -> str:
    """Return what the query ``name`` is for, as written above it."""
    return _lookup(sql_folder() / "queries", name)[0]


def _lookup(folder: Path, name: str) -> tuple[str, LiteralString]:
    queries = _load(folder)
    if name not in queries:
        raise LookupError(f"no query is named {name!r}; there are: {', '.join(sorted(queries))}")
    return queries[name]


@cache
def _load(folder: Path) -> dict[str, tuple[str, LiteralString]]:
    queries: dict[str, tuple[str, LiteralString]] = {}
    for file in sorted(folder.glob("*.sql")):
        for name, reason, text in _parse(file.read_text(encoding="utf-8"), file.name):
            if name in queries:
                raise ValueError(f"{file.name}: the query {name!r} exists already; rename one")
            queries[name] = (reason, text)
    return queries


def _parse(content: str, source: str) -> Iterator[tuple[str, str, LiteralString]]:
    for block in filter(None, (part.strip() for part in _NEXT_HEADER.split(content))):
        match = _HEADER.fullmatch(block + "\n")
        start = block.partition("\n")[0]
        if match is None:
            raise ValueError(
                f"{source}: expected '-- name', '-- purpose' and a statement, found {start!r}"
            )
        body = match["body"].strip()
        if not body.endswith(";") or re.search(r";[ \t]*\n", body):
            raise ValueError(f"{source}: {start!r} must hold one statement that ends with ;")
        lines = (line.removeprefix("--").strip() for line in match["purpose"].splitlines())
        yield match["name"], " ".join(lines), body[:-1]
