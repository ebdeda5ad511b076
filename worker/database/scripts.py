"""Runs files of ``sql/`` inside a migration."""

from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import sql

from worker.database.statements import statement
from worker.errors import UnsupportedServer
from worker.resources import sql_folder

__all__ = ["extension_schema", "run_files"]

EXTENSIONS = ("vector", "dblink")


def run_files(*patterns: str) -> None:
    """Run the files of ``sql/`` that match the patterns, in the order of their names."""
    from alembic import op  # here: it takes half a second, and a worker needs none of it

    # The driver's own connection: a file holds many statements, and colons that are no parameters.
    connection = cast("psycopg.Connection[Any]", op.get_bind().connection.driver_connection)
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
