"""A command's connection, the table it was told, and the server's own words when it refuses."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import typer
from psycopg import errors, sql
from psycopg.rows import class_row

from embedworker.cli.console import database_url
from embedworker.database.connect import connect
from embedworker.database.connection import Connection
from embedworker.database.refusal import unstorable
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.database.timeouts import advice
from embedworker.errors import DatabaseError, NotMigrated, SourceError
from embedworker.search.suggestion import meant

__all__ = ["Connection", "Table", "connected", "enabled_tables", "explained", "find_table"]


LOCK_TIMEOUT = 5.0  # seconds; a trigger cannot be made while a transaction uses the table

# What the server says without telling what to do.
_ADVICE = {
    "25006": (
        "This server takes no writes. If it is a standby, name the primary in --database-url. "
        "`embedworker doctor` says whether it is one, or where default_transaction_read_only is on."
    ),
    "42501": "Run this as the owner of the table and of the schema embed.",
    "55P03": "An open transaction holds the table: end it (see pg_stat_activity), or try again.",
    "53300": "Close connections or raise max_connections.",
}
# Patterns of functions and arguments in the database's hints, and the commands and flags for them.
_SPELLINGS = {
    "with key => …": "with --key",
    "call with force => true": "use --force",
    "force => true goes on": "--force goes on",
    "call embed.enable with another name => …": "run `embedworker enable` with another --name",
    r"call (?=embed\.(?:end_switch|disable)\b)": "run ",
    r"embed\.end_switch\('([\w.]+)'\)": r"`embedworker switch end \1`",
    r"embed\.end_switch\b": "`embedworker switch end TABLE`",
    r"(?:select )?embed\.begin_switch\(table, model\)": "`embedworker switch start TABLE MODEL`",
    r"(?:select )?embed\.begin_switch\('([\w.]+)', '([\w./:-]+)'\)": (
        r"`embedworker switch start \1 \2`"
    ),
    r"select embed\.cut_over\('([\w.]+)'\)": r"`embedworker switch cut-over \1`",
    r"(?:the view )?embed\.switch (says|shows)": r"`embedworker switch status` \1",
    r"embed\.disable\('([\w.]+)', name => '(\w+)', drop_vectors => true\)": (
        r"`embedworker disable \1 --name \2 --drop-vectors`"
    ),
    r"embed\.disable\('([\w.]+)', name => '(\w+)'\)": r"`embedworker disable \1 --name \2`",
}
_NAME_TROUBLE = (errors.InvalidName, errors.SyntaxError, errors.FeatureNotSupported)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the database. ``shown`` and ``qualified`` are quoted by the server."""

    oid: int
    shown: str
    qualified: str
    estimate: int


@contextmanager
def connected(context: typer.Context) -> Iterator[Connection]:
    """Connect to the database of this call, which must have been migrated."""
    with (
        explained(),
        connect(
            database_url(context), lock_timeout=LOCK_TIMEOUT, application_name="embedworker cli"
        ) as connection,
        explained(connection),
    ):
        if not fetch_one(connection.execute(statement("cli_migrated")))[0]:
            raise NotMigrated(
                f"the database {connection.info.dbname!r} is not set up for embedworker; run "
                "`embedworker migrate`"
            )
        yield connection


@contextmanager
def explained(connection: Connection | None = None) -> Iterator[None]:
    """Turn what the server refuses into an error that says what, why and what to do.

    With its connection, the error names the setting that ended a statement.
    """
    try:
        yield
    except (psycopg.Error, UnicodeEncodeError) as error:
        if (refused := unstorable(error)) is not None:
            raise refused from error
        if not isinstance(error, psycopg.Error):
            raise
        if error.diag.message_primary is None and not isinstance(error, psycopg.OperationalError):
            raise  # psycopg's own complaint: a fault of ours
        hint = None if connection is None else advice(connection, error)
        raise DatabaseError(_explain(error, hint)) from error


def find_table(connection: Connection, name: str) -> Table:
    """Return the table that the server knows under ``name``, quoted or qualified as in SQL.

    Raises SourceError that names similar tables.
    """
    found = None
    try:
        with connection.cursor(row_factory=class_row(Table)) as cursor:
            found = cursor.execute(statement("cli_table"), {"name": name}).fetchone()
    except _NAME_TROUBLE:
        pass  # not a name at all: what follows says what to write
    except errors.InsufficientPrivilege as error:
        raise DatabaseError(_explain(error, _grant_usage(connection, error))) from error
    if found is None:
        raise SourceError(_unknown(connection, name))
    return found


def enabled_tables(connection: Connection) -> list[Table]:
    """Return the tables that have at least one source."""
    with connection.cursor(row_factory=class_row(Table)) as cursor:
        return cursor.execute(statement("cli_enabled"), {}).fetchall()


def _unknown(connection: Connection, name: str) -> str:
    tables = connection.execute(statement("cli_tables")).fetchall()
    listed = (
        meant(name, tables) or "this database has no tables yet; the ready one is embed.document."
    )
    return (
        f"no table is named {name!r}; {listed}\n"
        "  hint: Write it as in SQL: article, other_schema.article or '\"Article\"'."
    )


def _grant_usage(connection: Connection, error: psycopg.Error) -> str | None:
    """Return the statement that lets this role use the schema that a name is in."""
    denied = re.fullmatch(r"permission denied for schema (.+)", error.diag.message_primary or "")
    if not denied:
        return None
    schema, role = (
        sql.Identifier(name).as_string(connection) for name in (denied[1], connection.info.user)
    )
    return f"As its owner: grant usage on schema {schema} to {role};"


def _explain(error: psycopg.Error, hint: str | None = None) -> str:
    diag = error.diag
    if diag.message_primary is None:
        said = " ".join(str(error).split())
        return f"the connection to the database was lost: {said}. Try again"
    hint = hint or diag.message_hint or _ADVICE.get(error.sqlstate or "")
    if isinstance(
        error, (errors.UndefinedFunction, errors.UndefinedTable, errors.UndefinedColumn)
    ) and ("embed." in diag.message_primary):
        hint = "The schema embed is of another version: run `embedworker migrate`."
    for spelling, ours in _SPELLINGS.items():
        hint = hint and re.sub(spelling, ours, hint, flags=re.IGNORECASE)
    if hint and "_" not in hint.partition(" ")[0]:  # a name, such as statement_timeout
        hint = hint[0].upper() + hint[1:]
    lines = [diag.message_primary]
    lines += [f"  detail: {diag.message_detail}"] if diag.message_detail else []
    lines += [f"  hint: {hint}"] if hint else []
    return "\n".join(lines)
