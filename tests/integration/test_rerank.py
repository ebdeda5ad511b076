"""embed.search(…, rerank => n): a cross-encoder in a real worker orders what was found."""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_drain import drain_url
from fix_vectors import VectorWriter
from fix_worker import WorkerProcess, Workers, use_hash_model
from psycopg import errors, sql
from tiny_models import save_model, save_reranker
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.errors import SearchWarning
from embedworker.search.functions import search as client_search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


QUESTION = "어느 글이 가장 좋은가요"
# The cross-encoder of these tests puts the larger digit first; by meaning the order is another.
TEXTS = ["어느 글 1", "어느 글이 9", "가장 좋은가요 5", "좋은가요 7", "아무 상관 없는 글 8", "끝 3"]
LOADED = 200.0  # seconds until a worker has imported torch on a machine that does much else
BY_DIGIT = sorted(range(len(TEXTS)), key=lambda number: TEXTS[number][-1], reverse=True)


class Shop:
    """A table whose rows are embedded, and a real worker that answers and reranks."""

    def __init__(self, url: str, connection: Connection, workers: Workers, reranker: Path) -> None:
        self.url = url
        self.connection = connection
        self.workers = workers
        self.reranker = reranker
        self.notices: list[str] = []
        connection.add_notice_handler(
            lambda notice: self.notices.append(notice.message_primary or "")
        )

    @property
    def worker(self) -> WorkerProcess:
        return self.workers.all[-1]

    def search(self, **options: Any) -> list[tuple[Any, ...]]:
        """(id, score, similarity, bm25, reranked) of each row."""
        named = "".join(f", {name} => %({name})s" for name in options)
        self.notices.clear()
        return self.connection.execute(
            f'select (s."row").id, s.score, s.similarity, s.bm25, s.reranked'
            f" from embed.search(null::article, %(question)s{named}) s".encode(),
            {"question": QUESTION, **options},
        ).fetchall()

    def order(self, **options: Any) -> list[int]:
        return [row[0] for row in self.search(**options)]

    def waiting(self) -> list[list[str]]:
        """The passages of each request that is left."""
        rows = self.connection.execute("select passages from embed.question").fetchall()
        return [passages for (passages,) in rows]


@pytest.fixture(scope="module")
def module_shop(
    server: Cluster, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    reranker = save_reranker(tmp_path_factory.mktemp("reranker"))
    with (
        pytest.MonkeyPatch.context() as patch,
        new_database(server, template) as url,
        connect(url) as connection,
    ):
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        use_hash_model(connection)
        set_up_loopback(connection)
        connection.execute("create table article (id int primary key, body text)")
        connection.execute("select embed.enable('article', array['body'])")
        with connection.cursor() as cursor:
            cursor.executemany("insert into article values (%s, %s)", list(enumerate(TEXTS)))
        assert drain_url(url) == []
        connection.execute("select embed.use_reranker(%s, 256)", [str(reranker)])
        workers = Workers(url, tmp_path_factory.mktemp("logs"))
        try:
            workers.start("--only-queries", device="cpu", threads="1")
            shop = Shop(url, connection, workers, reranker)
            connection.execute("set embed.query_timeout = '1min'")
            connection.execute("set embed.rerank_timeout = '1min'")
            wait_until(
                lambda: shop.search(rerank=1)[0][4] is not None, LOADED, f"scores of {shop.worker}"
            )
            yield shop
        finally:
            workers.end()


@pytest.fixture
def shop(module_shop: Shop) -> Iterator[Shop]:
    try:
        yield module_shop
    finally:
        connection = module_shop.connection
        connection.execute("select embed.use_reranker(%s)", [str(module_shop.reranker)])
        connection.execute("set embed.rerank_timeout = '1min'")
    assert module_shop.waiting() == [], "a request must not outlive its search"


# The order


def test_the_cross_encoder_decides(shop: Shop) -> None:
    unranked = {row[0]: row for row in shop.search()}
    assert all(row[4] is None for row in unranked.values())
    rows = shop.search(rerank=len(TEXTS))
    assert [row[0] for row in rows] == BY_DIGIT != list(unranked)
    assert shop.notices == []
    for number, score, similarity, bm25, reranked in rows:
        assert 0 < reranked < 1
        assert score == reranked
        assert (similarity, bm25) == unranked[number][2:4]


def test_fewer_rows_are_wanted_than_read(shop: Shop) -> None:
    assert shop.order(k=2, rerank=50) == BY_DIGIT[:2]


@pytest.mark.parametrize("lexical", [0, 0.2, 1000])
def test_rows_behind_those_read_keep_their_order(shop: Shop, lexical: float) -> None:
    plain = shop.order(lexical=lexical)
    rows = shop.search(rerank=3, lexical=lexical)
    assert [row[0] for row in rows] == sorted(plain[:3], key=BY_DIGIT.index) + plain[3:]
    assert [row[4] is None for row in rows] == [False] * 3 + [True] * 3
    scores = [row[1] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] > scores[3]


@pytest.mark.parametrize("rerank", [None, 0])
def test_none_is_read(shop: Shop, rerank: int | None) -> None:
    assert shop.search(rerank=rerank) == shop.search()


def test_a_vector_is_no_question(shop: Shop) -> None:
    row = shop.connection.execute(
        "select s.reranked from embed.search(null::article, embed.query(%s)) s", [QUESTION]
    ).fetchone()
    assert row == (None,)


def test_no_rows(shop: Shop) -> None:
    where_none = "select * from embed.search(null::article, %s, name => 'none', rerank => 5)"
    shop.connection.execute(
        "select embed.enable('article', array['body'], name => 'none', filter => 'id < 0')"
    )
    assert drain_url(shop.url) == []
    shop.notices.clear()
    assert shop.connection.execute(where_none, [QUESTION]).fetchall() == []
    assert shop.notices == []


@pytest.mark.parametrize("kind", ["repeatable read read only", "serializable"])
def test_in_a_transaction(shop: Shop, kind: str) -> None:
    shop.connection.execute(f"begin isolation level {kind}".encode())
    assert shop.order(rerank=6) == BY_DIGIT
    shop.connection.execute("commit")


@pytest.mark.parametrize("rerank", [-1, 201])
def test_how_many_is_bounded(shop: Shop, rerank: int) -> None:
    with pytest.raises(psycopg.DatabaseError, match=str(rerank)) as caught:
        shop.search(rerank=rerank)
    assert caught.value.sqlstate == "EW003"
    assert caught.value.diag.message_hint


@pytest.mark.parametrize("k", [None, 0, 1001])
def test_a_wrong_k_is_refused_as_ever(shop: Shop, k: int | None) -> None:
    with pytest.raises(psycopg.DatabaseError, match=f"k is {k or ('null' if k is None else 0)}"):
        shop.search(rerank=20, k=k)


def test_a_very_long_text_is_read_in_part(shop: Shop) -> None:
    scores = shop.connection.execute(
        "select embed._rerank('질문', array['9 ' || repeat('x', 50000), repeat('x', 50000), null])"
    ).fetchone()
    assert scores is not None
    assert scores[0][0] > scores[0][1] == pytest.approx(scores[0][2])


def test_the_client_and_the_command(shop: Shop) -> None:
    hits = client_search(shop.connection, "article", QUESTION, 3, rerank=6, timeout=60)
    assert [hit.key["id"] for hit in hits] == BY_DIGIT[:3]
    assert [hit.score for hit in hits] == [hit.reranked for hit in hits]
    environment = {"EMBEDWORKER_QUERY_TIMEOUT": "60"}
    found = Cli(shop.url).json("search", "article", QUESTION, "--rerank", "6", **environment)
    assert [hit["key"]["id"] for hit in found] == BY_DIGIT
    assert "200" in Cli(shop.url).refused("search", "article", "x", "--rerank", "201", code=2)


def test_the_evaluation_compares(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"question": QUESTION, "key": BY_DIGIT[0]}), "utf-8"
    )
    report = Cli(shop.url).json(
        "eval",
        *("--questions", str(tmp_path / "questions.jsonl"), "--table", "article", "--name"),
        *("article", "--compare", "lexical=0,rerank=20,rerank=20+lexical=0", "-k", "2"),
    )
    assert [entry["setting"] for entry in report["settings"]] == [
        "lexical=0",
        "rerank=20",
        "lexical=0+rerank=20",
    ]
    for entry in report["settings"][1:]:
        assert entry["measures"]["nDCG@2"] == 1


# Whose rows


def test_only_rows_the_caller_may_see_are_read(shop: Shop) -> None:
    """What is sent is what the caller found: looked at while the worker is stopped."""
    c = shop.connection
    name = sql.Identifier(f"caller_{c.info.dbname}")
    c.execute("alter table article enable row level security")
    c.execute("create policy few on article using (id in (0, 2, 3))")
    c.execute(sql.SQL("create role {}").format(name))
    c.execute(sql.SQL("grant select on article to {}").format(name))
    question = 'select (s."row").id from embed.search(null::article, %s, rerank => 50) s'
    shop.search()  # its vector is known from here on
    shop.worker.signal(signal.SIGSTOP)
    try:
        with connect(shop.url) as caller, ThreadPoolExecutor(1) as pool:
            caller.execute("set embed.rerank_timeout = '1min'")
            caller.execute(sql.SQL("set role {}").format(name))
            found = pool.submit(lambda: caller.execute(question, [QUESTION]).fetchall())
            (sent,) = wait_until(shop.waiting)
            shop.worker.signal(signal.SIGCONT)
            assert sorted(sent) == sorted(TEXTS[number] for number in (0, 2, 3))
            assert found.result(60) == [(3,), (2,), (0,)]
            with pytest.raises(errors.InsufficientPrivilege):
                caller.execute("select passages from embed.question")
    finally:
        shop.worker.signal(signal.SIGCONT)
        c.execute("drop policy few on article; alter table article disable row level security")
        c.execute(sql.SQL("drop owned by {0}; drop role {0}").format(name))


# When there is no order to be had


def spoil(folder: Path) -> None:
    (folder / "model.safetensors").write_text("not weights")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda folder: spoil(save_reranker(folder)), "cannot be loaded"),
    "incomplete": (lambda folder: (folder / "config.json").write_text("{}"), "not complete"),
    "classes": (lambda folder: save_reranker(folder, labels=3), "gives 3 classes"),
    "an embedding model": (lambda folder: save_model(folder), "it is not a reranker"),
    "nowhere": (lambda folder: folder.rmdir(), "does not exist"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_model_that_cannot_be_used(shop: Shop, tmp_path: Path, how: str) -> None:
    make, why = BROKEN[how]
    folder = tmp_path / "broken"
    folder.mkdir()
    make(folder)
    shop.connection.execute("select embed.use_reranker(%s, 256)", [str(folder)])
    plain = shop.search()
    assert shop.search(rerank=6) == plain
    (notice,) = shop.notices
    assert "not reranked" in notice
    assert why in notice
    with pytest.warns(SearchWarning, match=why):
        hits = client_search(shop.connection, "article", QUESTION, rerank=6)
    assert [hit.key["id"] for hit in hits] == [row[0] for row in plain]


def test_no_answer_in_time(shop: Shop) -> None:
    plain = shop.search()
    shop.worker.signal(signal.SIGSTOP)
    try:
        shop.connection.execute("set embed.rerank_timeout = '300ms'")
        assert shop.search(rerank=6) == plain
        assert shop.notices == ["the rows are not reranked: no worker answered within 300ms"]
        assert shop.waiting() == []
    finally:
        shop.worker.signal(signal.SIGCONT)
    shop.connection.execute("set embed.rerank_timeout = '1min'")
    assert shop.order(rerank=6) == BY_DIGIT


def test_a_cancelled_search_leaves_no_text_behind(shop: Shop) -> None:
    shop.search()
    shop.worker.signal(signal.SIGSTOP)
    try:
        with connect(shop.url) as asking, ThreadPoolExecutor(1) as pool:
            asking.execute("set embed.rerank_timeout = '1min'")
            found = pool.submit(
                asking.execute,
                "select * from embed.search(null::article, %s, rerank => 6)",
                [QUESTION],
            )
            wait_until(shop.waiting)
            asking.cancel_safe()
            with pytest.raises(errors.QueryCanceled):
                found.result(30)
            assert shop.waiting() == []
    finally:
        shop.worker.signal(signal.SIGCONT)


def test_a_statement_timeout_is_an_error_as_ever(shop: Shop) -> None:
    shop.search()
    shop.worker.signal(signal.SIGSTOP)
    try:
        shop.connection.execute("set statement_timeout = '500ms'")
        with pytest.raises(errors.QueryCanceled):
            shop.search(rerank=6)
    finally:
        shop.connection.execute("set statement_timeout = 0")
        shop.worker.signal(signal.SIGCONT)


@pytest.mark.parametrize("value", ["soon", "2min"])
def test_a_wrong_timeout(shop: Shop, value: str) -> None:
    shop.connection.execute("select set_config('embed.rerank_timeout', %s, false)", [value])
    with pytest.raises(psycopg.DatabaseError, match=r"embed\.rerank_timeout is") as caught:
        shop.search(rerank=6)
    assert caught.value.sqlstate == "EW003"


def test_no_worker(connection: Connection, vectors: VectorWriter) -> None:
    """Nobody is there to ask: said at once, and no text is left to wait for somebody."""
    connection.execute("create table article (id int primary key, body text)")
    connection.execute("select embed.enable('article', array['body'])")
    connection.execute("insert into article values (1, 'a 1'), (2, 'b 9')")
    vectors.embed("article")
    vectors.know("a")
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    found = connection.execute(
        'select (s."row").id, s.reranked from embed.search(null::article, %s, rerank => 2) s', ["a"]
    ).fetchall()
    assert found == [(1, None), (2, None)]
    assert notices == [
        "the rows are not reranked: no worker that answers questions is connected to this database"
    ]
    assert connection.execute("select count(*) from embed.question").fetchone() == (0,)


# Which model


def test_a_new_database_has_the_default(connection: Connection) -> None:
    assert connection.execute("select embed.reranker()").fetchone() == (
        "dragonkue/bge-reranker-v2-m3-ko",
    )
    connection.execute("select embed.use_reranker('BAAI/bge-reranker-v2-m3')")
    assert connection.execute("select embed.reranker()").fetchone() == ("BAAI/bge-reranker-v2-m3",)


@pytest.mark.parametrize("arguments", ["'nobody/knows'", "null", "'x', 0"])
def test_an_unknown_model_is_refused(connection: Connection, arguments: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        connection.execute(f"select embed.use_reranker({arguments})".encode())
    assert caught.value.sqlstate == "EW003"
    assert caught.value.diag.message_hint
