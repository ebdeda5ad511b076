"""What the server refuses, as errors of this package. Their text never quotes a question."""

from typing import Any

import psycopg

from embedworker.errors import (
    AccessDenied,
    ConfigurationError,
    DatabaseError,
    DimensionMismatch,
    EmbedworkerError,
    NoLoopback,
    NotMigrated,
    NoWorker,
    QuestionRefused,
    ServerUnavailable,
    SourceError,
    TooManyQuestions,
)

__all__ = ["refusal", "unstorable"]

# Messages with other codes may quote a value: of them only the code is told.
_KINDS: dict[str, type[EmbedworkerError]] = {
    "EW001": NoWorker,
    "EW002": SourceError,
    "EW003": ConfigurationError,
    "EW004": SourceError,
    "EW005": DimensionMismatch,
    "EW006": DatabaseError,
    "EW007": NoLoopback,
    "EW008": QuestionRefused,
    "EW009": TooManyQuestions,
    "EW010": DatabaseError,  # a change of the model does not allow it
    "25006": DatabaseError,  # read only
    "25P02": DatabaseError,  # the transaction was aborted before
    "3F000": NotMigrated,  # no schema embed
    "42501": AccessDenied,
    "42602": SourceError,  # not a name
    "42P01": SourceError,  # no such table
    "42883": NotMigrated,  # no such function
    "53300": ServerUnavailable,  # too many connections
    "55P03": DatabaseError,  # a lock was not free
    "57014": DatabaseError,  # cancelled
    "57P01": ServerUnavailable,  # the server ends
    "57P03": ServerUnavailable,  # the server starts
}
_NO_SCHEMA = "Run `embedworker migrate`"
# How the server and its type jsonb refuse the character U+0000; psycopg gives no SQLSTATE.
_NUL = {"22021", "22P05"}


def refusal(error: BaseException) -> EmbedworkerError | None:
    """Return the error that stands for one of psycopg, or of asyncpg below SQLAlchemy.

    None where no server spoke: the driver was used wrongly.
    """
    if (found := unstorable(error)) is not None:
        return found
    code: str | None = getattr(error, "sqlstate", None)
    if code is None:
        if isinstance(error, psycopg.OperationalError):
            return ServerUnavailable("the connection to the database was lost; try again")
        return None
    kind = _KINDS.get(code)
    if kind is None:
        found = DatabaseError(f"the server refused it with SQLSTATE {code}")
    else:
        message, detail, hint = _said(error)
        if kind is NotMigrated:
            hint = _NO_SCHEMA
        if kind is NoWorker and detail:  # what workers do; other details may quote a value
            message = f"{message}. {detail.removesuffix('.')}"
        found = kind(f"{message}. {hint}" if hint else message)
    found.sqlstate = code
    return found


def unstorable(error: BaseException) -> EmbedworkerError | None:
    """Return the error that stands for a text which PostgreSQL cannot store; None for another."""
    code: str | None = getattr(error, "sqlstate", None)
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        what = "half of a surrogate pair, which is no character"
    elif code in _NUL or (
        code is None and isinstance(error, psycopg.DataError) and "NUL" in str(error)
    ):
        what = "the character U+0000 (NUL), which PostgreSQL cannot store"
    else:
        return None
    found = ConfigurationError(f"a text holds {what}. Leave it out")
    found.sqlstate = code
    return found


def _said(error: BaseException) -> tuple[str, str | None, str | None]:
    diag = getattr(error, "diag", None)
    if diag is not None:
        return diag.message_primary or "", diag.message_detail, diag.message_hint
    said: Any = error.__cause__ or error  # SQLAlchemy wraps asyncpg's own
    message = getattr(said, "message", None) or str(said)
    return message, getattr(said, "detail", None), getattr(said, "hint", None)
