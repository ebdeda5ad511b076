"""Connections that a client keeps for its next question, and what becomes of them at a fork."""

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus

__all__ = ["Pool"]

C = TypeVar("C", bound=psycopg.BaseConnection[Any])
S = TypeVar("S")


class Pool(Generic[C, S]):
    """Idle connections, and the semaphore ``turns`` that bounds how many are in use.

    A child that is forked shares its parent's sockets: its pool is empty, and closes them without a
    word to the server.
    """

    turns: S

    def __init__(self, turns: Callable[[], S]) -> None:
        self._new_turns = turns
        self._idle: list[C] = []
        self._reset()
        _pools.add(self)

    def take(self) -> C | None:
        """Return the connection that was used last, None where a new one must be opened."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def give_back(self, connection: C) -> bool:
        """Keep a connection; False where it is of no use any more, and must be closed."""
        usable = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if usable:
            self._idle.append(connection)
        return usable

    def _reset(self) -> None:
        # A thread that is not in the child may have had a turn.
        self.turns = self._new_turns()
        self._idle.clear()

    def _forget(self) -> None:
        for connection in self._idle:
            _abandon(connection)
        self._reset()


_pools: WeakSet[Pool[Any, Any]] = WeakSet()


def _abandon(connection: psycopg.BaseConnection[Any]) -> None:
    """Close a parent's connection in the child, where the farewell to the server goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, connection.pgconn.socket)
    finally:
        os.close(nowhere)
    connection.pgconn.finish()


def _forget_all() -> None:
    for pool in list(_pools):
        pool._forget()


os.register_at_fork(after_in_child=_forget_all)
