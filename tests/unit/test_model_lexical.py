"""Terms of texts: what is one, where it goes in the vector, and what stands before."""

import unicodedata

import pytest

from worker.model.lexical import DIMENSIONS, LENGTH, length, question_terms, term_vector
from worker.normalization import normalized


def values(text: str, average: float = 10.0) -> dict[int, float]:
    vector = term_vector(text, average)
    assert vector.dimensions() == DIMENSIONS
    return dict(zip(vector.indices(), vector.values(), strict=True))


def places(text: str) -> set[int]:
    return set(question_terms(text)[0])


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("서울역", 2),
        ("a-1", 2),
        ("E-119", 3),
        ("snake_case", 7),
        ("물", 1),
        ("ｆｕｌｌ", 3),
        ("", 0),
        ("?! 😀 \u200b", 0),
        ("ab ab ab", 3),
    ],
)
def test_runs_of_letters_and_digits_give_bigrams(text: str, terms: int) -> None:
    assert length(text) == terms
    assert values(text).get(LENGTH, 0.0) == terms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("서울", unicodedata.normalize("NFD", "서울")),
        ("Straße", "straße"),
        ("ＡＢ１２", "ab12"),
        ("fix-50", "fix 50"),
    ],
)
def test_the_same_terms(one: str, other: str) -> None:
    assert places(one) == places(other)


@pytest.mark.parametrize(
    "marks",
    [
        "\u0301\u0323",
        "\u0344\u0323",  # of two marks
        "\u0f73\u0f71",  # a starter that is none when it is decomposed
        "\uff9e\u0301",  # in order, and out of it in NFKC
    ],
)
def test_a_million_marks_take_no_longer_than_as_many_letters(marks: str) -> None:
    """Sorted all together, they would take hours."""
    text = "서울 x" + marks * 500_000
    assert places(text) >= places("서울")
    assert normalized("NFKC", text).count("\u034f") == 33_333


def test_a_number_is_not_another() -> None:
    assert len(places("E-119") & places("E-110")) == 2
    assert places("119") & places("F-50") == set()


def test_terms_are_where_the_question_looks_for_them() -> None:
    vector = values("서울에서 부산까지 서울")
    asked, shares = question_terms("서울")
    assert shares == [1.0, 0.0]
    (place,) = asked
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
    assert len(values(text)) <= 15_003
