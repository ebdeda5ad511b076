"""How a worker does its work: threads, windows, waits and index builds."""

from typing import Annotated

from pydantic import BaseModel, ByteSize, Field, model_validator

from embedworker.machine import memory
from embedworker.settings.values import Seconds, Texts, Threads, Unit, Vectors

__all__ = [
    "DEFAULT_ANSWER_TIMEOUT",
    "DEFAULT_INDEX_AFTER_ROWS",
    "DEFAULT_LEASE",
    "DEFAULT_LOCK_TIMEOUT",
    "DEFAULT_QUERY_TIMEOUT",
    "DEFAULT_WINDOW",
    "DEFAULT_WORDS_INDEX_AFTER_ROWS",
    "WorkerSettings",
    "index_memory",
]

DEFAULT_LEASE = 60.0  # seconds
DEFAULT_WINDOW = 1024  # texts
DEFAULT_LOCK_TIMEOUT = 1.0  # seconds
DEFAULT_ANSWER_TIMEOUT = 15.0  # seconds
DEFAULT_QUERY_TIMEOUT = 5.0  # seconds
DEFAULT_INDEX_AFTER_ROWS = 1000  # vectors
DEFAULT_WORDS_INDEX_AFTER_ROWS = 5000  # vectors; from 10,000 on nothing else finds rows by words

# Beyond these a claim fails in the database, or holds more text than any memory.
MOST_WINDOW = 100_000  # texts
LONGEST_LEASE = 86_400.0  # seconds

MOST_INDEX_MEMORY = 2 * 1024**3  # bytes, of the default
LEAST_INDEX_MEMORY = 1024**2  # bytes; the server takes no less


def index_memory() -> ByteSize:
    """Return the default for ``index_memory``, in bytes: at most a quarter of the memory."""
    return ByteSize(min(memory() // 4, MOST_INDEX_MEMORY))


class WorkerSettings(BaseModel):
    """Threads, windows, waits and index builds."""

    threads: Threads | None = Field(
        default=None,
        ge=1,
        description="Threads for bulk embedding; not set: one for each processor that the worker "
        "may use",
    )
    query_threads: Threads = Field(default=1, ge=1, description="Threads for questions")
    nice: Annotated[int, Unit("nice(2) steps")] = Field(
        default=19,
        ge=0,
        le=19,
        description="Nice value of the bulk process and of `adapt`, so that questions stay quick",
    )
    window: Texts = Field(
        default=DEFAULT_WINDOW,
        ge=1,
        le=MOST_WINDOW,
        description="Texts that a worker claims at once and sorts by length",
    )
    batch_tokens: Annotated[int | None, Unit("tokens")] = Field(
        default=None,
        ge=1,
        description="Padded tokens in one model call; not set: chosen for the device",
    )
    lease: Seconds = Field(
        default=DEFAULT_LEASE,
        ge=1,
        le=LONGEST_LEASE,
        description="Time after which other workers may take the rows of a silent worker",
    )
    poll_min: Seconds = Field(
        default=0.05, gt=0, description="Shortest wait between polls of an empty queue"
    )
    poll_max: Seconds = Field(
        default=2.0, gt=0, description="Longest wait between polls of an empty queue"
    )
    max_attempts: Annotated[int, Unit("attempts")] = Field(
        default=5, ge=1, description="Attempts before a row is dead"
    )
    backoff_max: Seconds = Field(
        default=300.0, gt=0, description="Longest wait before a row is tried again"
    )
    batch_timeout: Seconds = Field(
        default=300.0, gt=0, description="Longest time for one window at the model"
    )
    query_timeout: Seconds = Field(
        default=DEFAULT_QUERY_TIMEOUT, gt=0, description="Longest wait for a question's vector"
    )
    lock_timeout: Seconds = Field(
        default=DEFAULT_LOCK_TIMEOUT,
        gt=0,
        description="Longest wait of the worker for a database lock",
    )
    answer_timeout: Seconds = Field(
        default=DEFAULT_ANSWER_TIMEOUT,
        gt=0,
        description="Silence of the server after which the worker checks the statement over a "
        "second connection. If the server does not execute it any more, the worker reconnects",
    )
    sweep_interval: Seconds = Field(
        default=86400.0,
        gt=0,
        description="Time between sweeps, which find what triggers cannot see; varies by a tenth",
    )
    index_after_rows: Vectors = Field(
        default=DEFAULT_INDEX_AFTER_ROWS,
        ge=0,
        description="Vectors in a table before the worker builds its HNSW index",
    )
    words_index_after_rows: Vectors = Field(
        default=DEFAULT_WORDS_INDEX_AFTER_ROWS,
        ge=0,
        description="Vectors in a table before the worker builds the index over its words. Smaller "
        "tables are read in whole",
    )
    index_memory: Annotated[ByteSize, Unit("bytes")] = Field(
        default_factory=index_memory,
        ge=LEAST_INDEX_MEMORY,
        description="Largest memory of an index build on the server, such as 512MB or 4GiB. The "
        "default is for this machine: set less if the server has less memory",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "WorkerSettings":
        if self.poll_min > self.poll_max:
            raise ValueError(
                f"EMBEDWORKER_POLL_MIN ({self.poll_min:g} s) is greater than "
                f"EMBEDWORKER_POLL_MAX ({self.poll_max:g} s); expected the smaller first"
            )
        return self
