"""A change of the model while the table gets another owner, or the database another server."""

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from fix_drain import Connection, drain_url
from fix_roles import as_login, database_with_logins
from fix_standby import catch_up, copy_cluster
from fix_switch import (
    ENABLE,
    OTHER,
    TABLES,
    calls,
    check_both,
    check_columns,
    check_sides,
    one,
    state,
)
from waiting import wait_until

from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import migrate
from embedworker.model.catalog import TESTING_MODEL

PHASES = "select phase, coverage, from_coverage from embed.switch"


@pytest.mark.parametrize("reassigned", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_a_table_is_given_away_in_the_middle(
    server: Cluster, template: str, cut: bool, reassigned: bool
) -> None:
    """Both sides stay current; nobody moves it by halves, and the hint says who can go on."""
    logins = {"first": "embed_admin", "second": "embed_admin"}
    with (
        database_with_logins(server, template, logins) as url,
        psycopg.connect(url, autocommit=True) as boss,
    ):
        boss.execute("grant create on schema public to t_first, t_second")
        boss.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
        with psycopg.connect(as_login(url, "first"), autocommit=True) as first:
            first.execute("create table article (id int primary key, title text)")
            first.execute("insert into article values (1, 'a red kettle'), (2, 'a blue kettle')")
            first.execute("select embed.enable('article', '{title}', model => 'testing:hash')")
            first.execute("select embed.begin_switch('article', %s)", [OTHER])
            assert drain_url(url) == []
            if cut:
                first.execute("select embed.cut_over('article')")
        give = "reassign owned by" if reassigned else "alter table article owner to"
        boss.execute(f"{give} {'t_first to t_second' if reassigned else 't_second'}".encode())
        boss.execute("update article set title = 'given away' where id = 1")
        next_call = "roll_back" if cut else "cut_over"
        if not reassigned:
            is_now = state(boss)
            assert all("belongs to t_second, for whom t_first" in said for said in drain_url(url))
            # The former owner still owns the vectors, but learns nothing new by them.
            with closing(psycopg.connect(as_login(url, "first"), autocommit=True)) as first:
                seen = first.execute("select embedded_at from article_embedding").fetchall()
            for call in (next_call, "end_switch", "disable"):
                for login in ("first", "second"):
                    with closing(psycopg.connect(as_login(url, login), autocommit=True)) as other:
                        _refused(other, call)
            assert state(boss) == is_now
            (said,) = {said.partition("; ")[2] for said in drain_url(url)}
            assert said.startswith("as a superuser: grant t_second to t_first; or")
            assert seen == boss.execute("select embedded_at from article_embedding").fetchall()
            boss.execute("grant t_second to t_first")
        mover = "second" if reassigned else "first"
        assert drain_url(url) == []
        check_sides(boss, serving=64 if cut else 384)
        assert one(boss, PHASES) == ("cut over" if cut else "ready", 1, 1)
        with closing(psycopg.connect(as_login(url, mover), autocommit=True)) as may:
            may.execute(f"select embed.{next_call}('article')".encode())
            check_sides(boss, serving=384 if cut else 64)
            may.execute("select embed.end_switch('article')")
        assert one(boss, "select embed._model_of('article')") == (TESTING_MODEL if cut else OTHER)


def _refused(connection: Connection, call: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"article") as caught:
        connection.execute(f"select embed.{call}('article')".encode())
    assert (caught.value.diag.message_hint or "").startswith("Ask t_")


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_a_standby_is_promoted_in_the_middle(
    new_cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """With rows that wait on both sides: the new primary goes on where the old one was."""
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    primary = new_cluster(fsync="off")
    migrate(primary.start(), model=TESTING_MODEL)
    standby = new_cluster(fsync="off")
    with psycopg.connect(primary.url(), autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(ENABLE)
        calls(connection, "begin_switch")
        if cut:
            drain_url(primary.url())
            calls(connection, "cut_over")
        copy_cluster(primary, standby)
        connection.execute("update article set title = 'as it was lost' where id = 1")
        connection.execute("update page set title = 'as it was lost' where id = 1")
        was = state(connection)
        catch_up(primary, standby)
    primary.kill()
    with psycopg.connect(standby.url(), autocommit=True) as connection:
        connection.execute("set search_path = shop, public")
        connection.execute("select pg_promote()")
        wait_until(lambda: not one(connection, "select pg_is_in_recovery()"), what="the promotion")
        assert state(connection) == was
        connection.execute("update article set title = 'on the new primary' where id = 2")
        connection.execute("update page set title = 'on the new primary' where id = 2")
        assert drain_url(standby.url()) == []
        check_both(connection, serving=64 if cut else 384)
        calls(connection, "roll_back" if cut else "cut_over")
        check_both(connection, serving=384 if cut else 64)
        calls(connection, "end_switch")
        check_columns(connection, v=384 if cut else 64)
