"""Brings the schema ``embed`` of a database to the version of this package, or takes it out."""

from typing import Any, NamedTuple

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from worker.database import revision
from worker.database.connect import connect
from worker.database.connection import turn
from worker.database.loopback import set_up_loopback, take_down_loopback
from worker.database.rows import one
from worker.database.scripts import extension_schema
from worker.database.statements import render, statement
from worker.errors import DatabaseError, UnsupportedServer
from worker.model.catalog import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    TESTING_MODEL,
    ModelCard,
    catalog,
)
from worker.resources import migrations_folder

__all__ = ["downgrade", "migrate"]

MINIMUM_SERVER = 15
MINIMUM_PGVECTOR = (0, 8)  # iterative index scans, without which a selective filter loses rows

Connection = psycopg.Connection[tuple[Any, ...]]


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


def migrate(url: str, *, model: str | None = None, loopback_host: str | None = None) -> list[str]:
    """Create or upgrade the schema ``embed``; safe to repeat, and to run twice at once.

    ``model`` becomes the default of the database; None keeps what it has, or takes the catalog's
    default on a new one. Returns what could not be set up although the rest works, a sentence each
    (no dblink: no ``embed.query``).

    Raises:
        ServerUnavailable: no connection could be made.
        UnsupportedServer: PostgreSQL or pgvector is missing or too old.
        DatabaseError: this role may not create what is needed, or the schema is of a newer version.
    """
    with connect(url, vectors=False, lock_timeout=0, application_name="embedworker migrate") as c:
        _check_server(c)
        try:
            with turn(c, "migrate_lock"):
                _check_version(c)
                _ensure_vector(c)
                c.execute(statement("migrate_schema"))
                _run_alembic(c, "upgrade", "head")
                _follow_vector(c)
                _seed(c, model)
                remarks = _set_up_roles(c) + set_up_loopback(c, host=loopback_host)
                c.execute(statement("migrate_document"))
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"the role {c.info.user!r} may not set embedworker up in {c.info.dbname!r}: "
                f"{error.diag.message_primary}. Run `embedworker migrate` as the owner of the "
                "database"
            ) from error
    return remarks


def downgrade(url: str) -> None:
    """Take the schema ``embed`` out again. Vectors in the application's own schemas stay.

    Raises:
        DatabaseError: ``embed.document`` still holds rows, or the schema is of a newer version.
    """
    with (
        connect(url, vectors=False, lock_timeout=0, application_name="embedworker migrate") as c,
        turn(c, "migrate_lock"),
    ):
        _check_version(c)
        try:
            _run_alembic(c, "downgrade", "base")
        except psycopg.DatabaseError as error:
            raise DatabaseError(
                f"{error.diag.message_primary}. {error.diag.message_hint or ''}".strip()
            ) from error
        take_down_loopback(c)
        c.execute(statement("migrate_drop"))


def _check_server(c: Connection) -> Server:
    server = Server(*c.execute(statement("migrate_server")).fetchone() or ())
    if server.version_number < MINIMUM_SERVER * 10000:
        raise UnsupportedServer(
            f"PostgreSQL {server.version} is too old; embedworker needs {MINIMUM_SERVER} or newer. "
            "Upgrade the server, or name another one with --database-url"
        )
    if server.replica:
        raise UnsupportedServer(
            f"the database {server.database!r} is a read-only replica; run this on the primary"
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
    return server


def _check_version(c: Connection) -> None:
    """Refuse a schema that this package does not know: it would write older functions over it."""
    if not one(c.execute(statement("migrate_made")))[0]:
        return
    version = revision.installed(c)
    if revision.standing(version) == "newer":
        raise DatabaseError(
            f"the schema of {c.info.dbname!r} has the version {version}, which is newer than this "
            f"package's {revision.known()[-1]}; nothing was changed. Run the newer embedworker"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _ensure_vector(c: Connection) -> None:
    if extension_schema(c, "vector") is None:
        try:
            c.execute(render("migrate_extension", extension=sql.Identifier("vector")))
        except psycopg.errors.InsufficientPrivilege:
            raise UnsupportedServer(
                f"the extension vector is not installed in {c.info.dbname!r} and the role "
                f"{c.info.user!r} may not install it; as a superuser run: create extension vector"
            ) from None
    schema = extension_schema(c, "vector")
    if schema is None:
        raise UnsupportedServer("the extension vector vanished while it was being installed")
    c.execute(render("migrate_load_vector", vector=sql.Identifier(schema, "vector")))


def _run_alembic(c: Connection, verb: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("path_separator", "os")
    engine = create_engine("postgresql+psycopg://", creator=lambda: c, poolclass=StaticPool)
    c.autocommit = False
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            getattr(command, verb)(config, revision)
            connection.commit()
    except Exception as error:
        c.rollback()
        raise getattr(error, "orig", None) or error from None
    finally:
        c.autocommit = True


def _follow_vector(c: Connection) -> None:
    """Have the functions name the schema that pgvector is in now.

    They were written for the one of their day; ``alter extension vector set schema`` tells nobody.
    """
    schema = sql.Identifier(extension_schema(c, "vector") or "").as_string(c)
    with c.transaction():
        for (definition,) in c.execute(statement("migrate_follow_vector"), {"schema": schema}):
            c.execute(definition.encode())


def _set_up_roles(c: Connection) -> list[str]:
    missing: list[str] = one(c.execute(statement("migrate_roles")))[0]
    c.execute(statement("migrate_grants"))
    if not missing:
        return []
    return [
        f"the role {c.info.user!r} may not create roles, so there is no {', '.join(missing)}; "
        "workers and administrators need the rights of the tables' owner meanwhile. As a superuser "
        f"run: {' '.join(f'create role {name};' for name in missing)} and migrate again"
    ]


def _seed(c: Connection, model: str | None) -> None:
    cards = [card for card in catalog().values() if card.kind == "embedding"]
    if model == TESTING_MODEL:
        cards.append(ModelCard(model, 384, 8192, "query: ", "passage: ", "mean"))
    for card in cards:
        c.execute(
            statement("migrate_model"),
            {
                "name": card.name,
                "dimensions": card.dimensions,
                "max_tokens": card.max_tokens,
                "query_prefix": card.query_prefix,
                "passage_prefix": card.passage_prefix,
                "pooling": card.pooling,
            },
        )
    for card in catalog().values():
        if card.kind == "reranker":
            c.execute(
                statement("migrate_reranker"), {"name": card.name, "max_tokens": card.max_tokens}
            )
    c.execute(statement("migrate_use_reranker"), {"name": DEFAULT_RERANKER})
    row = c.execute(statement("migrate_default_model")).fetchone()
    current = None if row is None else row[0]
    wanted = model or current or DEFAULT_MODEL
    if wanted != current:
        c.execute(statement("migrate_use_model"), {"name": wanted})
