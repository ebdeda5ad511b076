"""The connection that hears NOTIFY and shows by a lock that the worker is alive.

A connection of its own, and a direct one: running a statement on a connection whose notifications
are being read blocks for ever, and a transaction pooler delivers none. Worse, it would leave LISTEN
and the lock in a session that the application gets next; so behind a pooler neither is tried unless
somebody has named this address for it (EMBEDWORKER_LISTEN_URL), as one does for a pooler that keeps
sessions. Without them the queue is polled, and leases and signs of life say who is alive.
"""

import logging
import selectors
import socket
import threading
import time
from collections.abc import Mapping

from psycopg import sql

from embedworker.database.connect import connect
from embedworker.database.statements import statement
from embedworker.queue.lease import Identity, take_liveness_lock
from embedworker.queue.source import Connection
from embedworker.service import idle
from embedworker.service.outages import outages_of
from embedworker.service.retry import Backoff
from embedworker.service.threads import Thread

__all__ = ["Listener"]

log = logging.getLogger("embedworker.listener")

SELF_TEST = 2.0  # seconds in which our own NOTIFY must have come back
CHANGES = "embed"  # the channel of the triggers
# Seconds in which the writers after one that notified do not: of many, one after the other would,
# and each NOTIFY wakes two processes of the server and this thread.
QUIET = 0.02
LOOK = 5.0  # seconds between looks at whether the connection still lives
RETRY_LOCK = 1.0  # seconds
DEAF = 60.0  # seconds until it is tried again; the server may just have been slow
POOLED = (
    "the database URL leads through a connection pooler, which does not deliver notifications: "
    "questions and the queue are polled instead, and the rows of a worker that was killed wait for "
    "their lease to end. Set EMBEDWORKER_LISTEN_URL to a direct connection (or to this one again, "
    "if the pooler keeps sessions)"
)
UNHEARD = (
    "notifications do not arrive, as through a transaction pooler: questions and the queue are "
    "polled instead, and the rows of a worker that was killed wait for their lease to end. Set "
    "EMBEDWORKER_LISTEN_URL to a direct connection"
)


class Listener(Thread):
    """Sets the event of a channel whenever it is notified, and all of them after a reconnect.

    Setting them after LISTEN, not before, is what finds the rows whose NOTIFY fell into the gap.
    ``named``: the address is one for notifications, not just that of the database. ``deaf`` is set
    once it was said that there are none.
    """

    def __init__(
        self,
        url: str,
        worker: Identity,
        channels: Mapping[str, threading.Event],
        *,
        named: bool,
        answer_timeout: float,
        deaf: threading.Event,
    ) -> None:
        super().__init__(name="listener", daemon=True)
        self._url = url
        self._worker = worker
        self._channels = channels
        self._named = named
        self._answer_timeout = answer_timeout
        self._deaf = deaf
        self._stopped = threading.Event()
        self._end, self._ended = socket.socketpair()
        self.notified = threading.Event()
        """Set when the worker's own NOTIFY arrived: notifications work."""
        self.holds = False
        """Whether the lock is held that shows this worker is alive."""
        self.tried = threading.Event()
        """Set once that lock was tried for, or cannot be. Rows that are claimed earlier wait for
        their lease if the worker is killed: nobody can tell that it is gone."""

    def holds_lock(self) -> bool:
        """Whether the lock is held that shows this worker is alive."""
        return self.holds

    def run(self) -> None:
        backoff = Backoff(log, "the connection for notifications", outages=outages_of(self._url))
        backoff.keep_trying(
            lambda: self._serve(backoff), self._stopped, lost=lambda _: self.tried.set()
        )

    def stop(self) -> None:
        """End the thread; closing the connection lets the lock go."""
        self._stopped.set()
        self._end.close()
        self.join(timeout=SELF_TEST + 1)
        if not self.is_alive():
            self._ended.close()

    def _serve(self, backoff: Backoff) -> None:
        """Listen until an error or the end; where notifications do not arrive, pause."""
        try:
            with connect(
                self._url,
                application_name=f"embedworker listen {self._worker.id}",
                answer_timeout=self._answer_timeout,
                synchronous=False,
            ) as connection:
                if connection.pooled and not self._named:
                    self._say(POOLED)
                elif self._hears(connection):
                    self._listen(connection, backoff)
                else:
                    self._say(UNHEARD)
            backoff.success()
            self.tried.set()
            self._stopped.wait(DEAF)
        finally:
            self.holds = False
            self.notified.clear()

    def _say(self, remark: str) -> None:
        if not self._deaf.is_set():
            log.warning(remark)
        self._deaf.set()

    def _hears(self, connection: Connection) -> bool:
        """Whether what another session sends arrives here.

        From another one: through a transaction pooler our own NOTIFY would mostly come back, on the
        server's session that happened to run both statements.
        """
        test = sql.Identifier(f"embed_test_{self._worker.id}")
        connection.execute(sql.SQL("listen {}").format(test))
        with connect(self._url, vectors=False, answer_timeout=self._answer_timeout) as other:
            other.execute(sql.SQL("notify {}").format(test))
        heard = any(connection.notifies(timeout=SELF_TEST, stop_after=1))
        connection.execute(sql.SQL("unlisten {}").format(test))
        return heard

    def _listen(self, connection: Connection, backoff: Backoff) -> None:
        for channel in self._channels:
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        self._deaf.clear()
        self.notified.set()
        self.holds = take_liveness_lock(connection, self._worker)
        self.tried.set()
        look_at = time.monotonic() + RETRY_LOCK
        backoff.success()
        for event in self._channels.values():
            event.set()
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._ended, selectors.EVENT_READ)
            while not self._stopped.is_set():
                heard = {n.channel for n in connection.notifies(timeout=0)}
                for channel in heard & self._channels.keys():
                    self._channels[channel].set()
                if CHANGES in heard:
                    connection.execute(statement("worker_quiet"), {"seconds": QUIET})
                    # What was committed meanwhile came without a NOTIFY.
                    self._channels[CHANGES].set()
                now = time.monotonic()
                if now >= look_at:
                    if self.holds:
                        connection.execute("select 1")  # notices a server that went away in silence
                    else:
                        self.holds = take_liveness_lock(connection, self._worker)
                    look_at = now + (idle.pause(LOOK) if self.holds else RETRY_LOCK)
                elif not heard:
                    # Not in notifies(), which looks up every 0.1 s for the sake of Ctrl-C.
                    selector.select(look_at - now)
