"""A query lane without the rest of the worker, for tests of ``embed.query``.

questions   a running QuestionRunner on the database of ``database``, whose default model is then
            the deterministic encoder of the tests
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import psycopg
import pytest

from worker.database.connect import connect
from worker.database.statements import statement
from worker.model.catalog import TESTING_MODEL
from worker.model.encoder import Vectors
from worker.model.testing import HashEncoder, hash_vector
from worker.service.models import Loaded
from worker.service.questions import BATCH, QuestionLane

WORKER_LOCK = 1701667429
LISTEN = 0.1  # seconds between looks at whether to stop


class QuestionRunner(threading.Thread):
    """Listens and answers as a worker does, with an encoder that needs no model.

    ``gate`` is set; while a test clears it, no question is taken. ``encoded`` counts the texts that
    went through the encoder.
    """

    def __init__(self, url: str, worker_id: int = 1) -> None:
        super().__init__(name=f"questions {worker_id}", daemon=True)
        self.url = url
        self.worker_id = worker_id
        self.gate = threading.Event()
        self.gate.set()
        self.listening = threading.Event()
        self.encoded = 0
        self.error: BaseException | None = None
        self._loaded: dict[str, Loaded] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> "QuestionRunner":
        self.start()
        if not self.listening.wait(10):
            raise TimeoutError(f"the query lane did not start: {self.error!r}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join(10)
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        try:
            with connect(self.url) as listener, connect(self.url) as connection:
                self._serve(listener, connection)
        except BaseException as error:
            self.error = error

    def _serve(
        self, listener: psycopg.Connection[Any], connection: psycopg.Connection[Any]
    ) -> None:
        listener.execute("select pg_advisory_lock(%s, %s)", [WORKER_LOCK, self.worker_id])
        listener.execute("listen embed_question")
        connection.execute(
            "insert into embed.worker_session (id, host, pid, lanes, backend, lock_held)"
            " values (%s, 'test', 0, '{questions}', 0, true)",
            [self.worker_id],
        )
        lane = QuestionLane(self._load)
        self.listening.set()
        while not self._stopped.is_set():
            if self.gate.wait(LISTEN) and lane.answer_once(connection, self.worker_id) < BATCH:
                for _ in listener.notifies(timeout=LISTEN, stop_after=1):
                    pass
        connection.execute("delete from embed.worker_session where id = %s", [self.worker_id])

    def _load(self, connection: psycopg.Connection[Any], name: str) -> Loaded:
        if name in self._loaded:
            return self._loaded[name]
        encoder = _CountingEncoder(self)
        fingerprint = {**asdict(encoder.fingerprint), "digest": encoder.fingerprint.digest}
        row = connection.execute(
            statement("fingerprint_register"), {**fingerprint, "model": name, "notes": "{}"}
        ).fetchone()
        assert row is not None
        self._loaded[name] = Loaded(name, encoder, row[0])
        return self._loaded[name]


class _CountingEncoder(HashEncoder):
    def __init__(self, runner: QuestionRunner) -> None:
        super().__init__()
        self._runner = runner

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        self._runner.encoded += len(texts)
        return super().encode_queries(texts)


def question_vector(text: str) -> list[float]:
    """What ``embed.query(text)`` must return: the query prefix once, and nothing else."""
    return [float(x) for x in hash_vector(f"query: {text}")]


@pytest.fixture
def testing_database(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of ``database``, with the encoder of the tests as its default model."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    with connect(database) as connection:
        connection.execute(
            "select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ')", [TESTING_MODEL]
        )
        connection.execute("select embed.use_model(%s)", [TESTING_MODEL])
    return database


@pytest.fixture
def questions(testing_database: str) -> Iterator[QuestionRunner]:
    with QuestionRunner(testing_database) as runner:
        yield runner
