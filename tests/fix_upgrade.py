"""A database of version 0001 with rows, vectors, a dead letter and a backfill that was broken off.

``tests/upgrade/0001.sql.gz`` is what ``pg_dump --inserts --no-owner`` wrote of such a database; the
programs of version 0001 had made it, with the encoder of the tests. Taken out of it: the login of
the loopback, and the settings that an older server does not know.

first_version  URL of that database, as it was when its worker was killed
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_database import _new_database as new_database

from embedworker.database.embedded.cluster import Cluster

DUMP = Path(__file__).parent / "upgrade" / "0001.sql.gz"
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


@pytest.fixture
def first_version(server: Cluster, template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    assert template  # its roles, which the dump grants to, belong to the server
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    with new_database(server, "template1") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(gzip.decompress(DUMP.read_bytes()))
            connection.execute(IN_PLACE)
        yield url
