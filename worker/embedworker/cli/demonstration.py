"""What ``embedworker demo`` shows: questions, changes, and how soon a search knows of them."""

import time
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
from psycopg import ClientCursor, sql

from embedworker.cli.database import Connection
from embedworker.cli.screen import Screen
from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.demo.material import Script
from embedworker.errors import EmbedworkerError

__all__ = ["Demonstration"]

POLL = 0.002  # seconds between two looks at whether a change is found
LONGEST = 60.0  # seconds until a change that is not embedded is a failure

Hits = list[tuple[str, float]]


class Demonstration:
    """Six parts, each with its SQL as it was sent. ``check`` raises when the worker has ended."""

    def __init__(self, connection: Connection, screen: Screen, check: Callable[[], None]) -> None:
        self._connection = connection
        self._screen = screen
        self._check = check

    def run(self, said: Script) -> None:
        """Show all parts in order."""
        self._question("A question in Korean", 1, said.korean.question)
        self._screen.say("Scores order the hits of one search; how high they are says nothing.")
        self._question(
            "A question in English finds a Korean article", 2, said.english_to_korean.question
        )
        self._insert(said)
        self._update(said)
        self._delete(said)
        self._status()

    def _question(self, heading: str, number: int, question: str) -> None:
        self._screen.heading(number, heading)
        self._show("demo_search", question=question)
        self._screen.hits(self._search(question))

    def _insert(self, said: Script) -> None:
        new = said.insert
        self._screen.heading(3, "An INSERT, and nothing else, makes a row searchable")
        self._search(new.question)  # its vector is known from here on: only the row's is timed
        self._show("demo_insert", title=new.title, content=new.content)
        started = time.perf_counter()
        self._execute("demo_insert", title=new.title, content=new.content)
        (key,) = fetch_one(self._execute("demo_key", title=new.title))
        hits, took = self._until(started, new.question, key, before=None)
        self._show("demo_search", question=new.question)
        self._screen.hits(hits)
        self._timed(hits, new.title, took, "INSERT")

    def _update(self, said: Script) -> None:
        new = said.update
        self._screen.heading(4, "An UPDATE: the new text is found, the old one no longer")
        before = self._search(new.old_question)
        self._search(new.new_question)
        self._show("demo_search", question=new.old_question)
        self._screen.hits(before[:1])
        (key,) = fetch_one(self._execute("demo_key", title=new.expects))
        (vector,) = fetch_one(self._execute("demo_vector", id=key))
        self._show("demo_update", title=new.expects, content=new.new_content)
        started = time.perf_counter()
        self._execute("demo_update", title=new.expects, content=new.new_content)
        hits, took = self._until(started, new.new_question, key, before=vector)
        self._show("demo_search", question=new.new_question)
        self._screen.hits(hits[:1])
        self._timed(hits, new.expects, took, "UPDATE")
        self._screen.say("The question about the old text finds another article first now:")
        self._screen.hits(self._search(new.old_question)[:1])

    def _delete(self, said: Script) -> None:
        gone = said.delete
        self._screen.heading(5, "A DELETE vanishes at once")
        self._show("demo_search", question=gone.question)
        self._screen.hits(self._search(gone.question)[:1])
        (key,) = fetch_one(self._execute("demo_key", title=gone.expects))
        self._show("demo_delete", title=gone.expects)
        started = time.perf_counter()
        self._execute("demo_delete", title=gone.expects)
        hits = self._search(gone.question)
        took = time.perf_counter() - started
        self._screen.hits(hits[:1])
        if gone.expects in dict(hits):
            raise EmbedworkerError(f"the deleted article {gone.expects!r} is still found")
        while self._execute("demo_vector", id=key).fetchone() is not None:
            self._look(started)
        removed = time.perf_counter() - started
        self._screen.say(
            f"Not found {1000 * took:.0f} ms after the DELETE; the worker had removed its vector "
            f"after {1000 * removed:.0f} ms."
        )

    def _status(self) -> None:
        self._screen.heading(6, "How far the table is")
        self._show("demo_status")
        cursor = self._execute("demo_status")
        names = [column.name for column in cursor.description or ()]
        self._screen.row(dict(zip(names, fetch_one(cursor), strict=True)))

    def _until(
        self, started: float, question: str, key: int, *, before: int | None
    ) -> tuple[Hits, float]:
        """Search once the vector is of the change ``started``; seconds until that was through.

        Searching all the while would take the processor from the worker that is waited for.
        """
        while (row := self._execute("demo_vector", id=key).fetchone()) is None or row[0] == before:
            self._look(started)
        hits = self._search(question)
        return hits, time.perf_counter() - started

    def _timed(self, hits: Hits, title: str, took: float, what: str) -> None:
        found = "found" if title in dict(hits) else "embedded, but not among the first three,"
        self._screen.say(f"{title}: {found} {1000 * took:.0f} ms after the {what}.")

    def _look(self, started: float) -> None:
        self._check()
        if time.perf_counter() - started > LONGEST:
            raise EmbedworkerError(
                f"the worker has not followed a change within {LONGEST:g} s; see its log"
            )
        time.sleep(POLL)

    def _search(self, question: str) -> Hits:
        return self._execute("demo_search", question=question).fetchall()

    def _execute(self, name: str, **parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._connection.execute(statement(name), parameters)

    def _show(self, name: str, **parameters: Any) -> None:
        query: LiteralString = statement(name)
        self._screen.sql(ClientCursor(self._connection).mogrify(sql.SQL(query), parameters))
