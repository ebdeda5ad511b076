"""Brings the schema ``embed`` of a database to the version of this package, or takes it out."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from embedworker.database import revision
from embedworker.database.connect import connect
from embedworker.database.connection import Connection, advisory_lock
from embedworker.database.loopback import (
    primary_options,
    set_up_loopback,
    take_down_loopback,
)
from embedworker.database.requirements import check_schema, check_server
from embedworker.database.rows import fetch_one
from embedworker.database.scripts import as_owner, extension_schema, run_file, run_files
from embedworker.database.statements import render, statement
from embedworker.database.timeouts import advice
from embedworker.errors import DatabaseError, UnsupportedServer
from embedworker.model.catalog import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    TESTING_MODELS,
    ModelCard,
    catalog,
)
from embedworker.resources import migrations_folder, sql_folder

__all__ = ["downgrade", "migrate"]

T = TypeVar("T")

LOCK_TIMEOUTS = ("1s", "2s", "4s")  # for each try: others wait behind us while we wait for a table
LOCK_TIMEOUT = 10.0  # seconds for whatever else another transaction may hold
TURN = "60s"  # for other runs of `embedworker migrate`, which take seconds each

_MADE = re.compile(
    r"(?:create (?:or replace )?(?:unlogged )?(table|sequence|view|function) "
    r"|embed\.(_ensure_view)\(')embed\.(\w+)"
)


def migrate(
    url: str,
    *,
    model: str | None = None,
    loopback_host: str | None = None,
    primary_host: str | None = None,
) -> list[str]:
    """Create or upgrade the schema ``embed``; safe to repeat, and to run twice at once.

    ``model`` becomes the default of the database; None keeps what it has, or takes the catalog's
    default on a new one. ``primary_host`` is where standbys find this server, see
    ``primary_options``; None keeps what was stored. Returns what could not be set up although
    the rest works, a sentence each (no dblink: no ``embed.query``).

    Raises:
        ConfigurationError: ``primary_host`` cannot be read.
        ServerUnavailable: no connection could be made.
        UnsupportedServer: PostgreSQL or pgvector is missing or too old.
        DatabaseError: this role may not create what is needed, the schema is of a newer version, or
            a transaction does not let go of what is needed.
    """
    primary = None if primary_host is None else primary_options(primary_host)
    with _turn(url, "migrate") as c:
        try:
            check_server(c)
            new = not check_schema(c)
            _ensure_vector(c)
            c.execute(statement("migrate_schema"))
            remarks = _upgrade(c, model, new=new)
            remarks += _set_up_scans(c)
            remarks += set_up_loopback(c, host=loopback_host, primary=primary)
            remarks += _refresh_sources(c) + _finish(c)
        except psycopg.errors.QueryCanceled as error:
            raise DatabaseError(f"{error.diag.message_primary}. {advice(c, error)}") from error
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
    with _turn(url, "migrate --down") as c:
        if not check_schema(c):
            return
        strangers = fetch_one(c.execute(statement("migrate_strangers"), _own_names()))[0]
        if strangers is not None:
            raise DatabaseError(
                f"objects that embedworker did not make would be dropped with the schema embed of "
                f"{c.info.dbname!r}: {strangers}; nothing was changed. Drop them or move them to "
                "another schema, then run `embedworker migrate --down` again"
            )

        def work() -> None:
            take_down_loopback(c)
            c.execute(statement("migrate_drop"))

        try:
            # Half of it was neither a schema to migrate nor one to take out.
            _all_or_nothing(c, "downgrade", "base", work, "migrate --down")
        except psycopg.DatabaseError as error:
            raise DatabaseError(
                f"{error.diag.message_primary}. {error.diag.message_hint or ''}".strip()
            ) from error


@contextmanager
def _turn(url: str, command: str) -> Iterator[Connection]:
    """Connect, and wait until no other run of ``embedworker migrate`` is at work.

    Raises DatabaseError that names who holds a lock that is needed; without end, any login could.
    """
    with connect(
        url, vectors=False, lock_timeout=LOCK_TIMEOUT, application_name="embedworker migrate"
    ) as c:
        turn = False
        try:
            with advisory_lock(c, "migrate_lock", lock_timeout=TURN):
                turn = True
                yield c
        except psycopg.errors.LockNotAvailable as error:
            raise _held(c, command, turn=turn) from error


def _held(c: Connection, command: str, outcome: str = "", *, turn: bool = True) -> DatabaseError:
    """Return the error that names who holds what ``command`` needs; ``turn``: it is its turn."""
    asked = {"turn": turn, "triggers": command != "migrate"}
    (who,) = fetch_one(c.execute(statement("migrate_holders"), asked))
    return DatabaseError(
        f"a transaction does not let go of what `embedworker {command}` needs in {c.info.dbname!r}"
        f"{f', that of {who}' if who else ''}{outcome}. End it (see pg_stat_activity), then run "
        "the command again"
    )


def _own_names() -> dict[str, list[str]]:
    """Return the names that our files give to relations and functions of the schema embed."""
    files = (f for f in sql_folder().rglob("*.sql") if f.parent.name != "queries")
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    made = [(kind or "view", name) for kind, _, name in _MADE.findall(text)]
    return {
        "relations": ["schema_version", *(name for kind, name in made if kind != "function")],
        "functions": [name for kind, name in made if kind == "function"],
    }


def _ensure_vector(c: Connection) -> None:
    if extension_schema(c, "vector") is None:
        try:
            c.execute(render("migrate_extension", extension=sql.Identifier("vector")))
        except psycopg.errors.InsufficientPrivilege:
            raise UnsupportedServer(
                f"the extension vector is not installed in {c.info.dbname!r} and the role "
                f"{c.info.user!r} may not install it; as a superuser run: create extension vector"
            ) from None
        except psycopg.errors.InvalidSchemaName:
            raise DatabaseError(
                f"search_path of the role {c.info.user!r} names no schema that could hold the "
                "extension vector; run: create extension vector schema public"
            ) from None
    schema = extension_schema(c, "vector")
    if schema is None:
        raise UnsupportedServer("the extension vector vanished while it was being installed")
    c.execute(render("migrate_load_vector", vector=sql.Identifier(schema, "vector")))


def _upgrade(c: Connection, model: str | None, *, new: bool) -> list[str]:
    """Bring tables, functions, triggers, rights and our rows to this version, all or nothing.

    A ``new`` schema has its ready table enabled.

    Raises DatabaseError where a transaction of somebody else keeps one from being changed.
    """

    def work() -> list[str]:
        remarks = _write_routines(c)
        c.execute(statement("migrate_filters"))
        _seed(c, model)
        if new:
            c.execute(statement("migrate_document"))
        return remarks

    try:
        return _all_or_nothing(c, "upgrade", "head", work, "migrate")
    except psycopg.DatabaseError as error:
        if (error.sqlstate or "").startswith("EW"):  # a refusal of ours
            raise DatabaseError(
                f"{error.diag.message_primary}. {error.diag.message_hint}"
            ) from error
        raise


def _all_or_nothing(
    c: Connection, verb: str, revision: str, work: Callable[[], T], command: str
) -> T:
    """Run Alembic, then ``work``, in one transaction; try again while others hold locks.

    Raises DatabaseError that names those who hold them to the end; ``command`` is to be repeated.
    """
    for lock_timeout in LOCK_TIMEOUTS:
        try:
            with _alembic(c, verb, revision, lock_timeout=lock_timeout):
                return work()
        except psycopg.errors.LockNotAvailable:
            continue
    raise _held(c, command, "; nothing was changed")


@contextmanager
def _alembic(c: Connection, verb: str, revision: str, *, lock_timeout: str) -> Iterator[None]:
    """Run Alembic, then the block, in one transaction."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("path_separator", "os")
    engine = create_engine("postgresql+psycopg://", creator=lambda: c, poolclass=StaticPool)
    c.autocommit = False
    try:
        with engine.begin() as connection:
            c.execute(statement("migrate_settings"), {"lock_timeout": lock_timeout})
            config.attributes["connection"] = connection
            c.settle()
            for (misowned,) in c.execute(statement("migrate_misowned"), _own_names()).fetchall():
                c.execute(misowned)
            with as_owner(c):
                getattr(command, verb)(config, revision)
            yield
    except Exception as error:
        c.rollback()
        raise getattr(error, "orig", None) or error from None
    finally:
        c.autocommit = True


def _write_routines(c: Connection) -> list[str]:
    """Write every function, view, policy and grant as this version has them."""
    with as_owner(c):
        run_files(c, "schema/repair.sql")
        c.execute(statement("migrate_remember_tables"), _own_names())
        c.execute(statement("migrate_open_functions"))
        run_files(c, "functions/*.sql", "triggers/*.sql")
        c.execute(statement("migrate_close_functions"))
    missing: list[str] = fetch_one(c.execute(statement("migrate_roles")))[0]
    with as_owner(c):
        c.execute(statement("migrate_grants"))
    if not missing:
        return []
    return [
        f"the role {c.info.user!r} may not create roles, so there is no {', '.join(missing)}; "
        "workers and administrators need the rights of the tables' owner meanwhile. As a superuser "
        f"run: {' '.join(f'create role {name};' for name in missing)} and migrate again"
    ]


def _refresh_sources(c: Connection) -> list[str]:
    """Write the triggers and functions of every enabled table as this version has them.

    What cannot be done now, a worker tries again within a minute.
    """
    remarks = []
    for number, name in c.execute(statement("migrate_sources")).fetchall():
        try:
            with c.transaction():
                c.execute(statement("migrate_settings"), {"lock_timeout": LOCK_TIMEOUTS[0]})
                c.execute(statement("source_refresh"), {"source": number})
        except psycopg.Error as error:
            if c.closed:
                raise
            remarks.append(
                f"the triggers of {name} are of an older version: {error.diag.message_primary}; "
                "a running worker tries again within a minute"
            )
    return remarks


def _finish(c: Connection) -> list[str]:
    """Take away what only workers of an older version need, once none of them runs."""
    files = sorted((sql_folder() / "schema" / "finish").glob("*.sql"))
    older = fetch_one(c.execute(statement("migrate_older"), {"version": revision.known()[-1]}))[0]
    if older is None:
        with c.transaction():
            for file in files:
                run_file(c, file)
    elif files:
        return [
            f"workers of an older version run ({older}); run `embedworker migrate` again when they "
            "have ended, to delete what only they need"
        ]
    return []


def _set_up_scans(c: Connection) -> list[str]:
    refused: str | None = fetch_one(c.execute(statement("migrate_scan_settings")))[0]
    if refused is None:
        return []
    return [
        f"the role {c.info.user!r} may not set how far this database looks into an index of "
        "vectors, so conditions and offsets leave too few rows. As the owner of the database run: "
        f"{refused}"
    ]


def _seed(c: Connection, model: str | None) -> None:
    cards = [card for card in catalog().values() if card.kind == "embedding"]
    if model in TESTING_MODELS:
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
                "question_offset": card.question_offset,
            },
        )
    for card in catalog().values():
        if card.kind == "reranker":
            c.execute(
                statement("migrate_reranker"), {"name": card.name, "max_tokens": card.max_tokens}
            )
    c.execute(statement("migrate_use_reranker"), {"name": DEFAULT_RERANKER})
    row = c.execute(statement("model_default")).fetchone()
    current = None if row is None else row[0]
    wanted = model or current or DEFAULT_MODEL
    if wanted != current:
        c.execute(statement("migrate_use_model"), {"name": wanted})
