"""The connection that hears NOTIFY and shows by a lock that the worker is alive.

A connection of its own, and a direct one: running a statement on a connection whose notifications
are being read blocks for ever, and a transaction pooler delivers none.
"""

import logging
import threading
import time
from collections.abc import Mapping

import psycopg
from psycopg import sql

from worker.database.connect import connect
from worker.errors import EmbedworkerError
from worker.queue.lease import Identity, hold
from worker.queue.source import Connection
from worker.service.patience import Patience

__all__ = ["Listener"]

log = logging.getLogger("embedworker.listener")

SELF_TEST = 2.0  # seconds in which our own NOTIFY must have come back
LISTEN = 0.25  # seconds in which an end is noticed; costs no round trip
LOOK = 5.0  # seconds between looks at whether the connection still lives
RETRY_LOCK = 1.0  # seconds
DEAF = 60.0  # seconds until it is tried again; the server may just have been slow


class Listener(threading.Thread):
    """Sets the event of a channel whenever it is notified, and all of them after a reconnect.

    Setting them after LISTEN, not before, is what finds the rows whose NOTIFY fell into the gap.
    """

    def __init__(self, url: str, worker: Identity, channels: Mapping[str, threading.Event]) -> None:
        super().__init__(name="listener", daemon=True)
        self._url = url
        self._worker = worker
        self._channels = channels
        self._stopped = threading.Event()
        self._deaf = False
        self.notified = threading.Event()
        """Set once a NOTIFY of our own has come back: the road works."""

    def run(self) -> None:
        patience = Patience(log, "the connection for notifications")
        while not self._stopped.is_set():
            try:
                with connect(
                    self._url, application_name=f"embedworker listen {self._worker.id}"
                ) as connection:
                    self._listen(connection, patience)
            except (psycopg.Error, EmbedworkerError) as error:
                if not self._stopped.is_set():
                    patience.wait(error, self._stopped)

    def stop(self) -> None:
        """End the thread; closing the connection lets the lock go."""
        self._stopped.set()
        self.join(timeout=SELF_TEST + 1)

    def _listen(self, connection: Connection, patience: Patience) -> None:
        test = f"embed_test_{self._worker.id}"
        for channel in (*self._channels, test):
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        connection.execute(sql.SQL("notify {}").format(sql.Identifier(test)))
        if not self._await_test(connection, test):
            if not self._deaf:
                log.warning(
                    "notifications do not arrive: the database URL seems to lead through a "
                    "transaction pooler; the queue is polled instead. Set EMBEDWORKER_LISTEN_URL "
                    "to a direct connection"
                )
            # Without a session of our own a lock says nothing either; leases alone count.
            self._deaf = True
            self._stopped.wait(DEAF)
            return
        self._deaf = False
        self.notified.set()
        held = hold(connection, self._worker)
        look_at = time.monotonic() + RETRY_LOCK
        patience.success()
        self._wake()
        while not self._stopped.is_set():
            for notification in connection.notifies(timeout=LISTEN):
                event = self._channels.get(notification.channel)
                if event is not None:
                    event.set()
            now = time.monotonic()
            if not held and now >= look_at:
                held = hold(connection, self._worker)
                look_at = now + RETRY_LOCK
            elif now >= look_at:
                connection.execute("select 1")  # notices a server that went away in silence
                look_at = now + LOOK

    def _await_test(self, connection: Connection, channel: str) -> bool:
        # Not stop_after=1: the first to come may be an application's.
        return any(
            notification.channel == channel
            for notification in connection.notifies(timeout=SELF_TEST)
        )

    def _wake(self) -> None:
        for event in self._channels.values():
            event.set()
