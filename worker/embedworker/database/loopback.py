"""The loopback of ``embed.query``: a connection from the server to itself, through dblink.

A standby has one to its primary instead.
"""

import json
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from embedworker.database.rows import fetch_one
from embedworker.database.scripts import as_owner, extension_schema, run_files
from embedworker.database.statements import statement
from embedworker.errors import ConfigurationError

__all__ = ["primary_options", "renew_loopback", "set_up_loopback", "take_down_loopback"]

FIRST_HOSTS = ("127.0.0.1", "localhost")

# What may follow the hosts of a primary; user, password and database are the loopback's own.
_ALLOWED = {
    "host",
    "port",
    "connect_timeout",
    "channel_binding",
    "require_auth",
    "sslmode",
    "sslrootcert",
}

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

Connection = psycopg.Connection[tuple[Any, ...]]


def primary_options(hosts: str) -> dict[str, str]:
    """Return the libpq options that ``hosts`` stands for: ``db1,db2:5433?sslmode=verify-full``.

    It is written as the part of a URL behind ``postgresql://``. A blank one gives no options.

    Raises:
        ConfigurationError: it is no such part, or names a user, a password or a database.
    """
    if not hosts.strip():
        return {}
    wanted = "expected HOST[:PORT],… and perhaps ?sslmode=…, as in a database URL"
    try:
        options = {
            key: str(value)
            for key, value in conninfo_to_dict("postgresql://" + hosts.strip()).items()
        }
    except psycopg.ProgrammingError:  # its words may repeat a password
        raise ConfigurationError(f"the primary host cannot be read; {wanted}") from None
    foreign = sorted(set(options) - _ALLOWED)
    if foreign or "host" not in options:
        named = f"names {', '.join(foreign)}" if foreign else "names no host"
        raise ConfigurationError(f"the primary host {named}; {wanted}")
    if not all(options["host"].split(",")):
        raise ConfigurationError(f"a primary host is empty; {wanted}")
    if not all(port.isdecimal() for port in options.get("port", "").split(",") if port):
        raise ConfigurationError(f"a port of the primary host is no number; {wanted}")
    if options.get("sslmode") not in (None, *_SSL_MODES):  # libpq says so at the first use
        raise ConfigurationError(
            f"the primary host has sslmode={options['sslmode']}; expected {', '.join(_SSL_MODES)}"
        )
    return options


def set_up_loopback(
    connection: Connection, host: str | None = None, primary: dict[str, str] | None = None
) -> list[str]:
    """Make or renew the loopback on an autocommit connection; every migrate calls it.

    The first host that works is kept: the given one, 127.0.0.1, localhost, the socket folder, and
    the address of this connection. Standbys find this server by ``primary``, see
    ``primary_options``: None keeps what was given before, no options take it away. Returns a
    sentence for whatever does not work; ``embed.query`` then raises EW007 with it as the hint.
    """
    try:
        remarks, problem = _set_up(connection, host, primary)
    except errors.InsufficientPrivilege as error:
        # Somebody with more rights may have set it up before: what works is left alone.
        if _works(connection):
            remarks, problem = [], None
            if primary is not None:
                remarks = [f"the primary host is not stored: {_explain(connection, error)}"]
        else:
            remarks, problem = [], _explain(connection, error)
    if problem is None:
        connection.execute(statement("loopback_ready"))
        connection.execute(statement("loopback_no_problem"))
        return remarks
    connection.execute(statement("loopback_problem"), {"problem": problem})
    return [*remarks, f"embed.query will not work: {problem}"]


def renew_loopback(connection: Connection) -> tuple[bool, str | None]:
    """Have questions from inside SQL reach this server again, after a failover or an upgrade.

    Returns whether they could not before, and what still stands in the way, which is for
    ``migrate``. Does nothing where this role may not.
    """
    if not fetch_one(connection.execute(statement("loopback_renewable")))[0]:
        return False, None
    renewed, problem = fetch_one(connection.execute(statement("loopback_renew")))
    return renewed, problem


def take_down_loopback(connection: Connection) -> None:
    """Drop the role and the foreign server, before the schema ``embed`` goes; dblink stays.

    A role that this one may not drop is left: it can do nothing any more.
    """
    refused = (
        errors.InsufficientPrivilege,
        errors.UndefinedFunction,
        errors.DependentObjectsStillExist,  # of an older version; see loopback/020_login.sql
    )
    with suppress(*refused), connection.transaction():
        connection.execute(statement("loopback_take_down"))


def _set_up(
    connection: Connection, host: str | None, primary: dict[str, str] | None
) -> tuple[list[str], str | None]:
    problem = _install_dblink(connection)
    if problem is not None:
        return [], problem
    hosts = _hosts(connection, host)
    with connection.transaction(), as_owner(connection):
        run_files(connection, "functions/loopback/*.sql")
    given = None if primary is None else json.dumps(primary)
    connection.execute(statement("loopback_login"), {"host": hosts[0], "primary": given})
    # The password had to be committed first: the server looks at it in a session of its own.
    failures = []
    for candidate in hosts:
        with connection.transaction() as attempt:
            row = connection.execute(statement("loopback_try"), {"host": candidate}).fetchone()
            failure = None if row is None else row[0]
            if failure is not None:
                failures.append(f"{candidate}: {' '.join(failure.split())}")
                raise psycopg.Rollback(attempt)
        if failure is None:
            remarks = [
                f"the loopback host {failures[0]}; embed.query uses {candidate} instead"
                for _ in failures[:1]
                if host
            ]
            return [*remarks, *_check_primary(connection, primary)], None
    return [], (
        "the server cannot connect to itself as the role of the loopback "
        f"({'; '.join(failures)}). Set EMBEDWORKER_LOOPBACK_HOST to the host under which the "
        "server reaches itself, allow embed_loopback_* by scram-sha-256 in pg_hba.conf, and run "
        "`embedworker migrate` again."
    )


def _check_primary(connection: Connection, primary: dict[str, str] | None) -> list[str]:
    """Return a sentence where this server does not find itself as its standbys would."""
    if not primary:
        return []
    failure = fetch_one(connection.execute(statement("loopback_check_primary")))[0]
    if failure is None:
        return []
    return [
        f"this server does not reach itself as the primary host {primary['host']}: "
        f"{' '.join(failure.split())}. It is stored; run `embedworker doctor` on a standby to see "
        "whether questions reach the primary from there"
    ]


def _install_dblink(connection: Connection) -> str | None:
    schema = extension_schema(connection, "dblink")
    if schema is not None:
        if schema == "embed":  # installed for this alone; a restore without grants opened it
            _restrict_dblink(connection)
        return None
    advice = "as a superuser run `create extension dblink`, then `embedworker migrate` again."
    try:
        connection.execute(statement("loopback_install"))
    except errors.InsufficientPrivilege:
        return f"the extension dblink is missing and this role may not install it: {advice}"
    except (errors.UndefinedFile, errors.FeatureNotSupported):
        return (
            "this server does not have the extension dblink: install the package of PostgreSQL's "
            f"contrib modules; {advice}"
        )
    _restrict_dblink(connection)
    return None


def _restrict_dblink(connection: Connection) -> None:
    with connection.transaction(), as_owner(connection):
        run_files(connection, "functions/loopback/020_login.sql")
    # Some hosting services install extensions as somebody else: dblink then stays open to all.
    with suppress(errors.InsufficientPrivilege):
        connection.execute(statement("loopback_restrict"))


def _hosts(connection: Connection, host: str | None) -> list[str]:
    found = connection.execute(statement("loopback_hosts")).fetchone() or ()
    return [*dict.fromkeys(name for name in (host, *FIRST_HOSTS, *found) if name)]


def _works(connection: Connection) -> bool:
    try:
        row = connection.execute(statement("loopback_check")).fetchone()
    except errors.DatabaseError:
        return False
    return row is not None and row[0] is None


def _explain(connection: Connection, error: psycopg.Error) -> str:
    role = connection.info.user
    said = ": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
    return (
        f"the role {role} may not set up the loopback: {said.rstrip('.')}. Run "
        f"`embedworker migrate` as a superuser once, or as a superuser: alter role {role} "
        f"createrole; grant usage on foreign data wrapper dblink_fdw to {role}."
    )
