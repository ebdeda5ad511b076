"""The protocol with one statement altered must fail: proof that the tests can.

Each alteration looks harmless, and other queues have it. The same schedules run with the statements
as they are in test_schedules.py, and the same stress in test_stress.py.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from fix_worker import Workers
from schedules import (
    Schedule,
    claim_over_a_change,
    completed_enqueued_again_and_completed_late,
    completion_beside_an_open_move,
    late_completion_while_another_works,
    stage,
    update_between_read_and_complete,
)
from stress import stress

from embedworker.database import statements
from embedworker.resources import sql_folder

Alter = Callable[..., Path]

FENCE = "    where q.seq = j.seq and q.claimed_by = %(worker)s\n"


def file_of(query: str, folder: Path) -> Path:
    """Return the file of a folder sql/ that holds a query."""
    (file,) = [f for f in (folder / "queries").glob("*.sql") if f"-- {query}\n" in f.read_text()]
    return file


@pytest.fixture
def alter(tmp_path: Path) -> Alter:
    """``alter(query, (old, new), …)`` copies sql/ and replaces text within one named query."""

    def copy(query: str, *changes: tuple[str, str], folder: Path | None = None) -> Path:
        altered = folder or Path(shutil.copytree(sql_folder(), tmp_path / "sql"))
        file = file_of(query, altered)
        before, head, rest = file.read_text().partition(f"-- {query}\n")
        body, end, after = rest.partition(";\n")
        for old, new in changes:
            assert old in body, f"{query} does not hold {old!r} any more: alter it another way"
            body = body.replace(old, new)
        file.write_text(before + head + body + end + after)
        return altered

    return copy


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Have this process run the statements of another folder."""
    return lambda folder: monkeypatch.setattr(statements, "sql_folder", lambda: folder)


def is_lost(url: str, schedule: Schedule) -> bool:
    """Whether a schedule ends with a vector that is not of the last text."""
    with stage(url) as scene:
        schedule(scene)
        verdict = scene.settle()
    assert (verdict.inbox, verdict.queued) == (0, 0), "nothing would repair it"
    return not verdict.good


def test_a_move_that_keeps_what_is_queued(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    folder = alter("queue_move")
    file = file_of("queue_move", folder)
    text = file.read_text()
    start = text.index("do update", text.index("-- queue_move\n"))
    end = text.index("\n)\nselect count(*), max(place)::text from taken", start)
    file.write_text(text[:start] + "do nothing" + text[end:])
    use(folder)
    assert is_lost(hash_database, update_between_read_and_complete)


def test_a_claim_that_brings_the_text_along(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    """Read in the claim's snapshot, kept in a temporary table until queue_read asks for it."""
    folder = alter(
        "queue_claim",
        (
            "claimed as (",
            "brought as (insert into pg_temp.brought select {j_texts}, {text} from picked j"
            " join {rows} s on {s_is_j}),\nclaimed as (",
        ),
    )
    alter(
        "queue_read",
        (
            "select {text} as text, {row_stored} as stored\n        from {rows} s\n"
            "        where {s_is_j}",
            "select b.text, {row_stored} as stored\n        from pg_temp.brought b\n"
            "        where b.key = {j_texts}",
        ),
        folder=folder,
    )
    use(folder)
    with stage(hash_database) as scene:
        for hand in (scene.a, scene.b):
            hand.connection.execute("create temporary table brought (key text[], text text)")
        verdict = claim_over_a_change(scene)
    assert verdict.wrong == 1
    assert verdict.inbox == verdict.queued == 0


@pytest.mark.smoke
def test_a_completion_by_key_alone(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    use(alter("queue_complete", (FENCE, "")))
    assert is_lost(hash_database, update_between_read_and_complete)


def test_a_completion_that_does_not_ask_who_holds_the_row(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    use(alter("queue_complete", (FENCE, "    where q.claimed_by is not null\n")))
    assert is_lost(hash_database, late_completion_while_another_works)


def test_a_completion_that_waits(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    use(alter("queue_complete", ("for update of q skip locked", "for update of q")))
    with stage(hash_database) as scene, pytest.raises(psycopg.errors.LockNotAvailable):
        completion_beside_an_open_move(scene)


def test_a_number_that_starts_over(
    hash_database: str, alter: Alter, use: Callable[[Path], None]
) -> None:
    """A version counter of the row, which a deleted queue row takes with it."""
    use(
        alter(
            "queue_move",
            ("nextval('embed.seq')", "1"),
            ("set seq = excluded.seq", "set seq = q.seq + 1"),
        )
    )
    assert is_lost(hash_database, completed_enqueued_again_and_completed_late)


def test_the_stress_test_sees_a_completion_by_key_alone(
    workers: Workers, shop: psycopg.Connection, alter: Alter
) -> None:
    folder = alter("queue_complete", (FENCE, ""))
    for _ in range(2):
        workers.start(sql_folder=folder, testing_delay="0.02", batch_tokens="300")
    # Whether a change falls between a read and its completion is chance, and so is whether the row
    # is left alone afterwards: a run on a busy machine ended well.
    for seed in range(1, 9):
        report = stress(workers.url, shop, seconds=5, writers=3, seed=seed)
        if report.verdict.wrong + report.verdict.orphans > 0:
            return
        shop.execute("select embed.disable('article', drop_vectors => true)")
        shop.execute("drop table article")
    raise AssertionError(f"eight runs ended well: {report}")
