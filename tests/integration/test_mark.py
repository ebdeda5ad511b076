"""embed.mark: the question's words in a passage."""

from typing import Any

import psycopg
import pytest

Connection = psycopg.Connection[Any]


def mark(connection: Connection, hit: str | None, question: str | None, more: str = "") -> Any:
    row = connection.execute(
        f"select embed.mark(%s, %s, '[', ']'{more})".encode(), [hit, question]
    ).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("hit", "question", "marked"),
    [
        ("보일러 오류 코드", "보일러가 멈춰요", "[보일러] 오류 코드"),
        ("오류 E-119 점화", "e119", "오류 [E-119] 점화"),
        ("오류 E-110 점화", "E-119", "오류 E-110 점화"),
        ("the Parties ended", "a party", "the [Parties] ended"),
        ("the party", "par", "the party"),
        ("버전 10.2.4 이상", "10.2.4", "버전 [10.2.4] 이상"),
        ("5㎏과 2ﬁn", "kg fin", "5[㎏]과 2[ﬁn]"),
        ("KTX는 서울", "ktx", "[KTX]는 서울"),
        ("물과 불", "물", "물과 불"),
        ("물 한 잔", "물", "[물] 한 잔"),
        ("e\u0301te\u0301 E\u0301TE\u0301", "été", "[e\u0301te\u0301] [E\u0301TE\u0301]"),
        ("🙂 사과", "🙂", "🙂 사과"),
        ("", "x", ""),
        (None, "x", None),
        ("사과", None, "사과"),
        ("사과", "", "사과"),
    ],
)
def test_the_words_of_the_question_are_marked(
    connection: Connection, hit: str | None, question: str | None, marked: str | None
) -> None:
    assert mark(connection, hit, question) == marked


def test_the_passage_is_escaped_when_asked(connection: Connection) -> None:
    hit = "<b>보일러</b> & \"x\" 'y'"
    assert mark(connection, hit, "보일러") == "<b>[보일러]</b> & \"x\" 'y'"
    assert mark(connection, hit, "보일러", ", html => true") == (
        "&lt;b&gt;[보일러]&lt;/b&gt; &amp; &quot;x&quot; &#39;y&#39;"
    )
    row = connection.execute("select embed.mark('a <보일러', '보일러', html => true)").fetchone()
    assert row == ("a &lt;<mark>보일러</mark>",)


@pytest.mark.smoke
def test_without_the_marks_it_is_the_passage(connection: Connection) -> None:
    hit = "e\u0301 ㎏ ﬁ İ ΣΑΣ\n\t보일러 E-119 🙂 " * 20
    found = mark(connection, hit, "kg fi i σας 보일러 E-119")
    assert found.replace("[", "").replace("]", "") == hit
    assert found.count("[") == found.count("]") > 60


@pytest.mark.parametrize(
    ("hit", "question", "marks"),
    [
        ("a" * 100_000, "a b", 0),
        ("running" * 10_000 + " runs", "run", 1),
        ("가나다라" * 25_000, "나다", 25_000),
        ("1" * 100_000, "12 11", 0),
        ("E-119 " * 10_000, "E-119", 10_000),
        ("a" + "\u0301\u0323" * 50_000, "a", 0),
        ("\ufdfa " * 1000, "\ufdfa", 1000),
        ("<b>&" * 10_000, "b", 0),
    ],
)
def test_a_long_passage_takes_no_time_by_its_square(
    connection: Connection, hit: str, question: str, marks: int
) -> None:
    connection.execute("set statement_timeout = '20s'")  # it took minutes
    found = mark(connection, hit, question)
    assert found.replace("[", "").replace("]", "") == hit
    assert found.count("[") == marks
    mark(connection, "x", hit)


@pytest.mark.parametrize(
    ("begin", "end", "marked"),
    [
        ("\\1$1&", "%s", "오류 \\1$1&E-119%s"),
        (None, None, "오류 E-119"),
        ("", "]", "오류 E-119]"),
    ],
)
def test_marks_are_taken_as_they_are(
    connection: Connection, begin: str | None, end: str | None, marked: str
) -> None:
    row = connection.execute("select embed.mark('오류 E-119', 'e119', %s, %s)", [begin, end])
    assert row.fetchone() == (marked,)
