"""Log lines on stderr: for people, or one JSON object a line.

Never a text of a user's row and never a password: of an exception that is not ours only its kind
and the places in the code are written, since its words may quote a row.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

import psycopg

from embedworker.errors import EmbedworkerError
from embedworker.settings import Settings

__all__ = ["of_database", "redacted", "set_up_logs", "without_context"]

_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
# Classes of SQLSTATE whose messages quote values of rows: data exceptions, violated constraints,
# what a trigger of the application raises.
_QUOTING = ("22", "23", "P0")


def redacted(error: BaseException | str) -> str:
    """Return one line that says what went wrong, without anything that a row holds."""
    if isinstance(error, str | EmbedworkerError):
        text = str(error).strip()
    elif isinstance(error, psycopg.Error):
        text = _of_server(error)
    else:
        text = ""  # a library's words
    return text.splitlines()[0] if text else type(error).__name__


def without_context(error: BaseException) -> str:
    """Return what the server says of an error, without the functions and statements it came from.

    These can be kilobytes of our own.
    """
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    if not isinstance(error, psycopg.Error) or said is None:
        return str(error).strip()
    further = {"DETAIL": error.diag.message_detail, "HINT": error.diag.message_hint}
    return "\n".join([said, *(f"{name}:  {text}" for name, text in further.items() if text)])


def _of_server(error: psycopg.Error) -> str:
    state = error.sqlstate or ""
    if not state.startswith(_QUOTING):
        return error.diag.message_primary or str(error).strip()
    named = {
        "table": error.diag.table_name,
        "column": error.diag.column_name,
        "constraint": error.diag.constraint_name,
    }
    where = ", ".join(f"{what} {name}" for what, name in named.items() if name)
    return f"{type(error).__name__} (SQLSTATE {state}{f', {where}' if where else ''})"


_database: ContextVar[str] = ContextVar("database", default="")


@contextmanager
def of_database(name: str) -> Iterator[None]:
    """Have log lines name this database, those of threads that are started here, too.

    An empty name leaves them as they are.
    """
    token = _database.set(name)
    try:
        yield
    finally:
        _database.reset(token)


class _Human(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(database)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        database = _database.get()
        record.database = f"{database}: " if database else ""
        return super().format(record)

    def formatException(self, ei: _Raised) -> str:  # noqa: N802  (the base's name)
        return _places(ei)


class _Json(logging.Formatter):
    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        # What the locale has no letter for is written as JSON has it, \u….
        self._plain = not (stream.encoding or "utf-8").lower().startswith("utf")

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if database := _database.get():
            entry["database"] = database
        if record.exc_info:
            entry["exception"] = _places(record.exc_info)
        return json.dumps(entry, ensure_ascii=self._plain)


def _places(raised: _Raised) -> str:
    """Return a traceback, without the words of an exception from outside embedworker."""
    kind, error, trace = raised
    if kind is None or error is None:
        return ""
    return "".join(traceback.format_tb(trace)) + f"{kind.__qualname__}: {redacted(error)}"


def set_up_logs(settings: Settings, stream: TextIO = sys.stderr) -> None:
    """Send log lines to ``stream`` in the form and from the level of the settings.

    Of libraries, and of Python's own warnings, from the level of warnings on.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json(stream) if settings.log_format == "json" else _Human())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logger = logging.getLogger("embedworker")
    logger.handlers = [handler]
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False
    # psycopg warns of transactions that cannot be rolled back: the connection is gone.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
