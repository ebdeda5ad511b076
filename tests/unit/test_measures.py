"""Values worked out by hand, for what must not change with the library: ties, cut-offs, means."""

import math

import pytest

from embedworker.search.measures import Difference, compared, means, measured

ONE = {"q": {"right": 1}}


def ranking(*documents: str) -> dict[str, float]:
    return {document: 1.0 - place / 100 for place, document in enumerate(documents)}


def test_a_right_row_at_the_second_place() -> None:
    run = {"q": ranking("a", "right", "b")}

    values = means(measured(ONE, run, run, 10))

    assert values == pytest.approx(
        {
            "nDCG@1": 0.0,
            "nDCG@3": 1 / math.log2(3),
            "nDCG@5": 1 / math.log2(3),
            "nDCG@10": 1 / math.log2(3),
            "recall@10": 1.0,
            "MRR@10": 0.5,
            "recall@100": 1.0,
        }
    )


def test_grades_are_gains_as_they_are() -> None:
    relevance = {"q": {"good": 2, "fair": 1, "wrong": 0}}
    run = {"q": ranking("fair", "wrong", "good")}

    values = means(measured(relevance, run, run, 10))

    best = 2 + 1 / math.log2(3)
    assert values["nDCG@10"] == pytest.approx((1 + 2 / math.log2(4)) / best)
    assert values["MRR@10"] == 1.0


@pytest.mark.parametrize(("other", "reciprocal"), [("z", 0.5), ("a", 1.0)])
def test_of_equal_scores_the_higher_id_comes_first(other: str, reciprocal: float) -> None:
    # Whatever the order in which they were found: trec_eval looks at score and id alone.
    for order in (["right", other], [other, "right"]):
        run = {"q": dict.fromkeys(order, 0.5)}
        values = means(measured(ONE, run, run, 10))
        assert values["MRR@10"] == reciprocal
        assert values["nDCG@1"] == math.floor(reciprocal)


def test_scores_decide_and_not_the_order_of_the_rows() -> None:
    run = {"q": {"a": 0.1, "right": 0.9}}
    assert means(measured(ONE, run, run, 10))["nDCG@1"] == 1.0


def test_what_is_measured_at_k_does_not_see_the_deeper_ranking() -> None:
    others = [f"d{place}" for place in range(50)]
    run = {"q": ranking(*others[:10])}
    deep = {"q": ranking(*others, "right")}

    values = means(measured(ONE, run, deep, 10))

    assert (values["MRR@10"], values["recall@10"], values["recall@100"]) == (0.0, 0.0, 1.0)


def test_a_question_without_any_row_counts_as_zero() -> None:
    relevance = {"found": {"right": 1}, "nothing": {"right": 1}}
    run = {"found": ranking("right"), "nothing": {}}

    values = measured(relevance, run, run, 10)

    assert values["nDCG@10"] == {"found": 1.0, "nothing": 0.0}
    assert means(values)["nDCG@10"] == 0.5


def test_cut_offs_follow_k() -> None:
    run = {"q": ranking("right")}
    assert list(measured(ONE, run, run, 4)) == [
        *(f"nDCG@{cut}" for cut in (1, 3, 4)),
        "recall@4",
        "MRR@4",
        "recall@100",
    ]
    assert "recall@100" in measured(ONE, run, {}, 100)


def test_differences_are_paired_by_question() -> None:
    values = {"nDCG@10": {"a": 1.0, "b": 0.5, "c": 0.6}}
    # The same questions in another order: what counts is which question it is.
    against = {"nDCG@10": {"c": 0.3, "b": 0.5, "a": 0.7}}

    found = compared(values, against)["nDCG@10"]

    # Differences 0.3, 0, 0.3: mean 0.2, standard deviation sqrt(0.03), over the root of three.
    assert found.difference == pytest.approx(0.2)
    assert found.standard_error == pytest.approx(0.1)


def test_a_single_question_has_no_standard_error_to_speak_of() -> None:
    assert compared({"m": {"a": 1.0}}, {"m": {"a": 0.5}})["m"] == Difference(0.5, 0.0)
