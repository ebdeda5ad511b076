"""What to do where a setting of the server has ended a statement, a transaction or a session."""

from typing import Any

import psycopg

from embedworker.database.connection import alone
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement

__all__ = ["advice"]

_SETTINGS = {
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "57014": "statement_timeout",
    "57P05": "idle_session_timeout",
}


def advice(connection: psycopg.Connection[Any], error: psycopg.Error) -> str | None:
    """Return which setting ended what ``connection`` did, and how to lift it for this role.

    None where it was something else.
    """
    name = _SETTINGS.get(error.sqlstate or "")
    if name is None:
        return None
    try:
        value, role, database = fetch_one(
            alone(connection, statement("connection_timeout"), {"name": name})
        )
    except psycopg.Error:  # the connection has ended with it
        value, role, database = None, connection.info.user, connection.info.dbname
    if value == "0":
        return "Somebody cancelled it, as pg_cancel_backend does: run it again."
    found = "" if value is None else f" is {value} for the role {role} and"
    return (
        f"{name}{found} ended it. For sessions that begin after it: alter role {role} in database "
        f"{database} set {name} = 0;"
    )
