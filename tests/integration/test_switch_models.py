"""The model of a table is changed for one of other dimensions: 384 to 1,024, with real encoders."""

import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_switch import NEAREST, TEXTS, one
from sentence_transformers import SentenceTransformer
from tiny_models import save_model
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.service.worker import Worker

pytestmark = pytest.mark.slow

QUESTION = "which kettle is red?"


@cache
def encoder(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("small"), dimensions=384, max_tokens=128)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(
        tmp_path_factory.mktemp("large"),
        dimensions=1024,
        max_tokens=64,
        architecture="xlm-roberta",
        pooling="cls",
        seed=1,
    )


@pytest.fixture
def article(server: Cluster, template: str, small: Path, large: Path) -> Iterator[Connection]:
    """A table by the small model, and a worker in threads."""
    chosen = settings.load(
        engine="torch",
        dtype="float32",
        device="cpu",
        threads=1,
        poll_max=0.2,
        index_after_rows=10**9,
    )
    with new_database(server, template) as url, connect(url) as connection:
        set_up_loopback(connection)
        for folder, dimensions, window, pooling in (
            (small, 384, 128, "mean"),
            (large, 1024, 64, "cls"),
        ):
            connection.execute(
                "select embed.add_model(%s, %s, %s, 'query: ', 'passage: ', %s)",
                [str(folder), dimensions, window, pooling],
            )
        connection.execute("select embed.use_model(%s)", [str(small)])
        connection.execute("create table article (id int primary key, title text)")
        for number, text in TEXTS.items():
            connection.execute("insert into article values (%s, %s)", [number, text])
        connection.execute(
            "select embed.enable('article', array['title'], model => %s)", [str(small)]
        )
        worker = Worker(url, chosen)
        running = threading.Thread(target=worker.run)
        running.start()
        try:
            connection.execute("set embed.query_timeout = '1min'; set embed.worker_grace = '1min'")
            yield connection
        finally:
            worker.stop()
            running.join(30)
        assert not running.is_alive()


def settle(connection: Connection) -> None:
    """Wait until both sides, or the only one, have all rows."""
    left = (
        "select count(*) from embed.status_exact('article')"
        " where coverage is distinct from 1 or pending > 0"
    )
    wait_until(lambda: one(connection, left) == 0, 60, "the vectors of all models")


def check(connection: Connection, folder: Path) -> None:
    """Every row is found, and each score is the cosine by this model."""
    found = connection.execute(NEAREST.encode(), [QUESTION, QUESTION]).fetchall()
    titles = dict(connection.execute("select id, title from article").fetchall())
    assert sorted(number for number, _ in found) == sorted(titles)
    model = encoder(folder)
    asked = model.encode(f"query: {QUESTION}", normalize_embeddings=True)
    for number, score in found:
        passage = model.encode(f"passage: {titles[number]}", normalize_embeddings=True)
        assert score == pytest.approx(float(np.dot(asked, passage)), abs=1e-4)


@pytest.mark.timeout(300)
def test_from_384_to_1024_dimensions_and_back(
    article: Connection, small: Path, large: Path
) -> None:
    settle(article)
    check(article, small)
    article.execute("select embed.begin_switch('article', %s)", [str(large)])
    check(article, small)
    settle(article)
    article.execute("update article set title = 'a green kettle' where id = 1")
    settle(article)
    article.execute("select embed.cut_over('article')")
    check(article, large)
    article.execute("update article set title = 'a grey kettle' where id = 2")
    article.execute("insert into article values (4, 'a new one')")
    settle(article)
    check(article, large)
    article.execute("select embed.roll_back('article')")
    check(article, small)
    article.execute("select embed.cut_over('article')")
    article.execute("select embed.end_switch('article')")
    article.execute("update article set title = 'the last kettle' where id = 1")
    settle(article)
    check(article, large)
    assert one(article, "select vector_dims(embedding) from article_embedding limit 1") == 1024
