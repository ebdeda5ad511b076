"""How good search is, asked of the database with the same SQL that applications send.

    source = find_source(connection, table_oid)
    answers = ask(connection, source, collection, [Setting()], k=10)

Nothing here knows a model: the questions are answered by a running worker.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import psycopg

from embedworker.database.rows import fetch_one
from embedworker.database.statements import render, statement
from embedworker.errors import ConfigurationError, DatabaseError
from embedworker.normalization import normalized
from embedworker.search.beir import Collection
from embedworker.search.collection import Searched, quoted
from embedworker.search.measures import DEEP

__all__ = ["AccessPath", "Answers", "Setting", "ask", "settings_of"]

Connection = psycopg.Connection[tuple[Any, ...]]
AccessPath = Literal["planner", "exact", "hnsw"]

T = TypeVar("T")

MAX_RERANK = 200  # rows, of embed.search

_PATHS: dict[AccessPath, dict[str, str]] = {
    "planner": {"indexscan": "on", "seqscan": "on", "sort": "on"},
    "exact": {"indexscan": "off", "seqscan": "on", "sort": "on"},
    "hnsw": {"indexscan": "on", "seqscan": "off", "sort": "off"},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for every question: the access path to the vectors, and what ranks rows.

    With ``planner`` the server chooses the path, as in an application. With ``lexical`` None the
    source sets the weight of words. A cross-encoder reads the best ``rerank`` rows.
    """

    path: AccessPath = "planner"
    lexical: float | None = None
    rerank: int | None = None

    def __str__(self) -> str:
        path = [] if self.path == "planner" else [self.path]
        weight = [] if self.lexical is None else [f"lexical={self.lexical:g}"]
        reranked = [] if self.rerank is None else [f"rerank={self.rerank}"]
        return "+".join(path + weight + reranked) or "default"


@dataclass(slots=True)
class Answers:
    """What one setting found: scores by question and key, and how long each question took.

    ``run`` has the rows that were asked for, ``deep`` the first hundred. ``seconds`` is of ``run``
    alone, from sending the statement to having the rows, the question's vector included. A quick
    evaluation has neither ``deep`` nor ``seconds``.
    """

    setting: Setting
    path: AccessPath
    run: dict[str, dict[str, float]] = field(default_factory=dict)
    deep: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def settings_of(text: str, base: Setting) -> list[Setting]:
    """Read settings as a person writes them, ``lexical=0,exact+lexical=0.2``, on top of ``base``.

    Raises ConfigurationError.
    """
    found: list[Setting] = []
    for part in text.split(","):
        path, lexical, rerank = base.path, base.lexical, base.rerank
        for word in filter(None, (word.strip() for word in part.split("+"))):
            name, _, value = word.partition("=")
            if word == "exact":
                path = "exact"
            elif word == "hnsw":
                path = "hnsw"
            elif word == "default":
                path, lexical, rerank = "planner", None, None
            elif name == "lexical":
                try:
                    lexical = float(value)
                except ValueError:
                    raise ConfigurationError(f"lexical is {value!r}; expected a number") from None
            elif name == "rerank":
                if not (value.isdecimal() and 1 <= int(value) <= MAX_RERANK):
                    raise ConfigurationError(
                        f"rerank is {value!r}; expected a number of rows from 1 to {MAX_RERANK}"
                    )
                rerank = int(value)
            else:
                raise ConfigurationError(
                    f"the setting {word!r} is not known; expected exact, hnsw, default, "
                    "lexical=WEIGHT or rerank=ROWS, several of them for one setting as "
                    "exact+lexical=0"
                )
        found.append(Setting(path, lexical, rerank))
    if len(set(found)) < len(found):
        raise ConfigurationError(f"two of the settings {text!r} are the same")
    return found


def ask(
    connection: Connection,
    source: Searched,
    collection: Collection,
    settings: Sequence[Setting],
    k: int,
    progress: Callable[[int], None] = lambda _: None,
    *,
    quick: bool = False,
    reconnect: Callable[[], Connection] | None = None,
) -> list[Answers]:
    """Ask every question in every setting. Times are with the model: no vector is remembered.

    The settings take turns at each question, and at who begins, so that what else the machine does
    meets all of them alike. ``progress`` takes the number of questions done. With ``quick`` a
    question goes through the model once for all settings, and only its first ``k`` rows are asked
    for, so there is nothing to time. ``reconnect`` returns a new connection when the server was
    lost; the question is then asked again. Without it a lost connection ends the evaluation.

    Raises:
        ConfigurationError: a setting that this database or table does not have.
        psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
    """
    known = fetch_one(connection.execute(statement("evaluate_has_lexical")))[0]
    if not known and any(setting.lexical is not None for setting in settings):
        raise ConfigurationError("embed.search of this database has no weight for words (lexical)")
    if source.index is None and any(setting.path == "hnsw" for setting in settings):
        raise ConfigurationError(
            f"the vectors of {source.qualified} have no HNSW index to measure; a worker builds one "
            "from EMBEDWORKER_INDEX_AFTER_ROWS vectors on"
        )
    asking = _Asking(connection, source)
    first = next(iter(collection.questions.values()))
    answers = [
        Answers(setting, asking.again(partial(asking.path, setting, first, k), reconnect))
        for setting in settings
    ]
    for done, (number, question) in enumerate(collection.questions.items()):
        turn = done % len(answers)
        order = answers[turn:] + answers[:turn]
        chosen = [answer.setting for answer in order]
        found = asking.again(partial(asking.each, chosen, question, k, quick=quick), reconnect)
        for answer, (rows, took, deep) in zip(order, found, strict=True):
            answer.run[number] = asking.scores(rows)
            if not quick:
                answer.seconds.append(took)
            if deep is not None:
                answer.deep[number] = asking.scores(deep)
        progress(done + 1)
    asking.choose(Setting())
    return answers


class _Found(NamedTuple):
    """The first k rows, the seconds until they were there, and the first hundred if asked for."""

    rows: list[tuple[Any, ...]]
    took: float
    deep: list[tuple[Any, ...]] | None


class _Asking:
    """The statements of one source on one connection."""

    def __init__(self, connection: Connection, source: Searched) -> None:
        self._connection = connection
        self._source = source
        self._chosen: AccessPath = "planner"
        parts = {"keys": source.columns('(s."row")'), "relation": quoted(source.qualified)}
        self._unweighted = render("evaluate_search", **parts)
        self._weighted = render("evaluate_search_ranked", **parts)

    def again(self, step: Callable[[], T], reconnect: Callable[[], Connection] | None) -> T:
        """Do a step; do it again on a new connection, which has no settings yet, after a loss."""
        while True:
            try:
                return step()
            except psycopg.OperationalError:
                if reconnect is None or not self._connection.closed:
                    raise
                self._connection = reconnect()
                self._chosen = "planner"

    def each(
        self, settings: Sequence[Setting], question: str, k: int, *, quick: bool
    ) -> list[_Found]:
        """Ask a question in each setting; with ``quick`` the model sees it once."""
        found = []
        for place, setting in enumerate(settings):
            self.choose(setting)
            if not (quick and place):
                self.forget(question)
            started = time.perf_counter()
            rows = self.search(setting, question, k)
            took = time.perf_counter() - started
            deep = None if quick or k >= DEEP else self.search(setting, question, DEEP)
            found.append(_Found(rows, took, deep))
        return found

    def choose(self, setting: Setting) -> None:
        # Without an index all vectors are compared anyway, and the catalogs are read with theirs.
        path: AccessPath = "planner" if self._source.index is None else setting.path
        if path != self._chosen:
            self._connection.execute(statement("evaluate_planner"), _PATHS[path])
            self._chosen = path

    def forget(self, question: str) -> None:
        composed = normalized("NFC", question)
        self._connection.execute(statement("evaluate_forget"), {"question": composed})

    def search(self, setting: Setting, question: str, k: int) -> list[tuple[Any, ...]]:
        asked: dict[str, Any] = {"question": question, "k": k, "name": self._source.name}
        if setting.lexical is None and setting.rerank is None:
            return self._connection.execute(self._unweighted, asked).fetchall()
        asked |= {"lexical": setting.lexical, "rerank": setting.rerank}
        rows = self._connection.execute(self._weighted, asked).fetchall()
        if setting.rerank and rows and not any(reranked for *_, reranked in rows):
            raise DatabaseError(
                f"the rows of the question {question[:60]!r} were not reranked: either no "
                "answer came within a minute, or the model cannot be used; see the worker's log"
            )
        return [row[:-1] for row in rows]

    def scores(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, float]:
        return {self._source.document(key): score for *key, score in rows}

    def path(self, setting: Setting, question: str, k: int) -> AccessPath:
        """Return the access path that the planner takes in this setting, by the server's counts."""
        self.choose(setting)
        index = self._source.index
        with self._connection.transaction():
            before = self._scans(index)
            self.search(setting, question, k)
            used: AccessPath = "hnsw" if self._scans(index) > before else "exact"
        if setting.path not in ("planner", used):
            raise DatabaseError(
                f"the server uses {used} search although {setting.path} was requested, so "
                "the figures would be wrong"
            )
        return used

    def _scans(self, index: int | None) -> int:
        if index is None:
            return 0
        counted = self._connection.execute(statement("evaluate_index_scans"), {"index": index})
        return int(fetch_one(counted)[0])
