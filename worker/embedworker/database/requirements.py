"""What a server and a database must be before `embedworker migrate` changes anything."""

from typing import NamedTuple

from embedworker.database import revision
from embedworker.database.connection import Connection
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import DatabaseError, UnsupportedServer

__all__ = ["check_schema", "check_server"]

MINIMUM_SERVER = 15
MINIMUM_PGVECTOR = (0, 8)  # iterative index scans, without which a selective filter loses rows


class Server(NamedTuple):
    """One row of the query ``migrate_server``."""

    version_number: int
    version: str
    installed: str | None
    available: str | None
    replica: bool
    database: str
    role: str
    encoding: str
    read_only_by: str | None


def check_server(c: Connection) -> None:
    """Refuse a server or a database that cannot hold the schema embed.

    Raises:
        UnsupportedServer: the first thing that is missing or wrong.
    """
    server = Server(*c.execute(statement("migrate_server")).fetchone() or ())
    if server.version_number < MINIMUM_SERVER * 10000:
        raise UnsupportedServer(
            f"PostgreSQL {server.version} is too old; embedworker needs {MINIMUM_SERVER} or newer. "
            "Upgrade the server, or name another one with --database-url"
        )
    if server.replica:
        raise UnsupportedServer(
            f"the database {server.database!r} is on a standby; run this on the primary"
        )
    if server.read_only_by is not None:
        raise UnsupportedServer(
            f"the database {server.database!r} takes no writes: default_transaction_read_only is "
            f"on (set by: {server.read_only_by}). Reset it there, or for this run alone add to the "
            "URL: ?options=-c%20default_transaction_read_only%3Doff"
        )
    if server.encoding != "UTF8":
        raise UnsupportedServer(
            f"the database {server.database!r} is encoded in {server.encoding}; embedworker needs "
            "UTF8, in which every text can be written and normalised. Make one: create database "
            "NAME encoding 'UTF8' template template0, and move the data there"
        )
    found = server.installed or server.available
    if found is None:
        raise UnsupportedServer(
            "this server does not have pgvector; install its package (for example "
            f"postgresql-{server.version_number // 10000}-pgvector), or use an image that has it"
        )
    if _numbers(found) < MINIMUM_PGVECTOR:
        raise UnsupportedServer(
            f"pgvector {found} is too old; embedworker needs "
            f"{'.'.join(map(str, MINIMUM_PGVECTOR))} or newer. Install a newer package, then run "
            "`alter extension vector update` as a superuser"
        )


def check_schema(c: Connection) -> bool:
    """Return whether the schema embed is there and ours.

    Raises:
        DatabaseError: somebody else made it, or a version that this package does not know.
    """
    found = fetch_one(c.execute(statement("migrate_found")))[0]
    if found == "foreign":
        raise DatabaseError(
            f"the schema embed in {c.info.dbname!r} was not made by embedworker; nothing was "
            "changed. Rename it, as its owner: alter schema embed rename to another_name"
        )
    if found != "ours":
        return False
    namesakes = fetch_one(c.execute(statement("migrate_namesakes")))[0]
    if namesakes is not None:
        raise DatabaseError(
            f"functions in the schema embed of {c.info.dbname!r} belong to a role that does not "
            "own it; nothing was changed, because this command could run them. Drop them: "
            f"drop function {namesakes}"
        )
    version = revision.installed(c)
    if revision.standing(version) == "newer":
        raise DatabaseError(
            f"the schema of {c.info.dbname!r} has the version {version}, which is newer than this "
            f"package's {revision.known()[-1]}; nothing was changed. Run the newer embedworker"
        )
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
