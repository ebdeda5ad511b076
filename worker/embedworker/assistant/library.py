"""What an assistant may look up: rows by meaning, one row by its key, and what there is.

Each call is a transaction that only reads, with the rights and row security of the login. A budget
of tokens bounds each answer, because an assistant reads all of it.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row

from embedworker.database.numbers import dumps, loads_row
from embedworker.database.statements import render, statement
from embedworker.errors import ConfigurationError, SourceError
from embedworker.search.functions import similar
from embedworker.search.steps import Hit
from embedworker.state.store import Look, Store

__all__ = ["BUDGET", "Library"]

BUDGET = 2000  # tokens of an answer
BYTES_A_TOKEN = 3  # of UTF-8: one Korean letter; English has about 4 characters in a token
LEAST = 200  # characters that a text keeps when it is cut
SHORT = 200  # tokens of a value that a hit shows beside its passage


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    qualified: str
    comment: str | None
    rows: int
    columns: dict[str, str]
    bare: list[str]
    numeric: list[str]


class Library:
    """The tables that assistants may read: ``allowed``, or all that the login may read.

    Its methods raise EmbedworkerError and psycopg.Error. ``timeout`` bounds the wait for a
    question's vector, in seconds.
    """

    def __init__(self, store: Store, allowed: Sequence[str], timeout: float) -> None:
        self._store = store
        self._allowed = frozenset(allowed)
        self._timeout = timeout

    def sources(self) -> dict[str, Any]:
        """Return the tables: name, comment, about how many rows, columns and their types."""
        with self._look() as look:
            found = self._tables(look)
        return {
            "tables": [
                {"table": t.name, "comment": t.comment, "rows": t.rows, "columns": t.columns}
                for t in found
            ]
        }

    def search(
        self,
        table: str,
        question: str,
        k: int,
        matching: Mapping[str, Any] | None,
        skip: int,
        budget: int,
    ) -> dict[str, Any]:
        """Return the rows of a table nearest in meaning to a question, the nearest first."""
        _check(budget)
        with self._look() as look:
            chosen = self._table(look, table)
            found = look.search(
                chosen.qualified,
                question,
                k,
                lexical=None,
                rerank=None,
                matching=None if matching is None else dict(matching),
                skip=skip,
                timeout=self._timeout,
            )
        return _answer(found.hits, chosen, budget, found.remarks)

    def similar(self, table: str, key: Any, k: int, budget: int) -> dict[str, Any]:
        """Return the rows of a table nearest in meaning to the row with this key."""
        _check(budget)
        with self._look() as look:
            chosen = self._table(look, table)
            hits = similar(look.connection, chosen.qualified, key, k)
        return _answer(hits, chosen, budget, [])

    def read(self, table: str, key: Any, start: int, budget: int) -> dict[str, Any]:
        """Return one row without its vectors, the texts from the character ``start`` on.

        A text that the budget cuts is in ``cut``, with the character from which to read on.
        """
        _check(budget)
        with self._look() as look:
            chosen = self._table(look, table)
            row = _read(look, chosen, key)
        return _pieces(row, max(start, 0), budget)

    def status(self) -> dict[str, Any]:
        """Return how far the tables are: coverage, rows that wait, rows that failed."""
        with self._look() as look:
            shown = {table.name for table in self._tables(look)}
            rows = [row for row in look.status() if row.source in shown]
        return {
            "tables": [
                {
                    "table": row.source,
                    "state": row.state,
                    "model": row.model,
                    "coverage": None if row.coverage is None else float(row.coverage),
                    "rows": row.rows,
                    "pending": row.pending,
                    "failed": row.dead,
                    "error": row.error,
                }
                for row in rows
            ]
        }

    @contextmanager
    def _look(self) -> Iterator[Look]:
        with self._store.look(self._timeout + 10) as look:
            yield look

    def _tables(self, look: Look) -> list[_Table]:
        readable = dict(look.searchable())
        if self._allowed:
            readable = {
                name: qualified
                for name, qualified in readable.items()
                if not self._allowed.isdisjoint((name, qualified))
            }
        with look.connection.cursor(row_factory=class_row(_Table)) as cursor:
            asked = {"tables": list(readable.values())}
            return cursor.execute(statement("mcp_tables"), asked).fetchall()

    def _table(self, look: Look, name: str) -> _Table:
        tables = self._tables(look)
        for table in tables:
            if name in (table.name, table.qualified):
                return table
        names = ", ".join(table.name for table in tables) or "none"
        raise SourceError(f"{name!r} is no table that can be searched here; there are: {names}")


def _read(look: Look, table: _Table, key: Any) -> dict[str, Any]:
    rows = look.connection.execute(statement("mcp_key"), {"table": table.qualified}).fetchall()
    ((names, types, plain),) = rows
    values = _values(key, plain, table.name)
    # The server has quoted the names of columns and types.
    condition = sql.SQL(" and ").join(
        _sql(f"r.{name} operator(pg_catalog.=) (")
        + sql.Placeholder(f"v{place}")
        + _sql(f"::text)::{kind}")
        for place, (name, kind) in enumerate(zip(names, types, strict=True))
    )
    query = render("mcp_row", relation=_sql(table.qualified), condition=condition)
    asked = {f"v{place}": value for place, value in enumerate(values)}
    found = look.connection.execute(query, asked).fetchone()
    if found is None:
        raise SourceError(f"{table.name} has no row with the key {key!r} that this login may read")
    row = loads_row(found[0], table.numeric)
    return {name: value for name, value in row.items() if name not in table.bare}


def _sql(quoted: str) -> sql.SQL:
    return sql.SQL(quoted.replace("%", "%%"))


def _values(key: Any, names: Sequence[str], table: str) -> list[str]:
    given = [key]
    if isinstance(key, Mapping):
        given = [key[name] for name in names] if set(key) == set(names) else []
    elif isinstance(key, list):
        given = key
    if len(given) != len(names):
        raise ConfigurationError(
            f"the key {key!r} does not fit the key of {table}; give the values of "
            f"{', '.join(names)} by name, as `key` of a search has them"
        )
    return [value if isinstance(value, str) else json.dumps(value) for value in given]


def _check(budget: int) -> None:
    if budget < 1:
        raise ConfigurationError(f"budget is {budget}; expected tokens, such as {BUDGET}")


def _size(value: Any) -> int:
    """Return about how many tokens a value has as JSON."""
    return -(-len(dumps(value, ensure_ascii=False).encode(errors="replace")) // BYTES_A_TOKEN)


def _answer(
    hits: Sequence[Hit], table: _Table, budget: int, remarks: Collection[str]
) -> dict[str, Any]:
    """Return as many hits as fit the budget: the best first, and the rest as a count."""
    shown: list[dict[str, Any]] = []
    spent = 0
    for hit in hits:
        row = {name: value for name, value in hit.row.items() if name not in table.bare}
        entry = {"key": hit.key, "score": round(hit.score, 4), "passage": hit.passage}
        # The passage has the place that matches. Other texts are as long as their room allows.
        others = {n: v for n, v in row.items() if n not in hit.key and _size(v) <= SHORT}
        size = _size(entry | {"row": others})
        if size > budget - spent:
            others, size = {}, _size(entry)
        if size > budget - spent:
            if shown:
                break
            entry["passage"] = hit.passage[: max(LEAST, budget * BYTES_A_TOKEN // 4)]
        shown.append(entry | {"row": others})
        spent += size
    answer: dict[str, Any] = {"hits": shown, "left_out": len(hits) - len(shown)}
    if remarks:
        answer["remarks"] = list(remarks)
    return _plain(answer)


def _pieces(row: Mapping[str, Any], start: int, budget: int) -> dict[str, Any]:
    """Return a row whose texts are cut so that all of it fits the budget."""
    shown: dict[str, Any] = {}
    cut: dict[str, int] = {}
    spent = 0
    for name, value in sorted(row.items(), key=lambda item: _size(item[1])):
        text = value[start:] if isinstance(value, str) and len(value) > start > 0 else value
        size = _size(text)
        if size > budget - spent:
            whole = text if isinstance(text, str) else dumps(text, ensure_ascii=False)
            piece = whole.encode()[: max(budget - spent, 0) * BYTES_A_TOKEN]
            text = piece.decode(errors="ignore") or whole[:LEAST]
            size = _size(text)
            cut[name] = start + len(text)
        shown[name] = text
        spent += size
    ordered = {name: shown[name] for name in row}
    return _plain({"row": ordered, "cut": cut})


def _plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer in values of JSON; a number that no float holds is a text."""
    plain: dict[str, Any] = json.loads(dumps(answer))
    return plain
