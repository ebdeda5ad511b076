"""What must be true of a table once its workers have nothing left to do.

The text of every row is read from the table itself, so whatever an application did to it, its last
text is what counts; the vector that belongs to a text is computed here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from fix_database import Connection
from psycopg import sql
from waiting import wait_until

from embedworker.model.testing import hash_vector

PREFIX = "passage: "


@dataclass(frozen=True)
class Verdict:
    """Counts of rows: all, and those with each kind of fault."""

    rows: int
    wrong: int
    """with the vector of another text, model or length of text"""
    missing: int
    orphans: int
    inbox: int
    queued: int
    dead: int

    @property
    def good(self) -> bool:
        faults = (self.wrong, self.missing, self.orphans, self.inbox, self.queued, self.dead)
        return not any(faults)


def judge(
    connection: Connection,
    relation: str,
    *,
    keys: tuple[str, ...] = ("id",),
    text: str = "content",
    into_column: str | None = None,
) -> Verdict:
    """Look at every row of a table; ``text`` is the SQL expression of what is embedded.

    One snapshot for all of it, so that it can be asked while others still write.
    """
    source, vectors, fingerprint = _source(connection, relation)
    s_keys = sql.SQL(", ").join(sql.Identifier("s", key) for key in keys)
    v_keys = sql.SQL(", ").join(sql.Identifier("v", key) for key in keys)
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read read only")
        texts = {
            tuple(key): content
            for content, *key in connection.execute(
                sql.SQL("select {}, {} from {} s").format(_raw(text), s_keys, _raw(relation))
            )
            if content is not None and content.strip()
        }
        stored = sql.SQL("v.embedding")
        join = sql.SQL("")
        if into_column is not None:
            stored = sql.SQL("s.{}").format(sql.Identifier(into_column))
            join = sql.SQL("left join {} s using ({})").format(
                _raw(relation), sql.SQL(", ").join(map(sql.Identifier, keys))
            )
        found: dict[tuple[Any, ...], list[Any]] = {}
        for vector, made_by, start, end, *key in connection.execute(
            sql.SQL(
                "select {}, v.fingerprint, v.passage_start, v.passage_end, {}"
                " from {} v {} order by v.chunk"
            ).format(stored, v_keys, _raw(vectors), join)
        ):
            found.setdefault(tuple(key), []).append((vector, made_by, start, end))
        bare = 0
        if into_column is not None:
            bare = _count(
                connection,
                sql.SQL("select count(*) from {} s where s.{} is not null and {} is null").format(
                    _raw(relation), sql.Identifier(into_column), _raw(text)
                ),
            )
        waiting = _count(connection, sql.SQL("select count(*) from {}").format(_inbox(source)))
        queue = _queue(source)
        queued, dead = (
            _count(
                connection,
                sql.SQL("select count(*) from {} where due {} 'infinity'").format(
                    queue, sql.SQL(how)
                ),
            )
            for how in ("<", "=")
        )
    wrong = sum(
        not _is_of(texts[key], passages, fingerprint)
        for key, passages in found.items()
        if key in texts
    )
    return Verdict(
        rows=len(texts),
        wrong=wrong + bare,
        missing=len(texts.keys() - found.keys()),
        orphans=len(found.keys() - texts.keys()),
        inbox=waiting,
        queued=queued,
        dead=dead,
    )


def wait_settled(
    connection: Connection, relation: str, timeout: float = 30.0, *, dead: int = 0
) -> None:
    """Wait until nothing of a table is waiting any more but so many dead letters."""
    source, _, _ = _source(connection, relation)
    left = sql.SQL(
        "select (select count(*) from {}), (select count(*) from {} where due < 'infinity'),"
        " (select count(*) from {} where due = 'infinity'),"
        " (select count(*) from embed.sweep_request where source = {}),"
        " (select count(*) from embed.source s left join embed.sweep_state w on w.source = s.id"
        " where s.id = {} and w.phase is distinct from 'done')"
    ).format(
        _inbox(source), _queue(source), _queue(source), sql.Literal(source), sql.Literal(source)
    )
    seen: list[Any] = []

    def settled() -> bool:
        seen[:] = [connection.execute(left).fetchone()]
        return seen[0] == (0, 0, dead, 0, 0)

    try:
        wait_until(settled, timeout, f"{relation} without anything left to do")
    except TimeoutError as error:
        raise TimeoutError(
            f"{error}; inbox, queue, dead, requests, sweeps: {seen}; "
            f"{failures(connection, relation)}"
        ) from None


def failures(connection: Connection, relation: str) -> list[tuple[Any, ...]]:
    """Rows in the queue that have been tried: key, attempts, error, dead."""
    source, _, _ = _source(connection, relation)
    return connection.execute(
        sql.SQL(
            "select k1::text, attempts, error, due = 'infinity' from {} where attempts > 0"
            " order by k1"
        ).format(_queue(source))
    ).fetchall()


def queue_of(connection: Connection, relation: str) -> sql.Identifier:
    """The queue of a table."""
    return _queue(_source(connection, relation)[0])


def inbox_of(connection: Connection, relation: str) -> sql.Identifier:
    """The inbox of a table."""
    return _inbox(_source(connection, relation)[0])


def _is_of(text: str, passages: list[Any], fingerprint: int | None) -> bool:
    if passages[0][2] != 0 or passages[-1][3] != len(text):
        return False
    return all(
        vector is not None
        and made_by == fingerprint
        and np.array_equal(
            np.asarray(_array(vector), np.float32), hash_vector(PREFIX + text[start:end])
        )
        for vector, made_by, start, end in passages
    )


def _array(vector: Any) -> Any:
    return vector.to_numpy() if hasattr(vector, "to_numpy") else vector


def _source(connection: Connection, relation: str) -> tuple[int, str, int | None]:
    row = connection.execute(
        "select s.id, s.vectors::text, t.fingerprint from embed.source s"
        " join embed.source_state t on t.source = s.id where s.relation = %s::regclass",
        [relation],
    ).fetchone()
    assert row is not None, f"{relation} is not enabled"
    return row[0], row[1], row[2]


def _queue(source: int) -> sql.Identifier:
    return sql.Identifier("embed", f"queue_{source}")


def _inbox(source: int) -> sql.Identifier:
    return sql.Identifier("embed", f"inbox_{source}")


def _count(connection: Connection, query: sql.Composed) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _raw(text: str) -> sql.SQL:
    return sql.SQL(text)
