"""The rate limit of a fleet, by a clock of the test's own."""

import random

import pytest

from embedworker.fleet.token_bucket import TokenBucket


@pytest.mark.parametrize("rate", [0.5, 40.0, 5000.0])
def test_no_time_has_more_rows_than_the_rate_and_one_second_of_it(rate: float) -> None:
    chosen = random.Random(5)
    bucket = TokenBucket(rate, 0.0)
    now, taken = 0.0, [(0.0, 0)]
    for _ in range(3000):
        now += chosen.expovariate(20)
        allowed, pause = bucket.take(chosen.randint(1, 1024), 0, now)
        assert (allowed == 0) == (pause > 0)
        taken.append((now, taken[-1][1] + allowed))
    for begin, before in taken[::10]:
        for end, after in taken[::10]:
            if end > begin:
                assert after - before <= rate * (end - begin) + max(1.0, rate)
    assert taken[-1][1] > 0.9 * rate * now - 1


def test_a_worker_that_waits_as_long_as_it_was_told_gets_rows() -> None:
    bucket = TokenBucket(10.0, 0.0)
    allowed, pause = bucket.take(100, 0, 0.0)
    assert (allowed, pause) == (0, 0.25)
    assert bucket.take(100, 0, pause + 1e-9) == (2, 0.0)


def test_rows_of_the_application_slow_the_backfill_and_unused_ones_come_back() -> None:
    bucket = TokenBucket(10.0, 0.0)
    assert bucket.take(100, 0, 1.0) == (10, 0.0)
    assert bucket.take(100, 6, 1.0) == (6, 0.0)
    allowed, pause = bucket.take(100, -20, 1.0)  # 20 changes of the application
    assert (allowed, pause) == (0, pytest.approx(2.25))
    assert bucket.take(100, 500, 9.0) == (10, 0.0)  # never more than those of one second
