"""Take the steps of a search over a connection, one that waits or one that does not."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import psycopg

from embedworker.search.steps import WORDS_ALONE, Rows, Step, Steps, warn

__all__ = ["AsyncConnection", "Connection", "run", "run_async"]

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


def run(connection: Connection, steps: Steps[T]) -> T:
    """Return what the steps come to; what the server remarks becomes warnings."""
    with _remarks(connection):
        try:
            step = next(steps)
            while True:
                try:
                    rows = _execute(connection, step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
    return answer


async def run_async(connection: AsyncConnection, steps: Steps[T]) -> T:
    """Do what :func:`run` does."""
    with _remarks(connection):
        try:
            step = next(steps)
            while True:
                try:
                    rows = await _execute_async(connection, step)
                except psycopg.Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(rows)
        except StopIteration as end:
            answer: T = end.value
    return answer


def _execute(connection: Connection, step: Step) -> Rows:
    # A lone statement in autocommit mode: a question must be committed for a worker to see it.
    with connection.transaction() if len(step) > 1 else nullcontext():
        for statement in step:
            rows = connection.execute(*statement)
    return rows.fetchall()


async def _execute_async(connection: AsyncConnection, step: Step) -> Rows:
    async with connection.transaction() if len(step) > 1 else nullcontext():
        for statement in step:
            rows = await connection.execute(*statement)
    return await rows.fetchall()


@contextmanager
def _remarks(connection: Connection | AsyncConnection) -> Iterator[None]:
    """Turn what the server remarks on a statement into warnings, after the statement."""
    said: list[str] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.sqlstate != WORDS_ALONE:  # search_steps warns, if it finds no other way
            said.append(diagnostic.message_primary or "")

    connection.add_notice_handler(hear)
    try:
        yield
    finally:
        connection.remove_notice_handler(hear)
    for remark in said:
        warn(remark)
