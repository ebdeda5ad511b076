"""Log lines on stderr: for people, or one JSON object a line. Never a text of a user's row."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from worker.settings import Settings

__all__ = ["set_up_logs"]


class _Human(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logs(settings: Settings, stream: TextIO = sys.stderr) -> None:
    """Send our log lines to ``stream`` in the form and from the level of the settings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Human())
    logger = logging.getLogger("embedworker")
    logger.handlers = [handler]
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False
    # psycopg warns of transactions that cannot be rolled back: the connection is gone.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
