"""Runs files of ``sql/``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import sql

from embedworker.database.statements import statement
from embedworker.errors import UnsupportedServer
from embedworker.resources import sql_folder

__all__ = ["as_owner", "extension_schema", "migrating_connection", "run_file", "run_files"]

EXTENSIONS = ("vector", "dblink")


def migrating_connection() -> psycopg.Connection[Any]:
    """Return the driver's own connection of the migration that is running.

    A file holds many statements, and colons that are no parameters.
    """
    from alembic import op  # here: it takes half a second, and a worker needs none of it

    return cast("psycopg.Connection[Any]", op.get_bind().connection.driver_connection)


@contextmanager
def as_owner(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Act as the owner of the schema embed within the block of a transaction, where this role may.

    What a superuser makes there then belongs to the owner, whose functions could not use it else.
    """
    row = connection.execute(statement("migrate_role")).fetchone()
    connection.execute(statement("migrate_as_owner"))
    yield
    connection.execute(statement("migrate_as"), {"role": row and row[0]})


def run_files(connection: psycopg.Connection[Any], *patterns: str) -> None:
    """Run the files of ``sql/`` that match the patterns, in the order of their names."""
    for pattern in patterns:
        for file in sorted(sql_folder().glob(pattern)):
            run_file(connection, file)


def run_file(connection: psycopg.Connection[Any], file: Path) -> None:
    """Run one file, with ``@extschema:NAME@`` replaced by the schema of the extension NAME.

    The notation is that of PostgreSQL's own extension scripts (manual, "Extension Relocatability").
    """
    text = file.read_text(encoding="utf-8")
    for name in EXTENSIONS:
        token = f"@extschema:{name}@"
        if token in text:
            schema = extension_schema(connection, name)
            if schema is None:
                raise UnsupportedServer(f"the extension {name} is not installed in this database")
            text = text.replace(token, sql.Identifier(schema).as_string(connection))
    connection.execute(text.encode())


def extension_schema(connection: psycopg.Connection[Any], name: str) -> str | None:
    """Return the schema that the extension lives in, None where it is not installed."""
    row = connection.execute(statement("migrate_extension_schema"), {"name": name}).fetchone()
    return None if row is None else row[0]
