"""Batches within a token budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedworker.model.batches import token_batches

lengths = st.lists(st.integers(0, 600), max_size=200)
budgets = st.integers(1, 4096)


@given(lengths, budgets)
def test_every_text_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, budgets)
def test_only_a_text_alone_may_exceed_the_budget(lengths: list[int], budget: int) -> None:
    for batch in token_batches(lengths, budget):
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1


@given(lengths, budgets)
def test_batches_go_from_long_to_short(lengths: list[int], budget: int) -> None:
    order = [lengths[i] for batch in token_batches(lengths, budget) for i in batch]
    assert order == sorted(lengths, reverse=True)


@given(lengths, budgets)
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    for batch in batches[:-1]:
        width = max(max(lengths[i] for i in batch), 1)
        assert (len(batch) + 1) * width > budget


def test_sorting_by_tokens_leaves_little_padding() -> None:
    lengths = [20 + (i * 37) % 480 for i in range(1000)]
    batches = token_batches(lengths, 2048)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert sum(lengths) / padded > 0.97


def test_a_budget_of_nothing_is_wrong() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        token_batches([1], 0)
