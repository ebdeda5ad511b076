"""Compares the counters of ``embed.status`` with the rows, beside everything else.

Rarely: when a source is new, as a sweep of it begins and as it ends. A count of 100,000 rows takes
some seconds, in which neither reads nor writes wait for it.
"""

import logging
import threading
import time
from collections.abc import Iterable

import psycopg
from psycopg.types.json import Jsonb

from embedworker.database.connect import connect
from embedworker.database.connection import keeps_session
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.errors import EmbedworkerError
from embedworker.queue.source import Connection, Source
from embedworker.service.logs import redacted
from embedworker.service.threads import Thread
from embedworker.settings.worker import DEFAULT_ANSWER_TIMEOUT

__all__ = ["Counting", "count"]

log = logging.getLogger("embedworker.counting")

LOOK = 60.0  # seconds between looks at what others have asked for
IN_THE_WAY = 0.5  # seconds between looks at whether somebody waits for a count


def count(connection: Connection, source: Source) -> bool:
    """Put the counters of one source right; False: another worker counts it at this moment."""
    known = {"source": source.id}
    with connection.transaction():
        if not fetch_one(connection.execute(statement("count_turn"), known))[0]:
            return False
        source.pin_table(connection)
        found = connection.execute(statement("count_measure"), known).fetchone()
        if found is None:
            return False
        at, asked, drift, unqueued, orphans = found
        connection.execute(
            statement("count_correct"),
            {
                **known,
                "at": at,
                "asked": asked,
                "drift": Jsonb(drift),
                "unqueued": unqueued,
                "orphans": orphans,
            },
        )
    return True


class Counting:
    """One count at a time, in a thread with a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "embedworker count",
        answer_timeout: float = DEFAULT_ANSWER_TIMEOUT,
    ) -> None:
        self._url = url
        self._application_name = application_name
        self._answer_timeout = answer_timeout
        self._looked_at: float | None = None
        self._wanted: set[int] = set()
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._watched_at = 0.0

    @property
    def settled(self) -> bool:
        """Whether nothing is being counted, nor waits for it."""
        return not self._busy and self._looked_at is not None and not self._wanted

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def ask(self, source: Source) -> None:
        """Have a source counted soon."""
        self._wanted.add(source.id)

    def consider(self, connection: Connection, sources: Iterable[Source]) -> None:
        """Begin to count what is wanted of these; a look at what is, every minute."""
        if self._busy:
            return
        now = time.monotonic()
        if self._looked_at is None or now - self._looked_at > LOOK:
            self._looked_at = now
            self._wanted.update(
                number for (number,) in connection.execute(statement("count_wanted"))
            )
        if not self._wanted:
            return
        known = {source.id: source for source in sources}
        due = [known[number] for number in sorted(self._wanted & known.keys())]
        self._wanted.clear()  # what is not counted now is found by the next look
        if due:
            self._thread = Thread(target=self._count, args=(due,), name="counting", daemon=True)
            self._thread.start()

    def give_way(self, connection: Connection) -> None:
        """Break a count off that somebody waits for; it is made again within minutes."""
        pid, now = self._pid, time.monotonic()
        if pid is None or now - self._watched_at < IN_THE_WAY:
            return
        self._watched_at = now
        if connection.execute(statement("count_give_way"), {"pid": pid}).fetchone() is not None:
            log.debug("a count is broken off, because somebody waits for it")

    def _count(self, sources: list[Source]) -> None:
        try:
            with connect(
                self._url,
                application_name=self._application_name,
                answer_timeout=self._answer_timeout,
                all_rows=True,
                synchronous=False,
            ) as connection:
                # Behind a pooler the number is that of nobody.
                self._pid = connection.info.backend_pid if keeps_session(connection) else None
                for source in sources:
                    self._count_one(connection, source)
        except (psycopg.Error, EmbedworkerError) as error:
            log.debug("nothing was counted: %s", redacted(error))
        finally:
            self._pid = None

    @staticmethod
    def _count_one(connection: Connection, source: Source) -> None:
        try:
            count(connection, source)
        except psycopg.Error as error:
            if connection.closed:
                raise
            # What stops the source's rows, too, is said by the lane; the next look tries again.
            log.debug("%s could not be counted: %s", source, redacted(error))
