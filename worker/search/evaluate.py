"""How good search is, asked of the database with the same SQL that applications send.

    source = find_source(connection, table_oid)
    answers = ask(connection, source, collection, [Setting()], k=10)

Nothing here knows a model: the questions are answered by a running worker.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from worker.database.rows import one
from worker.database.statements import render, statement
from worker.errors import ConfigurationError, DatabaseError
from worker.normalization import normalized
from worker.search.beir import Collection
from worker.search.collection import Searched, quoted
from worker.search.metrics import DEEP

__all__ = ["Answers", "Road", "Setting", "ask", "settings_of"]

Connection = psycopg.Connection[tuple[Any, ...]]
Road = Literal["planner", "exact", "hnsw"]

MAX_RERANK = 200  # rows, of embed.search

_ROADS: dict[Road, dict[str, str]] = {
    "planner": {"indexscan": "on", "seqscan": "on", "sort": "on"},
    "exact": {"indexscan": "off", "seqscan": "on", "sort": "on"},
    "hnsw": {"indexscan": "on", "seqscan": "off", "sort": "off"},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for every question: the road to the vectors, and what ranks the rows.

    ``planner`` leaves the road to the server, as in an application. ``lexical`` None leaves the
    weight of words to the source. ``rerank`` rows are read by a cross-encoder.
    """

    road: Road = "planner"
    lexical: float | None = None
    rerank: int | None = None

    def __str__(self) -> str:
        road = [] if self.road == "planner" else [self.road]
        weight = [] if self.lexical is None else [f"lexical={self.lexical:g}"]
        reranked = [] if self.rerank is None else [f"rerank={self.rerank}"]
        return "+".join(road + weight + reranked) or "default"


@dataclass(slots=True)
class Answers:
    """What one setting found: scores by question and key, and how long each question took.

    ``run`` has the rows that were asked for, ``deep`` the first hundred. ``seconds`` is of ``run``
    alone, from sending the statement to having the rows, the question's vector included. A quick
    evaluation has neither ``deep`` nor ``seconds``.
    """

    setting: Setting
    road: Road
    run: dict[str, dict[str, float]] = field(default_factory=dict)
    deep: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def settings_of(text: str, base: Setting) -> list[Setting]:
    """Read settings as a person writes them, ``lexical=0,exact+lexical=0.2``, on top of ``base``.

    Raises ConfigurationError.
    """
    found: list[Setting] = []
    for part in text.split(","):
        road, lexical, rerank = base.road, base.lexical, base.rerank
        for word in filter(None, (word.strip() for word in part.split("+"))):
            name, _, value = word.partition("=")
            if word == "exact":
                road = "exact"
            elif word == "hnsw":
                road = "hnsw"
            elif word == "default":
                road, lexical, rerank = "planner", None, None
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
        found.append(Setting(road, lexical, rerank))
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
) -> list[Answers]:
    """Ask every question in every setting. Times are with the model: no vector is remembered.

    The settings take turns at each question, and at who begins, so that what else the machine does
    meets all of them alike. ``progress`` takes the number of questions done. With ``quick`` a
    question goes through the model once for all settings, and only its first ``k`` rows are asked
    for, so there is nothing to time.

    Raises:
        ConfigurationError: a setting that this database or table does not have.
        psycopg.Error: what the server refuses, with SQLSTATE EW001 where no worker answers.
    """
    known = one(connection.execute(statement("evaluate_has_lexical")))[0]
    if not known and any(setting.lexical is not None for setting in settings):
        raise ConfigurationError("embed.search of this database has no weight for words (lexical)")
    if source.index is None and any(setting.road == "hnsw" for setting in settings):
        raise ConfigurationError(
            f"the vectors of {source.qualified} have no HNSW index to measure; a worker builds one "
            "from EMBEDWORKER_INDEX_AFTER_ROWS vectors on"
        )
    asking = _Asking(connection, source)
    first = next(iter(collection.questions.values()))
    answers = [Answers(setting, asking.road(setting, first, k)) for setting in settings]
    for done, (number, question) in enumerate(collection.questions.items()):
        turn = done % len(answers)
        for place, answer in enumerate(answers[turn:] + answers[:turn]):
            asking.choose(answer.setting)
            if not (quick and place):
                asking.forget(question)
            started = time.perf_counter()
            rows = asking.search(answer.setting, question, k)
            took = time.perf_counter() - started
            answer.run[number] = asking.scores(rows)
            if quick:
                continue
            answer.seconds.append(took)
            if k < DEEP:
                answer.deep[number] = asking.scores(asking.search(answer.setting, question, DEEP))
        progress(done + 1)
    asking.choose(Setting())
    return answers


class _Asking:
    """The statements of one source on one connection."""

    def __init__(self, connection: Connection, source: Searched) -> None:
        self._connection = connection
        self._source = source
        self._chosen: Road = "planner"
        parts = {"keys": source.columns('(s."row")'), "relation": quoted(source.qualified)}
        self._unweighted = render("evaluate_search", **parts)
        self._weighted = render("evaluate_search_ranked", **parts)

    def choose(self, setting: Setting) -> None:
        # Without an index all vectors are compared anyway, and the catalogs are read with theirs.
        road: Road = "planner" if self._source.index is None else setting.road
        if road != self._chosen:
            self._connection.execute(statement("evaluate_planner"), _ROADS[road])
            self._chosen = road

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
                f"the rows of the question {question[:60]!r} were not reranked within a minute, or "
                "the model cannot be used (the log of the worker says which); what would be "
                "measured is not what it says"
            )
        return [row[:-1] for row in rows]

    def scores(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, float]:
        return {self._source.document(key): score for *key, score in rows}

    def road(self, setting: Setting, question: str, k: int) -> Road:
        """The road that the planner takes in this setting, as the server counts it."""
        self.choose(setting)
        index = self._source.index
        with self._connection.transaction():
            before = self._scans(index)
            self.search(setting, question, k)
            used: Road = "hnsw" if self._scans(index) > before else "exact"
        if setting.road not in ("planner", used):
            raise DatabaseError(
                f"the server takes the road {used} where {setting.road} was asked for; what would "
                "be measured is not what it says"
            )
        return used

    def _scans(self, index: int | None) -> int:
        if index is None:
            return 0
        counted = self._connection.execute(statement("evaluate_index_scans"), {"index": index})
        return int(one(counted)[0])
