"""The version of the schema ``embed``: that of a database beside those this package knows."""

from typing import Any, Literal

import psycopg

from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.resources import migrations_folder

__all__ = ["installed", "known", "standing"]


def known() -> list[str]:
    """Return the versions that this package's migrations make, oldest first."""
    files = (migrations_folder() / "versions").glob("*.py")
    return sorted(file.stem.partition("_")[0] for file in files)


def installed(connection: psycopg.Connection[Any]) -> str | None:
    """Return the version that a database has, as Alembic keeps it; None during the first migration.

    Raises psycopg.errors.UndefinedTable where there is none.
    """
    version: str | None = fetch_one(connection.execute(statement("migrate_version")))[0]
    return version


def standing(version: str | None) -> Literal["older", "same", "newer"]:
    """Say how a database's version stands to this package's newest. Versions are numbered."""
    newest = known()[-1]
    if version == newest:
        return "same"
    return "older" if version is None or version < newest else "newer"
