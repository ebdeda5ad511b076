"""A connection that does not wait for a silent server, and leaves no trace in a pooler."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import capabilities
from psycopg.pq import TransactionStatus

from embedworker.database.statements import statement

__all__ = ["Connection", "advisory_lock", "alone", "keeps_session", "pipelined"]

RV = TypeVar("RV")
Cursor = psycopg.Cursor[tuple[Any, ...]]


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """What :func:`embedworker.database.connect.connect` opens.

    A statement without an answer for ``answer_timeout`` seconds is looked for from a second
    connection: one that the server works on may take as long as it likes, otherwise this connection
    is closed and psycopg.OperationalError raised. Keepalives do not see that: a load balancer or a
    proxy that lost the other side goes on acknowledging, and so does the kernel of a server whose
    processes are frozen.

    ``pooled`` says that something between us and the server hands out process numbers of its own,
    as poolers do. Statements may then each come to another session, which the application gets
    next: settings are made for the transaction of each statement alone.
    """

    conninfo: str = ""
    answer_timeout: float | None = None
    pooled: bool = False
    settings: Mapping[str, Any] | None = None

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for the server, as in psycopg, but not for ever."""
        return super().wait(self._watched(gen), *arguments, **options)

    def execute(self, query: Any, params: Any = None, **options: Any) -> Cursor:
        """Execute a query; through a pooler in a transaction of its own, with our settings."""
        idle = self.pgconn.transaction_status == TransactionStatus.IDLE
        if not (self._settles and self.autocommit and idle):
            return super().execute(query, params, **options)
        with self.transaction():
            return super().execute(query, params, **options)

    @contextmanager
    def transaction(self, *arguments: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        """Open a block, as in psycopg; through a pooler the outermost begins with our settings."""
        outermost = self.pgconn.transaction_status == TransactionStatus.IDLE
        with super().transaction(*arguments, **options) as transaction:
            if outermost:
                self.settle()
            yield transaction

    def settle(self) -> None:
        """Give our settings to the transaction that is open, where the session is not our own."""
        if self._settles:
            super().execute(statement("connection_settle"), self.settings)

    @property
    def _settles(self) -> bool:
        return self.pooled and self.settings is not None

    def _watched(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        heard_at = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    heard_at = time.monotonic()
                elif self.answer_timeout and time.monotonic() - heard_at > self.answer_timeout:
                    self._look(self.answer_timeout)
                    heard_at = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: RV = end.value
            return result

    def _look(self, timeout: float) -> None:
        """Close the connection and raise unless the server is at work on its statement."""
        pid, name = self.info.backend_pid, self.pgconn.parameter_status(b"application_name")
        known = {
            # Behind a pooler the number means nothing, and the name comes with each transaction.
            "pid": None if self.pooled else pid,
            "application_name": (name or b"").decode(),
        }
        why = "and is not at work on it"
        try:
            with _Asker.connect(self.conninfo, autocommit=True, prepare_threshold=None) as asker:
                asker.answer_timeout = timeout
                if asker.execute(statement("connection_at_work"), known).fetchone() == (True,):
                    return
        except psycopg.Error as error:
            why = f"nor does it answer a second connection ({str(error).strip()})"
        self.close()
        raise psycopg.OperationalError(
            f"the server has not answered a statement for {timeout:g} s, {why}; "
            "the connection is given up"
        )


class _Asker(Connection):
    """The second connection; nobody asks after this one."""

    def _look(self, timeout: float) -> None:
        self.close()
        raise psycopg.OperationalError(f"no answer for {timeout:g} s")


def alone(
    connection: psycopg.Connection[Any], query: Any, params: Any = None
) -> psycopg.Cursor[Any]:
    """Execute what may not be in a transaction, as CREATE INDEX CONCURRENTLY.

    Behind a pooler it has the settings of whatever session it gets.
    """
    return psycopg.Connection.execute(connection, query, params)


def keeps_session(connection: psycopg.Connection[Any]) -> bool:
    """Say whether what is left in the session (a lock, a setting) is there at the next statement.

    Not so behind a pooler, and what is left there is with somebody else then.
    """
    return not (isinstance(connection, Connection) and connection.pooled)


@contextmanager
def pipelined(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Send the statements of the block in one message; to the server they are one transaction.

    Each has a snapshot of its own, as in any transaction that is read committed. Do not fetch
    within the block: results, or the first error, are there at its end. Four round trips become
    one, each of which takes almost a millisecond where the processor has slept. Behind a pooler,
    and with a libpq before 14, it is an ordinary transaction.
    """
    possible = keeps_session(connection) and capabilities.has_pipeline()
    with connection.pipeline() if possible else connection.transaction():
        yield


@contextmanager
def advisory_lock(connection: Connection, lock: str, **values: Any) -> Iterator[bool]:
    """Hold an advisory lock as long as the block lasts; False: somebody else has it.

    ``lock`` names a query that takes one until the end of the transaction, which is one on a
    connection of its own: behind a pooler a lock of the session would be left to somebody else.
    """
    with (
        Connection.connect(connection.conninfo, autocommit=True, prepare_threshold=None) as other,
        other.transaction(),
    ):
        other.execute(statement("connection_stay"))
        row = other.execute(statement(lock), values).fetchone()
        yield row is not None and row[0] is not False
