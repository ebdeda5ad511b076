"""Workers one version apart from the schema they work on, in both directions.

There is one version so far. The next one is made here, of what versions are allowed to do: columns
and functions are added, and one function that workers call returns a column more.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from fix_worker import START, Workers
from oracle import judge, wait_settled
from waiting import wait_until

from worker import resources, settings
from worker.database import migrate as migrating
from worker.database import revision
from worker.database.loopback import set_up_loopback
from worker.errors import DatabaseError
from worker.model.catalog import TESTING_MODEL
from worker.service import doctor

Connection = psycopg.Connection[tuple[Any, ...]]

NEXT = '''
from alembic import op

revision = "9999"
down_revision = "{newest}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        alter table embed.source add column hue text not null default 'none';
        alter table embed.question add column hue text;
        alter table embed.worker_session add column version text not null default '0';
        create function embed.hue(integer) returns text language sql return 'none';
        alter function embed._poll(jsonb) rename to _poll_before;
        create function embed._poll(after jsonb)
        returns table (
            source integer, version bigint, paused boolean, work boolean, sweep boolean, hue text
        )
        language sql stable
        begin atomic
            select p.source, p.version, p.paused, p.work, p.sweep, embed.hue(p.source)
            from embed._poll_before(after) p;
        end;
    """)


def downgrade() -> None:
    raise NotImplementedError
'''


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The migrations of the version after this one."""
    folder = Path(shutil.copytree(resources.migrations_folder(), tmp_path / "migrations"))
    (folder / "versions" / "9999_next.py").write_text(NEXT.format(newest=revision.known()[-1]))
    return folder


@pytest.fixture
def migrate_later(
    hash_database: str, later: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Bring the database to the version after this one, as its package would."""

    def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(migrating, "migrations_folder", lambda: later)
            patch.setattr(revision, "migrations_folder", lambda: later)
            migrating.migrate(hash_database, model=TESTING_MODEL)

    return run


def write(shop: Connection, number: int) -> None:
    shop.execute("insert into article values (%s, %s)", [number, f"글 {number}"])
    shop.execute("update article set content = content || '!' where id = 1")


def test_the_newest_version_is_that_of_alembic() -> None:
    script = ScriptDirectory(str(resources.migrations_folder()))
    assert revision.known() == [r.revision for r in reversed(list(script.walk_revisions()))]


def test_workers_go_on_while_the_schema_becomes_newer(
    shop: Connection, workers: Workers, migrate_later: Callable[[], None]
) -> None:
    """Before, during and after it; and one that is started on the newer schema."""
    assert set_up_loopback(shop) == []
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    write(shop, 1)
    before = workers.start(both_lanes=True)
    wait_settled(shop, "article")
    migrating_now = threading.Thread(target=migrate_later)
    migrating_now.start()
    number = 1
    while migrating_now.is_alive() or number < 20:
        number += 1
        write(shop, number)
    migrating_now.join()
    assert shop.execute("select embed.hue(1)").fetchone() == ("none",)
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert shop.execute("select embed.query('글') is null").fetchone() == (False,)
    assert before.terminate() == 0
    workers.start(both_lanes=True)
    write(shop, number + 1)
    wait_settled(shop, "article")
    verdict = judge(shop, "article")
    assert verdict.good, verdict
    assert verdict.rows == number + 1
    assert shop.execute("select embed.query('또 다른 글') is null").fetchone() == (False,)
    for worker in workers.all:
        assert "ERROR" not in worker.output(), worker


def test_a_newer_worker_waits_for_its_schema(
    shop: Connection, workers: Workers, later: Path, migrate_later: Callable[[], None]
) -> None:
    """It says so once, leaves everything to the worker that fits, and begins by itself."""
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    newest = revision.known()[-1]
    newer = workers.start(up=False, migrations=later)
    said = f"has the version {newest}, this worker needs 9999; run `embedworker migrate`"
    wait_until(lambda: said in newer.output(), START, "the newer worker to say what it needs")
    write(shop, 1)
    older = workers.start()
    wait_settled(shop, "article")
    assert shop.execute("select count(*) from embed.worker").fetchone() == (1,)
    assert older.terminate() == 0
    migrate_later()
    workers.wait_up(newer)
    write(shop, 2)
    wait_settled(shop, "article")
    assert judge(shop, "article").good
    assert newer.output().count(said) == 1


def test_an_older_migrate_touches_nothing(
    hash_database: str, shop: Connection, migrate_later: Callable[[], None]
) -> None:
    migrate_later()
    functions = "select count(*), max(xmin::text::bigint) from pg_proc"
    before = shop.execute(functions).fetchone()
    for undo in (migrating.migrate, migrating.downgrade):
        with pytest.raises(DatabaseError, match=r"9999, which is newer than .* nothing was change"):
            undo(hash_database)
    assert shop.execute(functions).fetchone() == before
    found = {f.check: f for f in doctor.examine(hash_database, settings.load())}
    assert found["schema"].state == "warning"
