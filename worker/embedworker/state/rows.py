"""What is read, as plain rows: sources, queues, failures, hits, switches and workers."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from embedworker.search.marking import Piece
from embedworker.search.steps import Hits
from embedworker.state.status import SourceStatus

__all__ = ["Found", "Group", "NumberedStatus", "Queue", "Rights", "Source", "Switch", "Worker"]


class Rights(NamedTuple):
    """The database, the login, and whether it sees the state of tables and of questions."""

    database: str
    login: str
    status: bool
    questions: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedStatus(SourceStatus):
    """One row of the view ``embed.status``, with the source's number."""

    id: int


@dataclass(frozen=True, slots=True)
class Source:
    """What ``embed.enable`` was told, and sizes in bytes."""

    relation: int
    columns: list[str]
    keys: list[str]
    template: str | None
    filter: str | None
    into_column: str | None
    chunk: bool
    dimensions: int
    vectors: str
    table_size: int | None
    vector_size: int | None
    index_size: int | None
    build: float | None


class Queue(NamedTuple):
    """A source's queue, and what of it this login may read."""

    id: int
    source: str
    name: str
    keys: list[str]
    readable: bool
    countable: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one source that failed alike. ``rows`` are (number, key) of the oldest of them."""

    queue: Queue
    error: str | None
    dead: bool
    number: int
    first: datetime
    last: datetime
    attempts: int
    retry_at: datetime | None
    rows: list[tuple[int, str]]


class Found(NamedTuple):
    """The hits of a search, their passages with the question's words marked, and remarks."""

    hits: Hits
    passages: list[list[Piece]]
    remarks: list[str]


class Switch(NamedTuple):
    """A change of a model that is under way, as the view ``embed.switch`` shows it."""

    id: int
    source: str
    from_model: str
    to_model: str
    phase: str
    coverage: str | None
    pending: int | None
    dead: int | None
    eta: timedelta | None
    extra_bytes: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """The lanes of one ``embedworker run``."""

    place: str
    lanes: list[str]
    embedded: int
    answered: int
    rows_per_second: float
    models: list[str]
    started_at: datetime
