"""Questions and texts as people write them, through SQL, with a real model."""

import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.errors import SearchWarning
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.search.functions import query_vector
from embedworker.search.functions import search as client_search
from embedworker.service.worker import Worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.usefixtures("bundled_model"),
    pytest.mark.timeout(400),
]


EMBEDDED = 250.0  # seconds on a machine that does much else
TEXTS = [
    "잃어버린 여권을 다시 발급받으려면 시청 민원실에 신고서를 냅니다.",
    "KTX 열차는 서울역에서 부산역까지 2시간 30분이 걸립니다.",
    unicodedata.normalize("NFD", "김치는 김치냉장고에 넣어 차갑게 보관합니다."),
    "물을 하루에 여덟 잔 마시면 건강에 좋습니다.",
    "생일 축하 🎂🎉 케이크와 촛불을 준비했어요.",
    "세탁기에 Ｆ－０５ 오류가 뜨면 배수 호스를 확인하세요.",
    "강아지를 산책시킬 때는 목줄을 꼭 하세요.",
]
PASSPORT, TRAIN, KIMCHI, WATER, BIRTHDAY, WASHER, DOG = range(len(TEXTS))


@pytest.fixture(scope="module")
def korean(server: Cluster, template: str) -> Iterator[Connection]:
    """The table article, embedded by a worker that goes on answering."""
    chosen = settings.load(
        device="cpu", dtype="float32", threads=1, poll_max=0.2, index_after_rows=10**9
    )
    with new_database(server, template) as url, connect(url) as connection:
        set_up_loopback(connection)
        connection.execute("select embed.use_model(%s)", [BUNDLED_MODEL])
        connection.execute("create table article (id int primary key, body text)")
        connection.execute("select embed.enable('article', array['body'])")
        with connection.cursor() as cursor:
            cursor.executemany("insert into article values (%s, %s)", list(enumerate(TEXTS)))
        worker = Worker(url, chosen)
        # One model for both lanes: to load it is most of what this takes.
        worker._passages.models = worker._questions.models
        running = threading.Thread(target=worker.run)
        running.start()
        try:
            wait_until(
                lambda: (
                    connection.execute(
                        "select embedded from embed.status where name = 'article'"
                    ).fetchone()
                    == (len(TEXTS),)
                ),
                EMBEDDED,
                "the vectors of all rows",
            )
            connection.execute("set embed.query_timeout = '1min'")
            yield connection
        finally:
            worker.stop()
            running.join(30)


def search(connection: Connection, question: str, **options: Any) -> list[int]:
    named = "".join(f", {name} => %({name})s" for name in options)
    rows = connection.execute(
        f'select (s."row").id from embed.search(null::article, %(question)s{named}) s'.encode(),
        {"question": question, **options},
    ).fetchall()
    return [number for (number,) in rows]


def similarity(connection: Connection, one: str, other: str) -> float:
    row = connection.execute("select embed.similarity(%s, %s)", [one, other]).fetchone()
    assert row is not None
    return float(row[0])


@pytest.mark.parametrize("lexical", [0, 0.2])
@pytest.mark.parametrize(
    ("question", "row"),
    [
        pytest.param("여권을 잃어버렸어요", PASSPORT, id="plain"),
        pytest.param(unicodedata.normalize("NFD", "여권을 잃어버렸어요"), PASSPORT, id="NFD asked"),
        pytest.param("김치 보관하는 방법", KIMCHI, id="NFD text"),
        pytest.param(unicodedata.normalize("NFD", "김치 보관하는 방법"), KIMCHI, id="NFD both"),
        pytest.param("서울 부산 KTX 몇 시간", TRAIN, id="mixed scripts and numbers"),
        pytest.param("서울 부산 ＫＴＸ 몇 시간", TRAIN, id="full-width asked"),
        pytest.param("세탁기 F-05", WASHER, id="full-width text"),
        pytest.param("🎂", BIRTHDAY, id="emoji alone"),
        pytest.param("생일 🎉 파티", BIRTHDAY, id="emoji"),
        pytest.param("여\u200b권을 잃어\u200b버렸어요\ufeff", PASSPORT, id="zero-width"),
        pytest.param("물", WATER, id="one syllable"),
        pytest.param("물?", WATER, id="one syllable and a mark"),
        pytest.param("how do I get a new passport", PASSPORT, id="another language"),
        pytest.param("강아지 ꧁꧂ 산책 𒀀", DOG, id="some of it outside the vocabulary"),
    ],
)
def test_the_right_row_is_first(
    korean: Connection, question: str, row: int, lexical: float
) -> None:
    assert search(korean, question, lexical=lexical)[0] == row


@pytest.mark.parametrize(
    "question",
    [
        "ㅋ",
        "ㅋㅋㅋㅋ",
        "?",
        "...",
        "뷁",
        "𒀀𒀁",
        "꧁꧂",
        "👨‍👩‍👧‍👦",
        "1",
        "\u1100",
        "ᄒᆞᆫ글",
        "a\u0301" * 30,
    ],
)
def test_whatever_is_asked_has_an_answer(korean: Connection, question: str) -> None:
    assert sorted(search(korean, question)) == list(range(len(TEXTS)))


@pytest.mark.parametrize(
    ("one", "other"),
    [("한국어 검색", "Korean search"), ("물", "물을 마신다"), ("🎂", "생일 케이크"), ("ㅋ", "뷁")],
)
def test_similarity_is_the_same_both_ways(korean: Connection, one: str, other: str) -> None:
    there = similarity(korean, one, other)
    assert there == similarity(korean, other, one)
    assert there == pytest.approx(similarity(korean, unicodedata.normalize("NFD", one), other))
    assert similarity(korean, one, one) == pytest.approx(1, abs=1e-6)
    assert there < 1


# A question longer than the window

BEGINNING = "여권을 잃어버렸어요. "
LONG = BEGINNING + "그리고 어제는 날씨가 좋았고 점심도 맛있었습니다. " * 200


def heard(connection: Connection, question: str) -> list[str]:
    """The notices of one search."""
    said: list[str] = []
    hear = lambda notice: said.append(notice.message_primary)  # noqa: E731  (to be removed by name)
    connection.add_notice_handler(hear)
    try:
        search(connection, question)
    finally:
        connection.remove_notice_handler(hear)
    return said


def test_a_question_that_is_cut_says_so(korean: Connection) -> None:
    assert heard(korean, BEGINNING) == []
    (notice,) = heard(korean, LONG)
    assert "longer than the model's window" in notice
    assert heard(korean, LONG) == [notice], "an answer that is remembered is cut, too"


def test_what_is_cut_is_counted(korean: Connection) -> None:
    from tokenizers import Tokenizer

    from embedworker.model.bundled import bundled_folder

    tokenizer = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    question = "물 " * 600
    lost = len(tokenizer.encode(f"query: {question}").ids) - 512
    assert lost > 0
    (notice,) = heard(korean, question)
    assert f"its last {lost} tokens" in notice


def test_a_scan_of_a_table_says_it_once(korean: Connection) -> None:
    said: list[str] = []
    hear = lambda notice: said.append(notice.message_primary)  # noqa: E731  (to be removed by name)
    korean.add_notice_handler(hear)
    korean.execute(
        "select id from article_embedding order by embedding <=> embed.query(%s)", [LONG]
    )
    korean.remove_notice_handler(hear)
    assert len(said) == 1


def test_the_client_warns(korean: Connection) -> None:
    with pytest.warns(SearchWarning, match="longer than the model's window"):
        hits = client_search(korean, "article", LONG, 2, timeout=60)
    assert len(hits) == 2
    with pytest.warns(SearchWarning, match="longer than the model's window"):
        query_vector(korean, LONG + "또", BUNDLED_MODEL, timeout=60)
