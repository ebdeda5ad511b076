"""Which claimed texts go to the model next, and what is dropped of rows that were claimed again."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from embedworker.model.encoder import Tokens
from embedworker.queue.claim import BACKFILL, Job
from embedworker.service.claimed import ClaimedRows
from embedworker.service.pool import LONG, Pool

MODEL: Any = "model"
BUDGET = 10  # tokens
SOURCE: Any = SimpleNamespace(id=1)


def job(key: str) -> Job:
    return Job(SOURCE, (key,), 1, 1, BACKFILL, datetime.now(UTC))


def tokens(number: int, length: int = BUDGET) -> Tokens:
    return Tokens((number,) * length, length)


@pytest.fixture
def claimed() -> ClaimedRows:
    return ClaimedRows()


@pytest.fixture
def pool(claimed: ClaimedRows) -> Pool:
    return Pool(claimed)


def add(pool: Pool, claimed: ClaimedRows, *rows: Job, fresh: bool = False, of: int = 1) -> None:
    """Claim rows and plan them; each of so many passages, each of which fills a batch."""
    claimed.add(rows)
    texts = [
        (row, [(n, n + 1, tokens(1000 * ord(row.key[0][0]) + n)) for n in range(of)])
        for row in rows
    ]
    pool.add(MODEL, texts, BUDGET, fresh=fresh)


def order(pool: Pool) -> list[str]:
    found = []
    while (batch := pool.next(lambda _: BUDGET)) is not None:
        found += [unit.job.key[0] for twins in batch[1] for unit in twins]
    return found


def test_a_refill_goes_behind_what_is_planned(pool: Pool, claimed: ClaimedRows) -> None:
    """In front of it, the rows of a small table would never have their turn."""
    add(pool, claimed, job("a"))
    add(pool, claimed, job("b"))
    add(pool, claimed, job("c"), fresh=True)
    assert order(pool) == ["c", "a", "b"]


def test_a_very_long_text_goes_last_and_has_its_turn(pool: Pool, claimed: ClaimedRows) -> None:
    add(pool, claimed, job("a"), of=LONG + 1)
    add(pool, claimed, job("b"))
    assert not pool.takes_more(1000), "no refill may come before it again and again"
    add(pool, claimed, job("c"), fresh=True)
    assert order(pool) == ["c", "b", *["a"] * (LONG + 1)]
    assert pool.takes_more(1)


def test_equal_texts_are_one_place_of_a_batch(pool: Pool, claimed: ClaimedRows) -> None:
    rows = [job(key) for key in "abc"]
    claimed.add(rows)
    pool.add(MODEL, [(row, [(0, 1, tokens(7))]) for row in rows], BUDGET)
    batch = pool.next(lambda _: BUDGET)
    assert batch is not None
    assert [[unit.job.key[0] for unit in twins] for twins in batch[1]] == [["a", "b", "c"]]


def test_what_is_claimed_again_or_given_up_is_left_out(pool: Pool, claimed: ClaimedRows) -> None:
    rows = [job(key) for key in "abc"]
    add(pool, claimed, *rows)
    claimed.add([replace(rows[0], seq=2)])
    claimed.remove([rows[0]])  # the older claim, which is not listed any more
    claimed.remove([rows[1]])
    assert order(pool) == ["c"]
    add(pool, claimed, job("d"))
    claimed.give_up(SOURCE.id)
    assert order(pool) == []
    given_up = claimed.given_up(SOURCE.id)
    assert sorted(row.key[0] for row in given_up) == ["a", "c", "d"]
    assert len(claimed) == 3, "the heartbeat extends their leases until they are handed back"
    claimed.remove(given_up)
    assert len(claimed) == 0
