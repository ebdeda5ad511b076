"""Terms of texts: what is one, where it goes in the vector, and what stands before."""

import sys
import unicodedata
from types import ModuleType

import pytest
from pgvector import SparseVector

from embedworker.model.lexical import (
    CODE,
    DIMENSIONS,
    FIRST,
    LENGTH,
    MARK,
    MOST_TEXTS,
    SCHEME,
    WORD,
    length,
    question_terms,
    term_vector,
    term_vectors,
)
from embedworker.normalization import normalized


def values(text: str, average: float = 10.0) -> dict[int, float]:
    vector = term_vector(text, average)
    assert vector.dimensions() == DIMENSIONS
    return dict(zip(vector.indices(), vector.values(), strict=True))


def places(text: str) -> set[int]:
    """Of the terms of a question, those of the newest scheme."""
    return {term & (WORD - 1) for term in question_terms(text)[0] if term > WORD}


def codes(text: str) -> set[int]:
    return {term & (WORD - 1) for term in question_terms(text)[0] if term > CODE}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("서울역", 2),
        ("a-1", 3),  # the code a1, a, 1
        ("E-119", 5),  # the code e119, e, 119, 11, 19
        ("snake_case", 2),
        ("KTX는", 2),
        ("402번", 4),
        ("물", 1),
        ("ｆｕｌｌ", 1),
        ("", 0),
        ("?! 😀 \u200b", 0),
        ("ab ab ab", 3),
    ],
)
def test_words_numbers_codes_and_bigrams(text: str, terms: int) -> None:
    assert length(text) == terms
    assert values(text).get(LENGTH, 0.0) == terms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("서울", unicodedata.normalize("NFD", "서울")),
        ("Straße", "straße"),
        ("ＡＢ１２", "ab12"),
        ("boiler", "Boilers"),
        ("copy copied", "copies copy"),
        ("stop", "stopping stopped"),
        ("make", "makes making"),
        ("fix", "fixes"),
        ("class", "classes"),
        ("E-119", "e-119"),
    ],
)
def test_the_same_terms(one: str, other: str) -> None:
    assert places(one) == places(other)


@pytest.mark.parametrize("word", ["need", "this", "bus", "king", "red", "class", "thing"])
def test_what_is_no_ending_stays(word: str) -> None:
    for shorter in (word[:-1], word[:-2], word[:-3]):
        assert not places(word) & places(shorter)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("E-119", "오류 E119가 뜬다"),
        ("AB-12-34", "(ab-12-34)."),
        ("10.2.4", "버전 10.2.4로"),
        ("F50", "f50이"),
        ("v1.2", "V1.2"),
    ],
)
def test_the_same_code(one: str, other: str) -> None:
    assert codes(one) == codes(other) != set()


def test_codes_beside_a_slash_are_two() -> None:
    assert codes("A4/Letter") == codes("A4")
    assert codes("A4/B5") == codes("A4 B5")
    assert codes("9/11") != set()


@pytest.mark.parametrize("text", ["402", "well-known", "서울-부산", "a.b", "2 3", "제3조"])
def test_no_code(text: str) -> None:
    assert codes(text) == set()


def test_a_code_is_no_part_of_a_longer_one() -> None:
    assert not codes("E-119") & codes("E-1190 E-119a PE-119 E-119-2")


def test_terms_of_the_first_scheme_come_with_a_question() -> None:
    """Passages that are not made anew yet have them; see sql/functions/053_search_words.sql."""
    terms = question_terms("부산")[0]
    assert [term > WORD for term in terms] == [True, False]
    assert not {term & (WORD - 1) for term in terms[:1]} & {terms[1]}


@pytest.mark.parametrize(
    "marks",
    [
        "\u0301\u0323",
        "\u0344\u0323",  # of two marks
        "\u0f73\u0f71",  # a starter that is none when it is decomposed
        "\uff9e\u0301",  # in order, and out of it in NFKC
    ],
)
@pytest.mark.slow
def test_a_million_marks_take_no_longer_than_as_many_letters(marks: str) -> None:
    """Sorted all together, they would take hours."""
    text = "서울 x" + marks * 500_000
    assert places(text) >= places("서울")
    assert normalized("NFKC", text).count("\u034f") == 33_333


def test_a_number_is_not_another() -> None:
    assert len(places("E-119") & places("E-110")) == 2  # e and 11
    assert places("119") & places("F-50") == set()


def test_the_scheme_is_marked() -> None:
    assert values("서울")[SCHEME] == MARK
    assert min(places("서울")) > FIRST


def test_terms_are_where_the_question_looks_for_them() -> None:
    vector = values("서울에서 부산까지 서울")
    asked, shares = question_terms("서울")
    assert shares == [1.0, 0.0]
    place = asked[0] - WORD
    # Once in ten terms, twice, by hand: 2 · 2.2 / (2 + 1.2 · (0.25 + 0.75 · 7 / 10)).
    assert vector[place - 1] == pytest.approx(2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 0.7)))


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("한국어", [1.0, 0.0]),
        ("English", [0.0, 1.0]),
        ("한글 ab 12", [0.5, 0.5]),
        (unicodedata.normalize("NFD", "한글"), [1.0, 0.0]),
        ("402", [0.0, 0.0]),
        ("日本", [0.0, 0.0]),
    ],
)
def test_shares_of_scripts(text: str, shares: list[float]) -> None:
    assert question_terms(text)[1] == shares
    vector = values(text)
    assert [vector.get(place, 0.0) for place in range(2)] == shares


def test_what_a_sparse_vector_cannot_hold_is_left_out() -> None:
    text = " ".join(chr(0xAC00 + i % 11_000) + chr(0xAC00 + i // 7) for i in range(20_000))
    assert len(question_terms(text)[0]) == 15_000
    assert len(values(text)) <= 15_004


def test_texts_that_are_weighed_together_are_as_each_alone() -> None:
    """More than one group of them, some without terms, one with too many, codes, long runs."""
    many = " ".join(chr(0xAC00 + i % 11_000) + chr(0xAC00 + i // 7) for i in range(20_000))
    texts = [
        "",
        "E-119 서울",
        "서울역 boilers",
        many,
        "?!",
        "가" * 20 + "abc" * 20,
        "9/11 A4/B5",
    ] * 80
    together = term_vectors(texts, 7.0)
    alone = {text: term_vector(text, 7.0) for text in set(texts)}
    assert len(together) == len(texts) > MOST_TEXTS
    for text, vector in zip(texts, together, strict=True):
        assert vector.indices() == alone[text].indices()
        assert vector.values() == alone[text].values()


def test_a_module_that_another_thread_is_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model imports scipy.sparse, whose classes come late; pgvector looks for them."""
    monkeypatch.setitem(sys.modules, "scipy.sparse", ModuleType("scipy.sparse"))
    with pytest.raises(AttributeError):
        SparseVector({0: 1.0}, DIMENSIONS)  # or this test could not fail
    assert values("서울역")[LENGTH] == 2
