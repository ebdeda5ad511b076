"""The table that is asked in an evaluation: a benchmark's, made for it, or one that is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from embedworker.database.connection import keeps_session
from embedworker.database.numbers import dumps
from embedworker.database.rows import fetch_one
from embedworker.database.statements import render, statement
from embedworker.errors import ConfigurationError, DatabaseError, SourceError
from embedworker.normalization import normalized
from embedworker.search.beir import Collection, OwnQuestion

__all__ = [
    "Searched",
    "analyze",
    "claim_schema",
    "drop_collection",
    "embedded",
    "find_source",
    "key_object",
    "load_collection",
    "own_collection",
    "passages",
    "plain",
    "quoted",
]

Connection = psycopg.Connection[tuple[Any, ...]]

MARK = "Documents of `embedworker eval`, which drops and creates them again."
INSERTED = 1000  # documents in one statement
SHOWN = 5  # keys that are not in the table, in an error


@dataclass(frozen=True, slots=True)
class Searched:
    """A source as a search sees it. Names are quoted by the server, numbers are object ids."""

    id: int
    relation: int
    qualified: str
    partitioned: bool
    name: str
    keys: list[str]
    vectors: int
    vectors_name: str
    chunk: bool
    model: str
    fingerprint: dict[str, Any] | None
    index: int | None

    def columns(self, row: str) -> sql.Composed:
        """Return the key columns of ``row``, in key order."""
        return sql.SQL(", ").join(quoted(f"{row}.{key}") for key in self.keys)

    def document(self, key: Sequence[Any]) -> str:
        """One id for a key, whatever its types and number of columns."""
        return "\x1f".join(map(str, key))


def claim_schema(connection: Connection) -> None:
    """Make sure that the schema of evaluations is nobody else's, for as long as the session lasts.

    Raises DatabaseError where another evaluation runs, no evaluation made the schema, or there is
    no session of our own.
    """
    if not keeps_session(connection):
        raise DatabaseError(
            "the database URL leads through a connection pooler, and an evaluation needs a session "
            "of its own; name a direct address with --database-url"
        )
    if not fetch_one(connection.execute(statement("evaluate_lock")))[0]:
        raise DatabaseError("another evaluation runs in this database; wait until it has ended")
    taken, ours = fetch_one(connection.execute(statement("evaluate_state"), {"mark": MARK}))
    if taken and not ours:
        raise DatabaseError(
            "there is a schema embedworker_eval that no evaluation made; rename it, or name "
            "another database with --database-url"
        )


def load_collection(
    connection: Connection, collection: Collection, *, model: str | None, chunk: bool
) -> None:
    """Make a table, have it searchable, and insert the documents as an application does.

    ``connection`` is in autocommit mode and has gone through :func:`claim_schema`.

    Raises psycopg.Error for what the server refuses.
    """
    with connection.transaction():
        drop_collection(connection)
        connection.execute(statement("evaluate_create_schema"))
        connection.execute(render("evaluate_mark_schema", mark=sql.Literal(MARK)))
        connection.execute(statement("evaluate_create_table"))
        connection.execute(statement("evaluate_enable"), {"model": model, "chunk": chunk})
    ids = list(collection.documents)
    for start in range(0, len(ids), INSERTED):
        some = ids[start : start + INSERTED]
        contents = [collection.documents[number] for number in some]
        connection.execute(statement("evaluate_fill"), {"ids": some, "contents": contents})


def drop_collection(connection: Connection) -> None:
    """Remove what :func:`load_collection` made; nothing where it made nothing."""
    connection.execute(statement("evaluate_disable"))
    connection.execute(statement("evaluate_drop_table"))
    connection.execute(statement("evaluate_drop_schema"))


def find_source(connection: Connection, relation: int, name: str | None = None) -> Searched:
    """Return the source that a search of the table uses.

    Raises:
        SourceError: no worker has embedded it yet.
        psycopg.Error: the table is not enabled, or not under that name.
    """
    with connection.cursor(row_factory=class_row(Searched)) as cursor:
        found = cursor.execute(
            statement("evaluate_source"), {"relation": relation, "name": name}
        ).fetchone()
    if found is None or found.fingerprint is None:
        which = "the table" if name is None else f"the vectors named {name!r}"
        raise SourceError(
            f"no worker has embedded {which} yet; run `embedworker run`, and see "
            "`embedworker status`"
        )
    return found


def embedded(connection: Connection) -> int:
    """How many documents of the benchmark have a vector that search would use."""
    row = connection.execute(statement("evaluate_embedded")).fetchone()
    return 0 if row is None else int(row[0])


def analyze(connection: Connection, source: Searched) -> None:
    """Tell the planner how large the source and its vectors are, as autovacuum soon would."""
    for table in (source.qualified, source.vectors_name):
        connection.execute(render("evaluate_analyze", table=quoted(table)))


def passages(connection: Connection, source: Searched) -> int:
    """How many vectors a search of the source compares."""
    counted = render("evaluate_passages", vectors=quoted(source.vectors_name))
    return int(fetch_one(connection.execute(counted))[0])


def own_collection(
    connection: Connection, source: Searched, name: str, own: Sequence[OwnQuestion]
) -> Collection:
    """Bring a person's questions into the form of a benchmark, their keys as the table has them.

    Raises:
        ConfigurationError: a key is not one of the table's form.
        DatabaseError: rows of these keys are not in the table, or a key cannot be read.
    """
    columns = [plain(key) for key in source.keys]
    given = Jsonb([key_object(line, columns) for line in own], dumps=dumps)
    query = render(
        "evaluate_keys",
        found=source.columns("found"),
        only=sql.SQL("" if source.partitioned else "only"),
        relation=quoted(source.qualified),
        keys=sql.SQL(", ").join(map(quoted, source.keys)),
    )
    rows = connection.execute(query, {"given": given}).fetchall()
    missing = [line for line, row in zip(own, rows, strict=True) if None in row]
    if missing:
        some = ", ".join(f"{line.key!r} ({line.place})" for line in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DatabaseError(f"{source.qualified} has no rows with these keys: {some}{more}")
    questions: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for line, row in zip(own, rows, strict=True):
        number = normalized("NFC", line.question)
        questions.setdefault(number, line.question)
        relevance.setdefault(number, {})[source.document(row)] = 1
    return Collection(name, questions, relevance)


def key_object(line: OwnQuestion, columns: list[str]) -> dict[str, Any]:
    """Return the key that a person wrote, by column; raises ConfigurationError."""
    key = line.key
    if isinstance(key, dict) and key.keys() == set(columns):
        return key
    if isinstance(key, list) and len(key) == len(columns) > 1:
        return dict(zip(columns, key, strict=True))
    if not isinstance(key, dict | list) and len(columns) == 1:
        return {columns[0]: key}
    wanted = ", ".join(f'"{column}": …' for column in columns)
    short = "the value alone" if len(columns) == 1 else "a list of the values"
    raise ConfigurationError(f"{line.place}: the key is {key!r}; expected {{{wanted}}} or {short}")


def plain(identifier: str) -> str:
    """Return an identifier that the server has quoted, without its quotes."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier


def quoted(identifier: str) -> sql.SQL:
    """Return SQL of an identifier that the server has quoted already."""
    return sql.SQL(identifier.replace("%", "%%"))
