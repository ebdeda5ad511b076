"""Connections: one way to open them, and errors that say what to do."""

import re
from functools import cache
from typing import Any, LiteralString

import psycopg
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.sparsevec import register_sparsevec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo
from psycopg.types import TypeInfo

from embedworker.database.connection import Connection
from embedworker.database.statements import statement
from embedworker.errors import ConfigurationError, ServerUnavailable, UnsupportedServer
from embedworker.settings import obfuscate
from embedworker.settings.worker import DEFAULT_ANSWER_TIMEOUT, DEFAULT_LOCK_TIMEOUT

__all__ = ["connect", "connect_async", "dsn", "is_lost"]

CONNECT_TIMEOUT = 10  # seconds for each address of the host
KEEPALIVES_IDLE = 30  # seconds of silence before the first probe
KEEPALIVES_INTERVAL = 10  # seconds between probes
KEEPALIVES_COUNT = 3  # lost probes before the connection is given up
TCP_USER_TIMEOUT = 30_000  # milliseconds data may stay unacknowledged

_DEFAULTS: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives": 1,
    "keepalives_idle": KEEPALIVES_IDLE,
    "keepalives_interval": KEEPALIVES_INTERVAL,
    "keepalives_count": KEEPALIVES_COUNT,
    "tcp_user_timeout": TCP_USER_TIMEOUT,
    "client_encoding": "UTF8",
}
_SCHEME = re.compile(r"^(?:postgres|postgresql)(?:\+\w+)?://")
# Of Prisma, Rails, Django, SQLAlchemy and poolers: about their own pools and caches.
_FOREIGN = {
    "async_fallback",
    "checkout_timeout",
    "conn_health_checks",
    "conn_max_age",
    "connection_limit",
    "encoding",
    "idle_timeout",
    "max_connection_lifetime",
    "max_idle_connection_lifetime",
    "pgbouncer",
    "pool",
    "pool_size",
    "pool_timeout",
    "prepared_statement_cache_size",
    "prepared_statements",
    "reaping_frequency",
    "socket_timeout",
    "statement_cache_size",
    "uselibpqcompat",
}
_QUOTED = re.compile(r'"[^"]*"')
_REGISTER = {
    "vector": register_vector_info,
    "halfvec": register_halfvec_info,
    "sparsevec": register_sparsevec_info,
}
_URL_FORMS = "postgresql://user:password@host:5432/name or host=… dbname=… user=…"


def connect(
    url: str,
    *,
    autocommit: bool = True,
    application_name: str = "embedworker",
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
    answer_timeout: float = DEFAULT_ANSWER_TIMEOUT,
    vectors: bool = True,
    all_rows: bool = False,
    synchronous: bool = True,
    patient: bool = True,
    writing: bool = False,
    connect_timeout: int = CONNECT_TIMEOUT,
) -> Connection:
    """Open a connection with time-outs, keepalives, UTF-8 and the types of pgvector.

    ``lock_timeout`` is in seconds, 0 for none. No statement, transaction or idle session of ours is
    ended for the time it takes, whatever the role or the database has set for others; with
    ``patient=False``, for an application's own statements, their statement_timeout counts.
    ``answer_timeout``, in seconds, is after what silence a statement is asked after.
    ``vectors=False`` is for a database that may not have pgvector yet. With ``all_rows`` a table
    whose row-level security would hide rows from this role is an error, as for pg_dump. Without
    ``synchronous`` a commit does not wait for the disk or for standbys. With ``writing`` triggers
    of the application see embed.writing = on. ``connect_timeout`` is in seconds, for each address
    of the host. What the URL itself says, such as
    ``connect_timeout``, is kept.

    Raises:
        ConfigurationError: the URL cannot be read.
        ServerUnavailable: no connection could be made.
        UnsupportedServer: pgvector is not installed in this database.
    """
    conninfo = dsn(url, application_name=application_name, connect_timeout=connect_timeout)
    try:
        # Unprepared: a prepared statement is not there when a pooler hands out another session.
        connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise ServerUnavailable(_explain(url, error)) from None
    connection.conninfo = conninfo
    connection.answer_timeout = answer_timeout
    try:
        settings = _settings(lock_timeout, all_rows, synchronous, patient, writing)
        rows = connection.execute(*_preparation(connection, settings)).fetchall()
        own, row_security = rows[0][:2]
        connection.pooled = not own
        connection.settings = settings | {"row_security": row_security}
        if not _register(connection, rows) and vectors:
            raise _without_vector(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(
    url: str, *, application_name: str = "embedworker", lock_timeout: float = DEFAULT_LOCK_TIMEOUT
) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """Do what :func:`connect` does for asyncio, in autocommit mode.

    It has no ``answer_timeout``: who waits for an answer can be cancelled. Behind a pooler it makes
    no settings.
    """
    conninfo = dsn(url, application_name=application_name)
    try:
        connection = await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None
        )
    except psycopg.OperationalError as error:
        raise ServerUnavailable(_explain(url, error)) from None
    try:
        prepared = await connection.execute(
            *_preparation(connection, _settings(lock_timeout, patient=False))
        )
        if not _register(connection, await prepared.fetchall()):
            raise _without_vector(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


def is_lost(error: Exception) -> bool:
    """Whether the error says that the server, or the connection to it, was lost.

    Its SQLSTATE is then of class 08 or 57P (PostgreSQL manual, appendix A); libpq gives none.
    """
    if isinstance(error, ServerUnavailable):
        return True
    state = error.sqlstate if isinstance(error, psycopg.OperationalError) else "?"
    return (state or "08").startswith(("08", "57P"))


def dsn(url: str, **defaults: Any) -> str:
    """Return ``url`` as libpq reads it, with our connection defaults where it says nothing.

    Raises:
        ConfigurationError: the URL cannot be read.
    """
    if "://" in url and not _SCHEME.match(url):
        scheme = url.partition("://")[0]
        raise ConfigurationError(f"{scheme}:// is not a PostgreSQL address; expected {_URL_FORMS}")
    place = url.partition("://")[2].partition("?")[0]
    if "@" in place.rpartition("@")[0] or "/" in place.rpartition("@")[0]:
        # libpq would take the rest of the password for a host, port or database, and show it.
        raise ConfigurationError(_unreadable(url, "the password holds a raw @ or /"))
    try:
        given = conninfo_to_dict(_SCHEME.sub("postgresql://", _without_foreign(url)))
    except psycopg.ProgrammingError as error:
        # libpq quotes the part it could not read, which may be a piece of the password.
        raise ConfigurationError(_unreadable(url, _QUOTED.sub('"…"', str(error).strip()))) from None
    if not re.fullmatch(r"[\d,]*", str(given.get("port", ""))):
        raise ConfigurationError(_unreadable(url, "the port is not a number"))
    return make_conninfo("", **{**_DEFAULTS, **defaults, **given})


def _without_foreign(url: str) -> str:
    """Return the URL without parameters of other tools that embedworker ignores.

    Raises:
        ConfigurationError: one would change something; the message says what to write instead.
    """
    place, _, query = url.partition("?")
    if "://" not in url or "@" in query:  # a raw ? in a password: what follows is no parameter
        return url
    kept = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if not pair or name in _FOREIGN or (name == "schema" and value in ("", "public")):
            continue
        instead = "leave it out"
        if name == "schema":
            instead = f"write options=-csearch_path%3D{value}, or leave it out"
        elif name == "sslaccept":
            instead = "write sslmode=verify-full or sslmode=require"
        elif name == "ssl" or name in _parameters():
            kept.append(pair)
            continue
        raise ConfigurationError(
            f"the database URL cannot be read: its parameter {name!r} is none of PostgreSQL's; "
            f"{instead}"
        )
    return "?".join([place, "&".join(kept)]) if kept else place


@cache
def _parameters() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _unreadable(url: str, reason: str) -> str:
    # What cannot be read may have its password anywhere: after passwrd=, or after a blank in it.
    keyword, equals, _ = obfuscate(url).partition("=")
    shown = f"{keyword}=***" if equals else keyword
    return (
        f"the database URL {shown} cannot be read: {reason}. Expected {_URL_FORMS}; "
        "in a URL, write special characters of the password as %40 for @, %2F for /, %3A for :"
    )


def _settings(
    lock_timeout: float,
    all_rows: bool = False,
    synchronous: bool = True,
    patient: bool = True,
    writing: bool = False,
) -> dict[str, str | bool]:
    return {
        "writing": writing,
        "synchronous": synchronous,
        "patient": patient,
        "lock_timeout": f"{round(lock_timeout * 1000)}ms",
        "row_security": "off" if all_rows else "on",
    }


def _preparation(
    connection: psycopg.BaseConnection[Any], settings: dict[str, str | bool]
) -> tuple[LiteralString, dict[str, Any]]:
    """Return the query that sets the session up and reads its types, in one round trip."""
    return statement("connection_prepare"), {**settings, "pid": connection.info.backend_pid}


def _register(connection: psycopg.BaseConnection[Any], rows: list[tuple[Any, ...]]) -> bool:
    """Make pgvector's types known to the connection, and say whether it is installed."""
    types = {name: TypeInfo(name, oid, array) for *_, name, oid, array in rows if name is not None}
    for name, info in types.items():
        _REGISTER[name](connection, info)
    return "vector" in types


def _without_vector(connection: psycopg.BaseConnection[Any]) -> UnsupportedServer:
    return UnsupportedServer(
        f"the database {connection.info.dbname!r} has no extension vector (pgvector); "
        "run `embedworker migrate`, as a superuser if others may not create extensions here"
    )


# libpq gives no SQLSTATE for a failed connection attempt, so its words decide. A server that
# speaks another language still gets the general advice.
_ADVICE = (
    ("password authentication failed", "check user and password"),
    ("no password supplied", "put the password into the URL, PGPASSWORD or a ~/.pgpass file"),
    ("does not exist", "create it or correct its name in the URL"),
    ("pg_hba.conf", "allow this host and user in the server's pg_hba.conf, or add sslmode=require"),
    ("refused", "start the server, or correct host and port; `embedworker db start` runs one here"),
    ("No such file or directory", "no server listens on that socket: start it or name a host"),
    ("could not translate host name", "correct the host name"),
    ("failed to resolve host", "correct the host name"),
    ("timeout", "check host, port and firewall"),
    ("timed out", "check host, port and firewall"),
    ("too many clients", "close connections or raise max_connections"),
    ("starting up", "the server is starting: try again in a moment"),
    ("shutting down", "the server is stopping: start it again"),
    ("SSL", "check sslmode in the URL"),
)
_GENERAL_ADVICE = "check that the server runs and that host, port, user and database are right"


def _explain(url: str, error: psycopg.OperationalError) -> str:
    said = " ".join(str(error).split())
    end = "" if said.endswith(("?", "!", ".")) else "."  # libpq may ask: is the server running …?
    advice = next((advice for words, advice in _ADVICE if words in said), _GENERAL_ADVICE)
    return f"cannot connect to {obfuscate(url)}: {said}{end} What to do: {advice}"
