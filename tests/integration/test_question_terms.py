"""The terms of a question, made in SQL and by a worker: the same."""

from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedworker.model.lexical import question_terms
from embedworker.normalization import normalized

Connection = psycopg.Connection[Any]


def block(first: int, last: int) -> st.SearchStrategy[str]:
    """The assigned characters of a range; Python may know fewer of them than PostgreSQL does."""
    return st.characters(min_codepoint=first, max_codepoint=last, exclude_categories=("Cn", "Cs"))


ALPHABETS = (
    block(0xAC00, 0xD7A3),  # Hangul
    block(0x1100, 0x11FF),  # its letters, which compose
    st.sampled_from("ㄱㅏㅎㅣ 가나다 라"),
    block(0x20, 0x24F),  # Latin
    st.sampled_from("aeiouy sshchxz iedings lltt"),
    st.sampled_from("0123456789 -_./: EFabx"),  # codes
    block(0x300, 0x36F),  # combining marks
    st.sampled_from("🙂👩‍👧🇰🇷👍🏽❤️①②Ⅳ½㎏ﬁ２Ａｱﾞ々〇"),
    block(0x370, 0x5FF),  # Greek, Cyrillic, Hebrew
    block(0x3000, 0x33FF),  # Japanese, and what is composed
)
WORDS = st.sampled_from(
    [
        *("E-119", "10.2.4", "ab12", "a1-2", "v2.0.1-rc1", "192.168.0.1", "2024-01-02", "a_b_3"),
        *("running", "stopped", "parties", "boxes", "glasses", "used", "tied", "hissing", "USB-C1"),
        *("3시", "ktx는", "iPhone15가", "ABC가나123", "ΣΑΣ", "İstanbul", "ǅ", "ß", "ÀÉ"),
    ]
)
TEXT = st.lists(st.one_of(WORDS, *(st.text(a, max_size=12) for a in ALPHABETS)), max_size=8).map(
    " ".join
)


def in_sql(connection: Connection, text: str) -> tuple[list[int], list[float]]:
    row = connection.execute(
        "select terms, shares from embed._question_terms(%s)", [text]
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def check(connection: Connection, text: str) -> None:
    terms, shares = question_terms(normalized("NFC", text))
    found, of_scripts = in_sql(connection, text)
    assert found == terms
    assert of_scripts == pytest.approx(shares, abs=1e-6)


@given(text=TEXT)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_a_worker_makes_them(connection: Connection, text: str) -> None:
    check(connection, text.replace("\0", ""))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "물",
        "냉장고에서 이상한 소리가 나요",
        "a" + "\u0301" * 200 + "b",
        "e\u0301\u0323 가나 \u1112\u1161\u11ab",
        "가" * 100_000,
        "a" * 100_000,
        "e" + "running" * 10_000,
        "e" * 61 + "ing",
        "e" * 62 + "ing",
        "The parties stopped running; boxes, glasses, 10.2.4 and E-119!",
    ],
)
def test_as_a_worker_makes_them_here(connection: Connection, text: str) -> None:
    connection.execute("set statement_timeout = '20s'")  # it took minutes
    check(connection, text)
