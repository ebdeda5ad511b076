"""The page shows what its login may see: rights and row security are the database's."""

from collections.abc import Iterator

import psycopg
import pytest
from fix_roles import as_login, database_with_logins
from fix_vectors import VectorWriter
from fix_web import OpenPage, watch_of

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster

LOGINS = {"owner": "embed_admin", "reader": None, "watcher": "embed_monitor"}


@pytest.fixture(scope="module")
def url(server: Cluster, template: str) -> Iterator[str]:
    """Three notes of two people; one has failed, and its reason quotes it."""
    with database_with_logins(server, template, LOGINS) as url:
        with connect(url) as connection:
            connection.execute(
                """
                create schema shop authorization t_owner;
                set role t_owner;
                create table shop.note (id int primary key, person name, body text);
                create table shop.secret (id int primary key, body text);
                select embed.enable('shop.note', array['body']);
                select embed.enable('shop.secret', array['body']);
                insert into shop.note values
                    (1, 't_reader', 'mine is cold'), (2, 't_owner', 'hers is cold'),
                    (3, 't_owner', 'broken');
                alter table shop.note enable row level security;
                create policy own on shop.note using (person = current_user);
                grant usage on schema shop to t_reader;
                grant select on shop.note to t_reader;
                reset role;
                """
            )
            vectors = VectorWriter(connection)
            vectors.embed("shop.note")
            vectors.know("cold")
            vectors.enqueue("shop.note", [3], error="quotes: broken", due="infinity", attempts=5)
        yield url


def test_a_reader_searches_his_own_rows_and_sees_no_state(url: str, open_page: OpenPage) -> None:
    page = open_page(as_login(url, "reader"))
    found = page.get("/search", params={"table": "shop.note", "q": "cold"}).text
    assert "mine is <mark>cold</mark>" in found
    assert "hers is" not in found
    assert "shop.secret" not in found
    asked = page.get("/search", params={"table": "shop.secret", "q": "cold"}).text
    assert "shop.secret is not enabled, or this login may not read it." in asked
    watch_of(page).look()
    watch_of(page).examine()
    for path in ("/", "/tables", "/failures"):
        said = page.get(path)
        assert said.status_code == 200
        assert 'grant embed_monitor to "t_reader";' in said.text
        assert "broken" not in said.text


def test_a_watcher_sees_counts_and_no_text(url: str, open_page: OpenPage) -> None:
    page = open_page(as_login(url, "watcher"))
    watch_of(page).look()
    watch_of(page).examine()
    with connect(url) as connection:
        ((number,),) = connection.execute(
            "select id from embed.source where name = 'note'"
        ).fetchall()
    for path in ("/failures", f"/tables/{number}"):
        said = page.get(path).text
        assert "Given up: 1" in said
        assert "may not read keys and reasons" in said
        assert "broken" not in said
        assert "id=3" not in said
    assert watch_of(page).findings
    assert "No worker is running" in page.get("/").text
    assert "may not read a table that is enabled" in page.get("/search").text


def test_the_owner_sees_reasons_and_may_act(url: str, open_page: OpenPage) -> None:
    page = open_page(as_login(url, "owner"), web_allow_actions=True)
    said = page.get("/failures").text
    assert "quotes: broken" in said
    assert "id=3" in said


def test_an_action_without_the_right_changes_nothing_and_says_who_may(
    url: str, open_page: OpenPage
) -> None:
    page = open_page(as_login(url, "watcher"), web_allow_actions=True)
    with psycopg.connect(url, autocommit=True) as connection:
        ((number,),) = connection.execute(
            "select id from embed.source where name = 'note'"
        ).fetchall()
        form = page.get(f"/tables/{number}").text.partition('name="csrf" value="')[2]
        fields = {"csrf": form.partition('"')[0]}
        for action, more in (("pause", {}), ("sweep", {}), ("retry", {"alike": "1"})):
            said = page.post(f"/tables/{number}/{action}", data=fields | more)
            assert said.status_code == 403, (action, said.text)
            assert "permission denied" in said.text or "embed_admin" in said.text
        assert connection.execute("select from embed.source where paused").fetchall() == []
        queue = connection.execute(f"select due = 'infinity' from embed.queue_{number}".encode())
        assert queue.fetchall() == [(True,)]
