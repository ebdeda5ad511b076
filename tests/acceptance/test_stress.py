"""Several writers and several workers on one table, for a while: nothing lost, wrong or failed."""

import psycopg
import pytest
from fix_worker import Workers
from stress import stress


@pytest.mark.parametrize("isolation", ["read committed"])
def test_nothing_is_wrong_afterwards(
    isolation: str, workers: Workers, shop: psycopg.Connection
) -> None:
    for _ in range(3):
        # Slow, in small batches: texts are to change while they are embedded.
        workers.start(testing_delay="0.02", batch_tokens="300", lease="2")
    report = stress(workers.url, shop, seconds=6, writers=4, seed=1, isolation=isolation)
    assert report.errors == []
    assert report.verdict.good, report
    assert report.deadlocks == 0
    assert report.done.total() > 500, report
    assert not any("Traceback" in worker.output() for worker in workers.all)
