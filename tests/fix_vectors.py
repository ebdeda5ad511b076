"""Vectors in the database as a worker leaves them, without a worker.

vectors   a :class:`VectorWriter` on ``connection``

A text's vector is the normalised sum of its words' vectors, so texts that share words are near each
other and a test can say which row must come first.
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from pgvector import SparseVector
from psycopg import sql

from embedworker.model.lexical import DIMENSIONS as PLACES
from embedworker.model.lexical import LENGTH, length, question_terms, term_vector
from embedworker.model.testing import DIMENSIONS, hash_vector
from embedworker.queue.source import load_sources
from embedworker.queue.statistics import count

WORKER_LOCK_CLASS = 1701667429


def word_vector(text: str) -> npt.NDArray[np.float32]:
    """Unit vector of shape (384,), float32; texts without a common word are nearly orthogonal."""
    total = np.sum([hash_vector(word) for word in text.lower().split()], axis=0)
    return cast("npt.NDArray[np.float32]", (total / np.linalg.norm(total)).astype(np.float32))


class VectorWriter:
    """Does to the tables what a worker does in the end; the connection is in autocommit."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def fingerprint(self, revision: str = "1", model: str | None = None) -> int:
        """Id of the fingerprint of a model, the default one unless said otherwise."""
        number: int = self._one(
            """
            insert into embed.fingerprint (digest, model, revision, query_prefix, passage_prefix,
                pooling, dimensions, max_tokens)
            values ('testing ' || %(revision)s, coalesce(%(model)s, embed.default_model()),
                %(revision)s, 'query: ', 'passage: ', 'mean', %(dimensions)s, 512)
            on conflict (digest) do update set digest = excluded.digest
            returning id
            """,
            {"revision": revision, "model": model, "dimensions": DIMENSIONS},
        )
        return number

    def activate(self, relation: str, fingerprint: int, name: str | None = None) -> None:
        """Make ``fingerprint`` the one that searches of the source compare with."""
        self.connection.execute(
            "update embed.source_state set fingerprint = %s where source = %s",
            [fingerprint, self.source(relation, name)["id"]],
        )

    def embed(
        self,
        relation: str,
        *,
        name: str | None = None,
        revision: str = "1",
        words_a_passage: int | None = None,
        where: str = "true",
    ) -> int:
        """Embed every row that passes ``where``, empty the queue and return how many passages."""
        source = self.source(relation, name)
        fingerprint = self.fingerprint(revision)
        self.activate(relation, fingerprint, name)
        keys = ", ".join(f"s.{_quote(k)}" for k in source["keys"])
        rows = self._all(
            f"select {source['text_sql']}, embed.text_hash({source['text_sql']}), {keys}"
            f" from {source['rows_sql']} s where {source['text_sql']} is not null and ({where})"
        )
        split = [_passages(text, words_a_passage) for text, *_ in rows]
        lengths = [
            length(row[0][start:end])
            for row, spans in zip(rows, split, strict=True)
            for start, end in spans
        ]
        average = sum(lengths) / max(len(lengths), 1)
        for (text, text_hash, *key), spans in zip(rows, split, strict=True):
            self.forget(relation, key, name)
            for chunk, (start, end) in enumerate(spans):
                self._write(
                    source,
                    key,
                    (chunk, start, end),
                    word_vector(text[start:end]),
                    term_vector(text[start:end], average),
                    (fingerprint, text_hash),
                )
        self.drain(relation, name)
        return len(lengths)

    def count(self, relation: str, name: str | None = None) -> None:
        """Count how often terms occur, to the end."""
        number = self.source(relation, name)["id"]
        source = next(s for s in load_sources(self.connection) if s.id == number)
        for _ in count(self.connection, source):
            pass

    def forget(self, relation: str, key: Sequence[Any], name: str | None = None) -> None:
        """Remove the vectors of one row."""
        source = self.source(relation, name)
        match = " and ".join(f"{_escaped(_quote(k))} = %s" for k in source["keys"])
        self._run(f"delete from {_escaped(source['vectors'])} where {match}", key)

    def drain(self, relation: str, name: str | None = None) -> None:
        """Take everything that waits for the source as done."""
        source = self.source(relation, name)
        self._run(f"truncate embed.inbox_{source['id']}, embed.queue_{source['id']}")
        self._run("delete from embed.sweep_request where source = %s", [source["id"]])

    def enqueue(self, relation: str, key: Sequence[Any], **columns: Any) -> None:
        """Put one row into the queue as it is after a claim or a failure."""
        source = self.source(relation, None)
        names = [f"k{i}" for i in range(1, len(key) + 1)] + list(columns)
        self._run(
            f"insert into embed.queue_{source['id']} (seq, {', '.join(names)})"
            f" values (nextval('embed.seq'), {', '.join(['%s'] * len(names))})",
            [*key, *columns.values()],
        )

    def inbox(self, relation: str) -> list[tuple[Any, ...]]:
        """What waits in the inbox, as ``(k1, …, priority)``, by key."""
        source = self.source(relation, None)
        names = ", ".join(f"k{i}" for i in range(1, len(source["keys"]) + 1))
        return self._all(
            f"select {names}, priority from embed.inbox_{source['id']} order by {names}"
        )

    def know(self, question: str, vector: npt.NDArray[np.float32] | None = None) -> None:
        """Put a question's vector into the cache, so that no worker is needed to ask it."""
        self._run(
            """
            insert into embed.question_cache (fingerprint, hash, embedding, terms, shares)
            values (
                (select max(id) from embed.fingerprint where model = embed.default_model()),
                embed.text_hash(normalize(%s, NFC)), %s, %s::integer[], %s::real[]
            )
            """,
            [
                question,
                word_vector(question) if vector is None else vector,
                *question_terms(question),
            ],
        )

    @contextmanager
    def worker(self, lanes: Sequence[str] = ("passages", "queries")) -> Iterator[int]:
        """A worker that is alive, as far as anybody can see in the database."""
        number = self._one("select coalesce(max(id), 0) + 1 from embed.worker_session")
        self._run(
            """
            insert into embed.worker_session (id, host, pid, lanes, backend, lock_held)
            values (%s, 'test', 1, %s, pg_backend_pid(), true)
            """,
            [number, list(lanes)],
        )
        self._run("select pg_advisory_lock(%s, %s)", [WORKER_LOCK_CLASS, number])
        try:
            yield number
        finally:
            self._run("select pg_advisory_unlock(%s, %s)", [WORKER_LOCK_CLASS, number])

    def source(self, relation: str, name: str | None = None) -> dict[str, Any]:
        cursor = self.connection.execute(
            """
            select s.id, s.keys, s.into_column, s.vectors::text as vectors,
                s.relation::text as relation,
                embed._text_sql(s, 's') as text_sql, embed._rows_sql(s) as rows_sql
            from embed.source s
            where s.relation = %s::regclass and coalesce(s.name = %s, true)
            order by s.id
            """,
            [relation, name],
        )
        names = [column.name for column in cursor.description or ()]
        row = cursor.fetchone()
        assert row is not None, f"{relation} is not enabled"
        return dict(zip(names, row, strict=True))

    def _write(
        self,
        source: dict[str, Any],
        key: Sequence[Any],
        place: tuple[int, int, int],
        vector: npt.NDArray[np.float32],
        terms: SparseVector,
        made_of: tuple[int, bytes],
    ) -> None:
        names = [_escaped(_quote(k)) for k in source["keys"]]
        into = source["into_column"]
        if into is not None:
            match = " and ".join(f"{k} = %s" for k in names)
            self._run(
                f"update {source['relation']} set {_quote(into)} = %s where {match}", [vector, *key]
            )
        columns = [*names, "chunk", "passage_start", "passage_end", "terms", "fingerprint", "hash"]
        columns.append("seq")
        values = [*key, *place, terms, *made_of, 0]
        if into is None:
            columns.append("embedding")
            values.append(vector)
        self._run(
            f"insert into {_escaped(source['vectors'])} ({', '.join(columns)}, checksum)"
            f" values ({', '.join(['%s'] * len(values))},"
            " substr(sha256(vector_send(%s)), 1, 8))",
            [*values, vector],
        )

    def _run(self, query: str, parameters: Sequence[Any] = ()) -> None:
        self.connection.execute(query.encode(), parameters)

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode()).fetchall()

    def _one(self, query: str, parameters: Any = None) -> Any:
        row = self.connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row[0]


@pytest.fixture
def vectors(connection: psycopg.Connection[Any]) -> VectorWriter:
    return VectorWriter(connection)


def bigram_vector(text: str, average: float) -> SparseVector:
    """The vector of terms that workers of version 0002 made: bigrams of everything, no mark."""
    runs = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    terms = [run[at : at + 2] for run in runs for at in range(max(1, len(run) - 1))]
    norm = 1.2 * (0.25 + 0.75 * len(terms) / average)
    values = {
        LENGTH + 1 + zlib.crc32(term.encode()) % (PLACES - LENGTH - 1): count * 2.2 / (count + norm)
        for term, count in Counter(terms).items()
    }
    made_now = term_vector(text, average)
    shares = dict(zip(made_now.indices(), made_now.values(), strict=True))
    values |= {place: shares[place] for place in range(LENGTH) if place in shares}
    return SparseVector({LENGTH: float(len(terms)), **values}, PLACES)


@contextmanager
def role(connection: psycopg.Connection[Any], *grants: str) -> Iterator[str]:
    """An ordinary role with the given rights, as which the block runs."""
    name = f"app_{connection.info.dbname}"
    connection.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
    try:
        for grant in grants:
            connection.execute(f"grant {grant} to {name}".encode())
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(name)))
        yield name
    finally:
        connection.execute("reset role")
        connection.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _escaped(name: str) -> str:
    """A quoted name for a statement with parameters."""
    return name.replace("%", "%%")


def _passages(text: str, words: int | None) -> list[tuple[int, int]]:
    if words is None:
        return [(0, len(text))]
    spans: list[tuple[int, int]] = []
    position = 0
    pieces = text.split()
    for first in range(0, len(pieces), words):
        start = text.index(pieces[first], position)
        end = start
        for piece in pieces[first : first + words]:
            end = text.index(piece, end) + len(piece)
        spans.append((start, end))
        position = end
    return spans
