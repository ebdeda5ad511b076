"""Forced orders of two workers and an application; the last text must win in all of them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import pytest
from schedules import (
    SCHEDULES,
    Schedule,
    Stage,
    claim_over_a_change,
    completion_beside_an_open_move,
    stage,
)


@pytest.fixture
def scene(hash_database: str) -> Iterator[Stage]:
    with stage(hash_database) as made:
        yield made


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
def test_the_last_text_wins(schedule: Schedule, scene: Stage) -> None:
    schedule(scene)
    verdict = scene.settle()
    assert verdict.good, verdict


Step = Callable[[Stage], object]


def _of(worker: str) -> list[Step]:
    def do(step: str) -> Step:
        return lambda scene: getattr(getattr(scene, worker), step)()

    return [do("move"), do("claim"), do("read"), do("complete")]


CHANGES: dict[str, list[Step]] = {
    "update": [lambda scene: scene.update("new")],
    "lapse and update": [lambda scene: scene.lapse(), lambda scene: scene.update("new")],
}


def _merges(left: Sequence[Step], right: Sequence[Step]) -> Iterator[list[Step]]:
    """Every order of both that keeps each one's own."""
    total = len(left) + len(right)
    for places in combinations(range(total), len(left)):
        ours, theirs = iter(left), iter(right)
        yield [next(ours if place in places else theirs) for place in range(total)]


@pytest.mark.parametrize("change", CHANGES)
def test_every_order_of_one_worker_and_a_change(change: str, scene: Stage) -> None:
    """The change before, between and after all steps of a worker, with another one around it."""
    for order in _merges(_of("a"), [*CHANGES[change], *_of("b")[:2]]):
        scene.update("old")
        for step in order:
            step(scene)
        verdict = scene.settle()
        assert verdict.good, (verdict, order)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("change", CHANGES)
def test_every_order_of_two_workers_and_a_change(change: str, scene: Stage) -> None:
    for both in _merges(_of("a"), _of("b")):
        for order in _merges(both, CHANGES[change]):
            scene.update("old")
            for step in order:
                step(scene)
            verdict = scene.settle()
            assert verdict.good, (verdict, order)


def test_a_change_while_the_claim_waits_for_the_row(scene: Stage) -> None:
    """The claim's snapshot is older than the change, the row it locks is newer.

    A claim that brought the text along would pair the new number with the old text.
    """
    assert claim_over_a_change(scene).good


def test_a_completion_never_waits(scene: Stage) -> None:
    assert completion_beside_an_open_move(scene) < 0.25
