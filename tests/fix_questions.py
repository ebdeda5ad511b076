"""A query lane without the rest of the worker, for tests of ``embed.query``.

testing_database  URL of ``database``, whose default model is then the encoder of the tests
questions         a running QuestionRunner on it
owner             an open connection to it as its owner
application_role  the name of a role that was granted nothing
application       an open connection as that role
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from embedworker.database.connect import connect
from embedworker.database.statements import statement
from embedworker.model.catalog import SMALL_MODEL, TESTING_MODEL
from embedworker.model.encoder import Tokens, Vectors
from embedworker.model.testing import HashEncoder, SmallEncoder, hash_vector
from embedworker.queue.source import Connection
from embedworker.service.models import Loaded
from embedworker.service.questions import BATCH, QuestionLane

WORKER_LOCK = 1701667429
LISTEN = 0.1  # seconds between looks at whether to stop

_numbers = count(1)


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

    def _serve(self, listener: Connection, connection: Connection) -> None:
        listener.execute("select pg_advisory_lock(%s, %s)", [WORKER_LOCK, self.worker_id])
        listener.execute("listen embed_question")
        connection.execute(
            "insert into embed.worker_session (id, host, pid, lanes, backend, lock_held)"
            " values (%s, 'test', 0, '{questions}', 0, true)",
            [self.worker_id],
        )
        lane = QuestionLane(self.load)
        self.listening.set()
        while not self._stopped.is_set():
            if self.gate.wait(LISTEN) and lane.answer_once(connection, self.worker_id) < BATCH:
                for _ in listener.notifies(timeout=LISTEN, stop_after=1):
                    pass
        connection.execute("delete from embed.worker_session where id = %s", [self.worker_id])

    def load(self, connection: Connection, name: str) -> Loaded:
        if name in self._loaded:
            return self._loaded[name]
        encoder = _CountingEncoder(self, name)
        fingerprint = {**asdict(encoder.fingerprint), "digest": encoder.fingerprint.digest}
        row = connection.execute(
            statement("fingerprint_register"), {**fingerprint, "model": name, "notes": "{}"}
        ).fetchone()
        assert row is not None
        self._loaded[name] = Loaded(name, encoder, row[0], encoder.notes)
        return self._loaded[name]


class _CountingEncoder(HashEncoder):
    def __init__(self, runner: QuestionRunner, name: str) -> None:
        if name == SMALL_MODEL:
            self.name, self.dimensions = name, SmallEncoder.dimensions
        super().__init__()
        self._runner = runner

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        self._runner.encoded += len(batch)
        return super().encode_tokens(batch)


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


@pytest.fixture
def application_role(testing_database: str) -> Iterator[str]:
    """A role of an application, which was granted nothing at all."""
    name = f"application{next(_numbers)}"
    quoted = sql.Identifier(name)
    with connect(testing_database) as c:
        c.execute(sql.SQL("create role {} login password 'made up'").format(quoted))
    yield name
    with connect(testing_database) as c:
        c.execute(sql.SQL("drop owned by {0} cascade").format(quoted))
        c.execute(sql.SQL("drop role {}").format(quoted))


@pytest.fixture
def application(testing_database: str, application_role: str) -> Iterator[Connection]:
    with connect(make_conninfo(testing_database, user=application_role, password="made up")) as c:
        yield c


@pytest.fixture
def owner(testing_database: str) -> Iterator[Connection]:
    with connect(testing_database) as c:
        yield c


def ask(c: Connection, text: str | None, **named: str) -> list[float]:
    arguments = ", ".join(f"{name} => %({name})s" for name in named)
    call = f"select embed.query(%(text)s{', ' if named else ''}{arguments})"
    row = c.execute(call, {"text": text, **named}).fetchone()
    assert row is not None
    return [float(x) for x in row[0].to_list()]


def refused(c: Connection, state: str, statement: str, *values: Any) -> Any:
    """Run what must fail with ``state``; return the error. All of ours have a hint."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        c.execute(statement, values)
    assert caught.value.sqlstate == state, caught.value
    if state.startswith("EW"):
        assert caught.value.diag.message_hint
    return caught.value.diag


def grant_dblink(owner: Connection) -> None:
    """As in a database where dblink was there before us: everybody may use it."""
    functions = owner.execute(
        "select d.objid::regprocedure::text from pg_depend d"
        " join pg_extension e on e.oid = refobjid"
        " where extname = 'dblink' and deptype = 'e' and classid = 'pg_proc'::regclass"
    ).fetchall()
    for (function,) in functions:
        if "dblink_connect_u" not in function:
            owner.execute(f"grant execute on function {function} to public")


def loopback_backends(c: Connection) -> list[int]:
    rows = c.execute(
        "select pid from pg_stat_activity where datname = current_database()"
        " and application_name = 'embedworker question'"
    ).fetchall()
    return [pid for (pid,) in rows]


def waiting(c: Connection) -> int:
    row = c.execute("select count(*) from embed.question").fetchone()
    assert row is not None
    return int(row[0])
