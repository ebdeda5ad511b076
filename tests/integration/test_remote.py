"""A model behind an endpoint: rows and questions, and what happens while it misbehaves."""

import logging
from contextlib import closing

import numpy as np
import pytest
from fix_database import Connection
from fix_drain import Lane, source_of
from fix_endpoint import Endpoint
from fix_questions import QuestionRunner, ask, question_vector, refused
from fix_serve import Serving
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import TESTING_MODEL
from embedworker.model.testing import hash_vector
from embedworker.queue.source import Connection as WorkerConnection
from embedworker.service.doctor import examine
from embedworker.service.models import Loaded, Models
from embedworker.service.monitoring.health import Telemetry

KEY = "made-up-key"
SECRET = "words of a row"


class RemoteQuestions(QuestionRunner):
    """Questions of a worker whose models have endpoints."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.models = Models(settings.load(), threads=1, telemetry=Telemetry("questions"))

    def load(self, connection: WorkerConnection, name: str) -> Loaded:
        return self.models.get(connection, name)


def enable(app: Connection, url: str, rows: int) -> None:
    app.execute(
        "select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ', endpoint => %s)",
        [TESTING_MODEL, url],
    )
    app.execute("create table article (id integer primary key, body text)")
    app.execute("select embed.enable('article', array['body'])")
    app.execute(
        "insert into article select n, %s || ' ' || n from generate_series(1, %s) n",
        [SECRET, rows],
    )


def vectors(app: Connection) -> dict[int, np.ndarray]:
    rows = app.execute("select id, embedding::real[] from article_embedding").fetchall()
    return {number: np.array(vector, np.float32) for number, vector in rows}


def assert_vectors(app: Connection, numbers: set[int]) -> None:
    found = vectors(app)
    assert found.keys() == numbers
    for number, vector in found.items():
        expected = hash_vector(f"passage: {SECRET} {number}")
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_a_bad_text_fails_alone_and_an_outage_costs_no_attempt(
    app: Connection,
    shared_database: str,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", f"{endpoint.origin}={KEY}")
    enable(app, endpoint.url, 60)
    with closing(Lane(shared_database)) as lane:
        poison = f"passage: {SECRET} 17"
        endpoint.misbehave = lambda texts: (413, {}, KEY.encode()) if poison in texts else None
        assert lane.drain() == []
        assert_vectors(app, set(range(1, 61)) - {17})
        ((attempts, error),) = app.execute("select attempts, error from embed.failure").fetchall()
        assert attempts >= 1  # more, where the first pause was over before the end
        assert "status 413; it answers other texts" in error

        endpoint.misbehave = lambda _: (503, {"Retry-After": "1"}, SECRET.encode())
        app.execute("insert into article values (61, %s)", [f"{SECRET} 61"])
        (trouble,) = lane.drain()
        assert "status 503" in trouble
        assert SECRET not in trouble
        queue = f"embed.queue_{source_of(app, 'article').id}"
        tried = app.execute(f"select attempts from {queue} where k1 = 61").fetchall()
        assert tried == [(0,)]
        endpoint.misbehave = lambda _: None
        app.execute("select embed.retry('article')")
        wait_until(
            lambda: lane.drain() == [] and len(vectors(app)) == 61, 100.0, what="the endpoint"
        )
        assert_vectors(app, set(range(1, 62)))
    assert SECRET not in caplog.text
    assert KEY not in caplog.text


def test_questions_of_the_same_endpoint(
    app: Connection,
    shared_database: str,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", f"{endpoint.origin}={KEY}")
    enable(app, endpoint.url, 0)
    assert set_up_loopback(app) == []
    with RemoteQuestions(shared_database), connect(shared_database) as asker:
        assert ask(asker, "one") == pytest.approx(question_vector("one"), abs=1e-6)
        monkeypatch.setattr("embedworker.service.questions.PATIENT", 60.0)
        answers = iter([(429, {"Retry-After": "0"}, b"")])
        endpoint.misbehave = lambda _: next(answers, None)
        assert ask(asker, "two") == pytest.approx(question_vector("two"), abs=1e-6)
        monkeypatch.setattr("embedworker.service.questions.PATIENT", 0.0)
        endpoint.misbehave = lambda _: (503, {"Retry-After": "1"}, SECRET.encode())
        said = refused(asker, "EW008", "select embed.query('three')")
        assert "the endpoint of the model" in f"{said.message_primary} {said.message_detail}"
        assert SECRET not in f"{said.message_primary} {said.message_detail}"


def test_a_worker_that_may_not_use_the_endpoint(
    app: Connection, shared_database: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", "https://elsewhere.example=key")
    enable(app, endpoint.url, 1)
    with closing(Lane(shared_database)) as lane:
        (trouble,) = lane.drain()
    assert "add it to EMBEDWORKER_ENDPOINTS" in trouble
    assert endpoint.requests == []
    findings = {f.subject: f for f in examine(shared_database, settings.load())}
    assert findings[TESTING_MODEL].state == "problem"
    monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", endpoint.origin)
    findings = {f.subject: f for f in examine(shared_database, settings.load())}
    assert findings[TESTING_MODEL].state == "ok"


@pytest.mark.slow  # a server that imports torch
def test_rows_through_embedworker_serve(
    app: Connection, shared_database: str, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("--query-prefix", "", "--passage-prefix", "", serve_token=KEY * 2) as server:
        monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", f"{server.url}={KEY * 2}")
        enable(app, f"{server.url}/v1", 100)
        with closing(Lane(shared_database)) as lane:
            assert lane.drain() == []
        assert_vectors(app, set(range(1, 101)))
        assert set_up_loopback(app) == []
        with RemoteQuestions(shared_database), connect(shared_database) as asker:
            assert ask(asker, "one") == pytest.approx(question_vector("one"), abs=1e-6)
