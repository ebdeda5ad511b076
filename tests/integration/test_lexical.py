"""The words of a question beside its meaning: BM25 over term vectors, in embed.search."""

import json
import math
import re
import unicodedata
from collections import Counter
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fix_database import Connection
from fix_questions import QuestionRunner
from fix_vectors import VectorWriter, bigram_vector, role, word_vector

from embedworker.demo.material import articles

KOREAN = [
    "보일러 오류 코드 E-119 점화가 되지 않을 때",
    "보일러 오류 코드 E-110 과열로 멈춘 때, 난방이 멈추면 물을 빼세요",
    "402번 버스 막차는 23시 10분",
    "서울역에서 부산역까지 가는 고속열차",
    "부산 바다와 부산 시장과 부산 영화제",
    "물",
    "아파트 층간소음을 줄이는 생활 습관과 이웃에게 말하는 법, 그리고 관리 사무소",
]
ENGLISH = [
    "Boiler error code E-119 and what it means when the flame does not light",
    "The last bus 402 leaves at ten past eleven",
]
ONE = np.eye(1, 384, dtype=np.float32)[0]


def terms(text: str) -> list[str]:
    """The terms of the texts of this module, from their definition: strings, no hashing."""
    plain = unicodedata.normalize("NFKC", text).lower()
    found = []
    for code in re.findall(r"[a-z0-9]+(?:[-][a-z0-9]+)*", plain):
        if re.search("[0-9]", code) and re.search("[a-z]", code):
            found.append("code " + code.replace("-", ""))
    for run in re.sub(r"[\W_]+", " ", plain).split():
        word = re.fullmatch("[a-z]{3,}", run)
        number = re.match("[0-9]{3,}", run)
        found += [run.removesuffix("s").removesuffix("e")] if word else []
        found += [number[0]] if number else []
        if not word:
            found += [a + b for a, b in pairwise(run)] or [run]
    return found


def bm25(question: str, texts: list[str]) -> list[float]:
    """BM25 over its highest value, from the definition."""
    bags = [Counter(terms(text)) for text in texts]
    average = sum(bag.total() for bag in bags) / len(bags)
    asked = set(terms(question))
    idf = {}
    for term in asked:
        df = sum(term in bag for bag in bags)
        idf[term] = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
    highest = 2.2 * sum(idf.values())
    return [
        sum(
            idf[term] * bag[term] * 2.2 / (bag[term] + 1.2 * (0.25 + 0.75 * bag.total() / average))
            for term in asked
        )
        / highest
        for bag in bags
    ]


def shares(text: str) -> np.ndarray[Any, Any]:
    """Of a text's letters, how much is Hangul and how much Latin."""
    counts = np.array([len(re.findall("[가-힣]", text)), len(re.findall("[a-zA-Z]", text))])
    return counts / max(counts.sum(), 1)


def expected(
    question: str, texts: list[str], similarity: dict[int, float] | None = None
) -> dict[int, float]:
    """What the column bm25 must be: as far as scripts differ, what others as near have."""
    plain = np.array(bm25(question, texts))
    same = np.array([shares(question) @ shares(text) for text in texts])
    neutral = np.full(len(texts), plain @ same / same.sum() if same.sum() else 0.0)
    alike = same >= 0.5
    near = np.array([(similarity or {}).get(number, 0.0) for number in range(len(texts))])
    if alike.sum() > 1 and np.ptp(near[alike]) > 0:
        slope = max(0.0, np.polyfit(near[alike], plain[alike], 1)[0])
        neutral = np.clip(neutral + slope * (near - near[alike].mean()), 0, 1)
    return dict(enumerate(plain + np.maximum(0, 1 - 2 * same) * neutral))


def parts(rows: list[tuple[Any, ...]]) -> dict[int, float]:
    return {row[0]: row[3] for row in rows}


def table(connection: Connection, vectors: VectorWriter, texts: list[str]) -> None:
    """The table article of these texts, counted."""
    connection.execute("create table article (id int primary key, body text)")
    with connection.cursor() as cursor:
        cursor.executemany("insert into article values (%s, %s)", list(enumerate(texts)))
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.count("article")


def same_meaning(connection: Connection, vectors: VectorWriter, *questions: str) -> None:
    """Let every row and question have one vector, so that words alone decide."""
    connection.execute("update article_embedding set embedding = %s", [ONE])
    for question in questions:
        vectors.know(question, ONE)


def search(connection: Connection, question: str, **options: Any) -> list[tuple[Any, ...]]:
    """(id, score, similarity, bm25, passage) of each row."""
    given = {"k": 1000, **options}
    named = "".join(f", {name} => %({name})s" for name in given)
    return connection.execute(
        f'select (s."row").id, s.score, s.similarity, s.bm25, s.passage'
        f" from embed.search(null::article, %(question)s{named}) s".encode(),
        {"question": question, **given},
    ).fetchall()


QUESTIONS = [
    "보일러에 E-119가 떠요",
    "난방이 멈추더니 E-110",
    "402번 막차",
    "부산",
    "물",
    "층간소음 층간소음 줄이기!!",
    "없는 말뿐인 질문",
    "E-119",
    "boiler flames",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_agrees_with_the_definition(
    connection: Connection, vectors: VectorWriter, question: str
) -> None:
    texts = [*KOREAN, *ENGLISH, "402", ""]
    table(connection, vectors, texts)
    vectors.know(question)
    rows = search(connection, question)
    near = {row[0]: row[2] for row in rows}
    assert parts(rows) == pytest.approx(expected(question, texts[:-1], near), abs=1e-6)
    asked = {term for term in terms(question) if term.startswith("code ")}
    weight = 0.1 if shares(question)[1] > 0.5 else 0.2
    for number, score, similarity, words, _ in rows:
        held = len(asked.intersection(terms(texts[number]))) / max(len(asked), 1)
        assert score == pytest.approx(similarity + weight * words + 0.1 * held, abs=1e-6)
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)


def test_in_one_script_it_is_bm25_alone(connection: Connection, vectors: VectorWriter) -> None:
    table(connection, vectors, KOREAN[2:])
    vectors.know("부산 막차")
    wanted = dict(enumerate(bm25("부산 막차", KOREAN[2:])))
    assert parts(search(connection, "부산 막차")) == pytest.approx(wanted, abs=1e-6)


def test_before_any_count_the_passages_found_stand_in_for_all(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, KOREAN)
    connection.execute("delete from embed.lexical_state; delete from embed.lexical_term")
    same_meaning(connection, vectors, "부산 보일러")
    wanted = expected("부산 보일러", KOREAN)
    assert parts(search(connection, "부산 보일러")) == pytest.approx(wanted, abs=1e-6)
    assert search(connection, "부산 보일러", k=1)[0][0] == max(wanted, key=wanted.__getitem__)


def test_scores_tell_nothing_of_rows_that_row_security_hides(
    connection: Connection, vectors: VectorWriter
) -> None:
    """Twelve hidden rows that have the word, or another of its length, make no difference."""

    def seen(hidden: str) -> list[tuple[Any, ...]]:
        with connection.transaction(force_rollback=True):
            table(connection, vectors, KOREAN + [hidden] * 12)
            vectors.know("부산 막차")
            connection.execute(
                "alter table article enable row level security;"
                f"create policy part on article for select using (id < {len(KOREAN)})"
            )
            everything = search(connection, "부산 막차")
            with role(connection, "select on article"):
                for name in ("lexical_state", "lexical_term"):
                    counts = connection.execute(f"select from embed.{name}".encode()).fetchall()
                    assert counts == []
                rows = search(connection, "부산 막차")
            visible = {row[0]: row[3] for row in everything if row[0] < len(KOREAN)}
            assert visible != pytest.approx(parts(rows), abs=1e-3)  # the owner's tell
            return rows

    rows = seen("부산 여행")
    assert len(rows) == len(KOREAN)
    assert rows == seen("제주 여행")


def test_the_right_row_in_another_language_stays_first(
    connection: Connection, vectors: VectorWriter
) -> None:
    """In a table of both, the nearest row by meaning shares no word with the question."""
    texts = [f"보일러 안내 {i}번: 물과 불과 전기를 살핀다" for i in range(8)]
    table(connection, vectors, [*texts, "What to do when the heating stops"])
    question = "보일러가 멈추면 무엇을 살피나요"
    connection.execute("update article_embedding set embedding = %s", [word_vector("near far")])
    connection.execute("update article_embedding set embedding = %s where id = 8", [ONE])
    near = 0.8 * ONE + 0.6 * word_vector("near far")
    vectors.know(question, near.astype(np.float32))
    assert search(connection, question)[0][0] == 8


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_decomposed_texts_and_questions(
    connection: Connection, vectors: VectorWriter, form: Any
) -> None:
    table(connection, vectors, [unicodedata.normalize("NFD", text) for text in KOREAN])
    question = unicodedata.normalize(form, "부산역")
    same_meaning(connection, vectors, question)
    rows = search(connection, question)
    assert [row[0] for row in rows][:2] == [3, 4]
    assert parts(rows) == pytest.approx(expected("부산역", KOREAN), abs=1e-6)
    assert rows[0][4] == KOREAN[3]


def test_a_question_of_one_syllable_and_one_without_any(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, KOREAN)
    same_meaning(connection, vectors, "물", "물?", "?!")
    assert search(connection, "물")[0][0] == 5
    assert search(connection, "물?")[0][0] == 5
    rows = search(connection, "?!")
    assert {row[3] for row in rows} == {None}
    assert {row[1] for row in rows} == {1.0}


def test_names_numbers_and_codes_of_the_demo(connection: Connection, vectors: VectorWriter) -> None:
    known = articles()
    exact = json.loads((files("embedworker.demo") / "questions.json").read_text("utf-8"))["exact"]
    table(connection, vectors, [f"{article.title}\n{article.content}" for article in known])
    same_meaning(connection, vectors, *(q["question"] for q in exact))
    for asked in exact:
        titles = [known[row[0]].title for row in search(connection, asked["question"])]
        alike = [t for t in titles if re.sub(r"\d", "", t) == re.sub(r"\d", "", asked["expects"])]
        assert alike[0] == asked["expects"], "the same but for its number"
        assert len(alike) > 1


def test_the_weight_of_the_call_the_table_and_the_default(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, KOREAN)
    vectors.know("부산")

    def weights(**options: Any) -> set[float | None]:
        return {
            None if words is None else round((score - similarity) / words, 3)
            for _, score, similarity, words, _ in search(connection, "부산", **options)
            if words is None or words > 0.05
        }

    assert weights() == {0.2}
    assert weights(lexical=1.5) == {1.5}
    assert weights(lexical=0) == {None}
    connection.execute("select embed.set_lexical('article', 0.5)")
    assert weights() == {0.5}
    assert weights(lexical=None) == {0.5}
    connection.execute("select embed.set_lexical('article', 0)")
    assert weights() == {None}
    assert weights(lexical=0.2) == {0.2}


def test_the_passage_with_the_words_stands_for_its_row(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute("create table article (id int primary key, body text)")
    connection.execute("insert into article values (1, '가나 다라 마바 사아'), (2, '자차 카타')")
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article", words_a_passage=1)
    vectors.count("article")
    same_meaning(connection, vectors, "마바")
    assert search(connection, "마바", k=1)[0][4] == "마바"
    assert search(connection, "마바", k=1, lexical=0)[0][4] == "가나"
    assert len(search(connection, "마바", k=2)) == 2


def test_rows_beyond_the_first_fifty_are_not_raised_but_found(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, [f"글 {i}" for i in range(120)])
    same_meaning(connection, vectors, "글")
    assert len(search(connection, "글", k=100)) == 100
    assert len(search(connection, "글", k=1)) == 1


def test_vectors_without_terms_are_found_all_the_same(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, KOREAN)
    same_meaning(connection, vectors, "부산")
    connection.execute("update article_embedding set terms = null where id = 4")
    rows = search(connection, "부산")
    assert rows[0][0] == 3
    assert len(rows) == len(KOREAN)


def test_a_vector_in_a_column_of_the_table(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute("create table article (id int primary key, body text, v vector(384))")
    with connection.cursor() as cursor:
        cursor.executemany("insert into article values (%s, %s)", list(enumerate(KOREAN)))
    connection.execute("select embed.enable('article', array['body'], into_column => 'v')")
    vectors.embed("article")
    vectors.count("article")
    vectors.know("부산")
    rows = search(connection, "부산")
    assert parts(rows) == pytest.approx(expected("부산", KOREAN), abs=1e-6)
    with role(connection, "select on article"):
        assert search(connection, "부산") == rows


def test_passages_of_the_first_scheme_are_ranked_beside_the_others(
    connection: Connection, vectors: VectorWriter
) -> None:
    """As after an upgrade: the passages found stand in for all, and each counts by its terms."""
    table(connection, vectors, KOREAN)
    average = sum(len(terms(text)) for text in KOREAN) / len(KOREAN)
    connection.execute("update embed.lexical_state set scheme = 1")
    wanted = expected("부산 막차", KOREAN)  # no Latin word: the terms of both are the same
    same_meaning(connection, vectors, "부산 막차")
    assert parts(search(connection, "부산 막차")) == pytest.approx(wanted, abs=1e-6)
    for number in (2, 3, 4):
        connection.execute(
            "update article_embedding set terms = %s where id = %s",
            [bigram_vector(KOREAN[number], average), number],
        )
    found = parts(search(connection, "부산 막차"))
    assert sorted(found, key=found.__getitem__)[-3:] == [3, 2, 4]
    assert max(found[number] for number in (0, 1, 5, 6)) < 0.05 < min(found[2], found[3], found[4])
    connection.execute("update article_embedding set terms = null where id in (0, 1)")
    assert [row[0] for row in search(connection, "부산 막차")][:3] == [4, 2, 3]


def test_a_code_in_a_long_text_counts_more_than_a_near_meaning(
    connection: Connection, vectors: VectorWriter
) -> None:
    """Consecutive codes share all but their end, and a code is one word of many."""
    filler = " ".join(
        f"점검 순서 {i}번째 문장은 전원을 끄고 뚜껑을 연다고 말한다." for i in range(20)
    )
    table(connection, vectors, [f"{filler} 오류 코드는 PX-10{i:02} 이다." for i in range(40)])
    question = "화면에 PX-1017 이라고 나오는데 어떻게 하나요"
    connection.execute("update article_embedding set embedding = %s", [word_vector("far")])
    connection.execute("update article_embedding set embedding = %s where id <> 17", [ONE])
    near = 0.9 * ONE + 0.43589 * word_vector("far")
    vectors.know(question, near.astype(np.float32))
    rows = search(connection, question, k=3, lexical=0.5)
    assert rows[0][0] != 17, "or the test shows nothing"
    vectors.know("PX-1017 오류", (ONE + 0.95 * word_vector("far")).astype(np.float32))
    assert search(connection, "PX-1017 오류", k=1, lexical=0.001)[0][0] == 17
    assert search(connection, "PX-1017 오류", k=1, lexical=0)[0][0] != 17


def test_a_question_in_latin_letters_has_half_the_weight(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, [*KOREAN, *ENGLISH])
    for question, weight in (
        ("the boiler", 0.1),
        ("boiler 보일러가", 0.1),
        ("wifi 보일러가요", 0.2),
    ):
        vectors.know(question)
        row = max(search(connection, question), key=lambda row: row[3] or 0)
        assert (row[1] - row[2]) / row[3] == pytest.approx(weight, abs=1e-3)
        row = max(search(connection, question, lexical=0.2), key=lambda row: row[3] or 0)
        assert (row[1] - row[2]) / row[3] == pytest.approx(0.2, abs=1e-3), "as the call says"


def test_readers_get_the_same_scores_and_nobody_else_the_statistics(
    connection: Connection, vectors: VectorWriter
) -> None:
    table(connection, vectors, KOREAN)
    vectors.know("부산")
    rows = search(connection, "부산")
    counts = "select count(*) from embed.lexical_term"
    with role(connection, "select on article"):
        assert search(connection, "부산") == rows
        assert connection.execute(counts).fetchone() != (0,)
    for grants in ([], ["select (id) on article"]):
        with role(connection, *grants):
            assert connection.execute(counts).fetchone() == (0,)
            assert connection.execute("select count(*) from embed.lexical_state").fetchone() == (0,)
            counted = connection.execute("select * from embed._term_counts(2, array[7])").fetchone()
            assert counted == (None, None)


def test_terms_come_from_the_worker_with_the_vector(
    questions: QuestionRunner, owner: Connection
) -> None:
    vectors = VectorWriter(owner)
    table(owner, vectors, KOREAN)
    name = owner.execute("select embed.default_model()").fetchone()
    assert name is not None
    vectors.activate("article", questions.load(owner, name[0]).fingerprint)
    owner.execute(
        "update article_embedding set fingerprint = %s",
        [questions.load(owner, name[0]).fingerprint],
    )
    wanted = expected("부산 막차", KOREAN)
    for _ in range(2):  # from the worker, and from the cache
        assert parts(search(owner, "부산 막차")) == pytest.approx(wanted, abs=1e-6)
    assert questions.encoded == 1
    huge = " ".join(chr(0xAC00 + i % 11_000) + chr(0xAC00 + i // 7) for i in range(20_000))
    assert len(search(owner, huge)) == len(KOREAN)
