"""Workers one version apart from the schema they work on, in both directions.

The next version is made here, of what versions are allowed to do: columns and functions are added,
one function that workers call returns a column more, and one that only older workers need is
dropped when none of them is left.
"""

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fix_database import Connection
from fix_worker import START, Workers
from oracle import judge, wait_settled
from waiting import wait_until

from embedworker import resources, settings
from embedworker.database import migrate as migrating
from embedworker.database import revision, scripts
from embedworker.database.loopback import set_up_loopback
from embedworker.errors import DatabaseError
from embedworker.model.catalog import TESTING_MODEL
from embedworker.service import doctor

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
        alter table embed.worker_session add column hue text not null default '0';
        drop function embed._poll(jsonb);
    """)


def downgrade() -> None:
    raise NotImplementedError
'''


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The folder with ``migrations`` and ``sql`` of the version after this one."""
    shutil.copytree(resources.sql_folder(), tmp_path / "sql")
    shutil.copytree(resources.migrations_folder(), tmp_path / "migrations")
    newest = revision.known()[-1]
    (tmp_path / "migrations" / "versions" / "9999_next.py").write_text(NEXT.format(newest=newest))
    poll = tmp_path / "sql" / "functions" / "035_worker.sql"
    text, changes = re.subn(
        r"(_poll\(after jsonb\)\nreturns table \(.*)\)\n", r"\1, hue text)\n", poll.read_text()
    )
    assert changes == 1
    poll.write_text(text)
    (poll.parent / "100_next.sql").write_text(
        "create or replace function embed.hue(integer) returns text language sql return 'none';"
    )
    (tmp_path / "sql" / "schema" / "finish").mkdir()
    (tmp_path / "sql" / "schema" / "finish" / "9999.sql").write_text(
        "drop function if exists embed.wake_up();"
    )
    return tmp_path


@pytest.fixture
def migrate_later(
    hash_database: str, later: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Bring the database to the version after this one, as its package would."""

    def run() -> list[str]:
        with monkeypatch.context() as patch:
            for module in (migrating, revision):
                patch.setattr(module, "migrations_folder", lambda: later / "migrations")
            for module in (migrating, scripts):
                patch.setattr(module, "sql_folder", lambda: later / "sql")
            return migrating.migrate(hash_database, model=TESTING_MODEL)

    return run


def write(shop: Connection, number: int) -> None:
    shop.execute("insert into article values (%s, %s)", [number, f"글 {number}"])
    shop.execute("update article set content = content || '!' where id = 1")


def test_the_newest_version_is_that_of_alembic() -> None:
    script = ScriptDirectory(str(resources.migrations_folder()))
    assert revision.known() == [r.revision for r in reversed(list(script.walk_revisions()))]


def test_workers_go_on_while_the_schema_becomes_newer(
    shop: Connection, workers: Workers, migrate_later: Callable[[], list[str]]
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
    shop: Connection, workers: Workers, later: Path, migrate_later: Callable[[], list[str]]
) -> None:
    """It says so once, leaves everything to the worker that fits, and begins by itself."""
    shop.execute("create table article (id integer primary key, content text)")
    shop.execute("select embed.enable('article', array['content'])")
    newest = revision.known()[-1]
    newer = workers.start(up=False, migrations=later / "migrations")
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


@pytest.mark.smoke
def test_an_older_migrate_touches_nothing(
    hash_database: str, shop: Connection, migrate_later: Callable[[], list[str]]
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


def test_what_only_older_workers_need_goes_with_the_last_of_them(
    shop: Connection, workers: Workers, migrate_later: Callable[[], list[str]]
) -> None:
    """The migration says which worker keeps it; the next one drops it."""
    there = "select to_regprocedure('embed.wake_up()') is not null"
    shop.execute("create function embed.wake_up() returns void language sql return null")
    older = workers.start()
    (remark,) = migrate_later()
    assert f"process {older.pid} on " in remark
    assert "run `embedworker migrate` again when they have ended" in remark
    assert shop.execute(there).fetchone() == (True,)
    assert older.terminate() == 0
    assert shop.execute("select from embed.worker_session").fetchall() == []
    assert migrate_later() == []
    assert shop.execute(there).fetchone() == (False,)
