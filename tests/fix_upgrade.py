"""A database of an older version with rows, vectors, a dead letter and a backfill in the middle.

``tests/upgrade/0001.sql.gz`` is what ``pg_dump --inserts --no-owner`` wrote of such a database; the
programs of version 0001 had made it, with the encoder of the tests. ``0003.sql.gz`` is the same
after the ``migrate`` of version 0003. Taken out of both: the login of the loopback, and the
settings that an older server does not know.

older_version  URL of that database, as it was when its worker was killed
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_database import _new_database as new_database

from embedworker.database.embedded.cluster import Cluster

DUMPS = Path(__file__).parent / "upgrade"
# A dump that was restored has other numbers for its tables, and what was due then may be due later
# by this clock. An upgrade in place sees neither.
IN_PLACE = """
update embed.source set relation_oid = relation;
update embed.source_state t
set structure = embed._structure(s)
from embed.source s
where s.id = t.source;
update embed.worker_session set seen_at = now() - interval '1 hour';
do $$
declare
    queue regclass;
begin
    for queue in select format('embed.queue_%s', id) from embed.source loop
        execute format('update %s set due = now() where due < ''infinity''', queue);
    end loop;
end
$$;
set search_path = shop, public;
"""
# Since version 0003 a function of each table has the table's number.
NUMBERED = "select embed._guard_vectors(s) from embed.source s"


@pytest.fixture(params=["0001", "0003"])
def older_version(
    request: pytest.FixtureRequest,
    server: Cluster,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    assert template  # its roles, which the dump grants to, belong to the server
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    with new_database(server, "template1") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            dump = DUMPS / f"{request.param}.sql.gz"
            connection.execute(gzip.decompress(dump.read_bytes()))
            connection.execute(IN_PLACE)
            if request.param != "0001":
                connection.execute(NUMBERED)
        yield url
