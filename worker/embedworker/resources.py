"""Where the SQL files and the migrations are: inside a wheel, or at the root of a checkout."""

from pathlib import Path

__all__ = ["migrations_folder", "sql_folder"]

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def sql_folder() -> Path:
    """Return the folder ``sql/`` with schema, functions, triggers and queries."""
    return _folder("sql")


def migrations_folder() -> Path:
    """Return the folder ``migrations/`` with Alembic's environment and versions."""
    return _folder("migrations")


def _folder(name: str) -> Path:
    packaged = _PACKAGE / f"_{name}"
    folder = packaged if packaged.is_dir() else _CHECKOUT / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the folder {name}/ of embedworker is missing: expected {packaged} (installed) or "
            f"{_CHECKOUT / name} (checkout); install the package again"
        )
    return folder
