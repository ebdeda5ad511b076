"""A worker is killed at each of its stations while a call for a switch is open."""

from pathlib import Path

import psycopg
import pytest
from fix_switch import ENABLE, STATE, TABLES, Connection, calls, check_both, check_columns, state
from fix_worker import Workers, failpoint, wait_reached
from waiting import wait_until

pytestmark = pytest.mark.slow

OPEN = """
select a.name, a.state, a.pending, a.stale, a.removing, a.error
from (values ('shop.article'::regclass), ('shop.page')) t (relation)
cross join embed.status_exact(t.relation) a
where a.state <> 'ready' or a.pending > 0 or a.stale > 0 or a.removing > 0
"""


def settle(shop: Connection, workers: Workers) -> None:
    """Let another worker do what is left; it has the rows of a dead one before their lease ends."""
    worker = workers.start()
    wait_until(lambda: not shop.execute(OPEN).fetchall(), 20, "the end of the work")
    assert worker.terminate() == 0, worker


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "place", ["after-claim", "after-read", "after-embed", "before-complete", "after-commit"]
)
def test_killed_during_each_call(
    place: str, hash_database: str, workers: Workers, tmp_path: Path
) -> None:
    """The call is committed or not, and every row has the vectors of both sides afterwards."""
    serving = 384
    with psycopg.connect(hash_database, autocommit=True) as shop:
        shop.execute(TABLES)
        shop.execute(ENABLE)
        settle(shop, workers)
        for call in ("begin_switch", "cut_over", "roll_back", "end_switch"):
            for commits in (False, True):
                before = state(shop)
                shop.execute("update article set title = title || '!'")
                shop.execute("update page set title = title || '!'")
                gate = tmp_path / f"{call}-{commits}"
                worker = workers.start(**failpoint(place, gate))
                wait_reached(gate)
                with psycopg.connect(hash_database) as calling:
                    calling.execute("set search_path = shop, public")
                    calls(calling, call)
                    after = state(calling)
                    assert after != before
                    worker.kill()
                    if not commits:
                        calling.rollback()
                assert state(shop) == (after if commits else before), call
                settle(shop, workers)
                if commits and call in ("cut_over", "roll_back"):
                    serving = 448 - serving
                if shop.execute(STATE).fetchall():
                    check_both(shop, serving=serving)
                else:
                    check_columns(shop, v=384)
