"""Several databases: their URLs, from flags or from a file, by names without secrets."""

from collections.abc import Iterable
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from embedworker.database.connect import dsn
from embedworker.errors import ConfigurationError

__all__ = ["database_name", "named", "read_databases", "split_urls"]

DEFAULT_PORT = "5432"


def database_name(url: str) -> str:
    """Return host and database of a URL, such as ``db1/shop``; a port other than 5432 is in it.

    Raises ConfigurationError: the URL cannot be read.
    """
    given = conninfo_to_dict(dsn(url))
    host = str(given.get("host") or given.get("hostaddr") or "local")
    port = str(given.get("port") or DEFAULT_PORT)
    place = host if port == DEFAULT_PORT else f"{host}:{port}"
    return f"{place}/{given.get('dbname') or given.get('user') or ''}"


def named(urls: Iterable[str]) -> dict[str, str]:
    """Return the URLs by name.

    Raises ConfigurationError: a URL cannot be read, or two name the same database.
    """
    found: dict[str, str] = {}
    for url in urls:
        name = database_name(url)
        if found.setdefault(name, url) != url:
            raise ConfigurationError(
                f"two URLs name the database {name}; expected one for each database: remove one"
            )
    return found


def read_databases(file: Path) -> dict[str, str]:
    """Return the URLs of a file by name: one a line; empty lines and lines with ``#`` are left out.

    Raises ConfigurationError: the file cannot be read, or has no URL, or a wrong one.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ConfigurationError(
            f"the file of databases {file} cannot be read: {reason}; expected one database URL a "
            "line"
        ) from None
    urls = [line for line in lines if line and not line.startswith("#")]
    if not urls:
        raise ConfigurationError(
            f"the file of databases {file} names no database; expected one database URL a line"
        )
    return named(urls)


def split_urls(value: str) -> list[str]:
    """Return the URLs of a setting that names several databases, one a line; else the value.

    The parts of one ``key=value`` address may stand on several lines, too.
    """
    lines = [line.strip() for line in value.splitlines() if line.strip()]
    if len(lines) > 1 and all("://" in line or "dbname=" in line for line in lines):
        return lines
    return [value]
