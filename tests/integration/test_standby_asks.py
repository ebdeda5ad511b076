"""A standby that asks the workers of its primary, through the loss of it and a promotion.

The tests run in their order: the last ones stop the primary and promote the standby.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from fix_cli import Cli
from fix_drain import Lane
from fix_proxy import Proxy
from fix_questions import (
    QuestionRunner,
    ask,
    grant_dblink,
    loopback_backends,
    question_vector,
    refused,
)
from fix_standby import catch_up, copy_cluster
from fix_worker import Workers
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import primary_options
from embedworker.database.migrate import migrate
from embedworker.errors import ConfigurationError
from embedworker.model.catalog import TESTING_MODEL
from embedworker.search.client import Client
from embedworker.service.doctor import Finding, examine

pytestmark = pytest.mark.slow

SEARCH = 'select (s."row").id, s.similarity from embed.search(null::article, %s, k => 1) s'


class Pair(NamedTuple):
    primary: Cluster
    standby: Cluster
    proxy: Proxy  # from the standby to the primary
    runner: QuestionRunner


@pytest.fixture(scope="module")
def pair(new_cluster: Callable[..., Cluster]) -> Iterator[Pair]:
    """A primary whose worker answers questions, and a standby that was told of it."""
    # Statements are shown longer there than on the standby.
    primary = new_cluster(fsync="off", track_activity_query_size="4096")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        migrate(primary.start(), model=TESTING_MODEL)
        with connect(primary.url()) as connection:
            connection.execute(
                "create table article (id integer primary key, body text);"
                "insert into article values (1, 'one'), (2, 'two');"
                "select embed.enable('article', array['body']);"
                "create role t_few login password 'made up' in role embed_worker;"
                "create role t_stranger login password 'made up';"
                "grant select on article to t_stranger"
            )
        with closing(Lane(primary.url())) as lane:
            assert lane.drain() == []
        assert primary.port is not None
        proxy = Proxy("127.0.0.1", primary.port)
        standby = new_cluster(fsync="off", track_activity_query_size="100")
        with QuestionRunner(primary.url(), 4711) as runner:
            copy_cluster(primary, standby)
            yield Pair(primary, standby, proxy, runner)
        proxy.end()


def hosts(pair: Pair) -> str:
    """The standby itself comes first: libpq passes it by as long as it is one."""
    return f"127.0.0.1:{pair.standby.port},127.0.0.1:{pair.proxy.port}"


def as_stranger(url: str) -> str:
    return make_conninfo(url, user="t_stranger", password="made up")


def found(url: str) -> Finding:
    return next(f for f in examine(url, settings.load()) if f.check == "embed.query")


def asked(cluster: Cluster, text: str) -> bool:
    """Whether a worker of this server answered the question."""
    with psycopg.connect(cluster.url()) as connection:
        return connection.execute(
            "select exists (select from embed.question_cache where hash = embed.text_hash(%s))",
            [text],
        ).fetchone() == (True,)


def test_a_standby_that_was_not_told_says_how(pair: Pair) -> None:
    assert found(pair.standby.url()).state == "skipped"
    with connect(pair.standby.url()) as connection:
        said = refused(connection, "EW007", "select embed.query('x')")
        assert "--primary-host" in said.message_hint
    cli = Cli(pair.primary.url())
    cli.ok("migrate", "--primary-host", hosts(pair))
    catch_up(pair.primary, pair.standby)
    assert found(pair.standby.url()).state == "ok"
    assert found(pair.standby.url()).detail == "this standby reaches the primary"
    assert found(pair.primary.url()).detail == "the server reaches itself"


def test_a_later_migrate_keeps_the_hosts_and_renews_the_password(pair: Pair) -> None:
    options = "select srvoptions from pg_foreign_server where srvname = 'embed_primary'"
    passwords = "select umoptions::text from pg_user_mappings order by srvname"
    with connect(pair.primary.url()) as connection:
        before = connection.execute(options).fetchone()
        old = connection.execute(passwords).fetchall()
        assert migrate(pair.primary.url()) == []
        assert connection.execute(options).fetchone() == before
        new = connection.execute(passwords).fetchall()
        assert len(set(new)) == 1
        assert set(new) != set(old)
    catch_up(pair.primary, pair.standby)
    assert found(pair.standby.url()).state == "ok"


def test_a_stranger_asks_and_searches_on_the_standby(pair: Pair) -> None:
    """In one transaction of any level, and over one kept connection."""
    with connect(as_stranger(pair.standby.url())) as connection:
        assert ask(connection, "first") == pytest.approx(question_vector("first"), abs=1e-7)
        connection.execute("begin isolation level repeatable read")
        assert ask(connection, "second") == pytest.approx(question_vector("second"), abs=1e-7)
        ((key, similarity),) = connection.execute(SEARCH, ["passage of one"]).fetchall()
        assert key in (1, 2)
        assert similarity is not None
        (same,) = connection.execute("select embed.similarity('alike', 'alike')").fetchone() or (0,)
        assert same == pytest.approx(1, abs=1e-6)
        connection.execute("commit")
        with connect(pair.primary.url()) as primary:
            (kept,) = loopback_backends(primary)
            assert ask(connection, "third") == pytest.approx(question_vector("third"), abs=1e-7)
            assert loopback_backends(primary) == [kept]
            assert primary.execute("select count(*) from embed.question").fetchone() == (0,)
    with Client(as_stranger(pair.standby.url())) as client:
        assert client.search("article", "by a client")[0].similarity is not None
    assert asked(pair.primary, "by a client")


def test_a_question_without_an_answer_says_that_a_worker_lives(pair: Pair) -> None:
    """The standby does not see the lock that shows it, but its last sign of life."""
    with connect(pair.primary.url()) as primary:
        primary.execute("update embed.worker_session set seen_at = now()")
    catch_up(pair.primary, pair.standby)
    pair.runner.gate.clear()
    try:
        with connect(pair.standby.url()) as connection:
            connection.execute("set embed.query_timeout = '500ms'")
            said = refused(connection, "EW001", "select embed.query('not in time')")
            assert said.message_detail.startswith("Connected workers that answer questions: 1")
    finally:
        pair.runner.gate.set()


def test_the_plan_of_a_query_on_a_standby_asks_once(pair: Pair) -> None:
    before = pair.runner.encoded
    with connect(pair.standby.url()) as connection:
        connection.execute(
            "select id from article_embedding order by embedding <=> embed.query('for each row')"
        )
    assert pair.runner.encoded == before + 1


def test_who_can_use_the_way_and_read_its_password(pair: Pair) -> None:
    """What test_query_security attacks on a primary, on the standby and on the primary."""
    with connect(pair.primary.url()) as owner:
        grant_dblink(owner)
        assert owner.execute(
            "select srvowner = s.nspowner, srvacl is null from pg_foreign_server, pg_namespace s"
            " where nspname = 'embed' and srvname = 'embed_primary'"
        ).fetchone() == (True, True)
    catch_up(pair.primary, pair.standby)
    mine = "select umoptions::text from pg_user_mappings where srvname = 'embed_primary'"
    try:
        for cluster in pair.primary, pair.standby:
            with connect(as_stranger(cluster.url())) as stranger:
                assert stranger.execute(mine).fetchall() == [(None,)]
                refused(stranger, "42501", "select umoptions from pg_user_mapping")
                refused(stranger, "42704", "select embed.dblink_connect('mine', 'embed_primary')")
                for call in (
                    "select embed._loopback_check_primary()",
                    "select embed._loopback_primary('embed_primary')",
                    "select embed._loopback('x', 'm', 'query', '1s')",
                ):
                    refused(stranger, "42501", call)
        with connect(as_stranger(pair.standby.url())) as stranger:
            ask(stranger, "opens the way")
            over = "select * from embed.dblink('embed_primary', %s) as t (x text)"
            for attack in (
                "select rolpassword from pg_authid",
                "select text from embed.question",
                "select value from embed.setting",
                "select body from public.article",
                "select umoptions::text from pg_user_mapping",
            ):
                refused(stranger, "42501", over, attack)
            assert stranger.execute(over, [mine]).fetchall() == [(None,)]
            assert ask(stranger, "still") == pytest.approx(question_vector("still"), abs=1e-7)
    finally:
        with connect(pair.primary.url()) as owner:
            owner.execute("select embed._loopback_close_dblink()")


def test_what_others_ask_is_hidden_by_what_the_primary_shows(pair: Pair) -> None:
    """The standby shows 100 characters of a statement, the primary 4096."""
    with connect(pair.primary.url()) as holder, connect(pair.primary.url()) as watcher:
        holder.execute("begin; lock table embed.question in access exclusive mode")
        with ThreadPoolExecutor(1) as pool, connect(pair.standby.url()) as asker:
            answer = pool.submit(ask, asker, "비밀 질문 4711")
            shown = wait_until(
                lambda: watcher.execute(
                    "select query from pg_stat_activity where wait_event_type = 'Lock'"
                    " and application_name = 'embedworker question'"
                ).fetchall()
            )
            holder.execute("rollback")
            assert answer.result(30)
    assert [query.strip() for (query,) in shown] == [""]


def test_another_cluster_is_not_asked(pair: Pair, server: Cluster, database: str) -> None:
    """As after a restore into a new cluster, whose standby knows the host of the old one."""
    with connect(pair.primary.url()) as owner, connect(database) as other:
        ((login,),) = other.execute(
            "select umoptions from pg_user_mappings where srvname = 'embed_loopback'"
        ).fetchall()
        user, password = (option.partition("=")[2] for option in sorted(login, reverse=True))
        owner.execute(
            "alter server embed_primary options"
            f" (set host '127.0.0.1', set port '{server.port}', set dbname '{other.info.dbname}');"
            "alter user mapping for postgres server embed_primary"
            f" options (set user '{user}', set password '{password}')".encode()
        )
    catch_up(pair.primary, pair.standby)
    try:
        with connect(pair.standby.url()) as standby:
            said = refused(standby, "EW007", "select embed.query('not for strangers')")
            assert said.message_detail == "another server or database answered"
    finally:
        assert migrate(pair.primary.url(), primary_host=hosts(pair)) == []
        catch_up(pair.primary, pair.standby)


def test_a_connection_that_broke_is_made_again(pair: Pair) -> None:
    with connect(pair.standby.url()) as connection:
        ask(connection, "before the break")
        pair.proxy.reset()
        new = "after the break"
        assert ask(connection, new) == pytest.approx(question_vector(new), abs=1e-7)


def test_without_the_primary_the_words_rank(pair: Pair) -> None:
    with connect(pair.primary.url()) as primary:
        primary.execute("select embed.query('kept while it was there')")
    catch_up(pair.primary, pair.standby)
    heard: list[str | None] = []
    pair.proxy.cut()
    try:
        with connect(pair.standby.url()) as connection:
            said = refused(connection, "EW007", "select embed.query('nobody hears')")
            assert "127.0.0.1" in said.message_detail
            assert "pg_hba.conf" in said.message_hint
            connection.add_notice_handler(lambda d: heard.append(d.sqlstate))
            assert connection.execute(SEARCH, ["one"]).fetchall() == [(1, None)]
            assert heard == ["EW011"]
            assert ask(connection, "kept while it was there")
        finding = found(pair.standby.url())
        assert finding.state == "problem"
        assert "--primary-host" in (finding.advice or "")
    finally:
        pair.proxy.restore()
    assert found(pair.standby.url()).state == "ok"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("user:secret@db1", "names password, user"),
        ("db1/shop", "names dbname"),
        ("?sslmode=require", "names no host"),
        ("db1?what=1", "cannot be read"),
        ("[::1", "cannot be read"),
        ("db1?sslmode=on", "sslmode=on; expected disable, "),
    ],
)
def test_hosts_that_are_none(given: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        primary_options(given)
    assert "secret" not in str(caught.value)


def test_hosts_as_in_a_url() -> None:
    assert primary_options(" ") == {}
    assert primary_options("db1,[::1]:5433?sslmode=require") == {
        "host": "db1,::1",
        "port": ",5433",
        "sslmode": "require",
    }


def test_a_wrong_host_is_said_and_stored_and_can_be_taken_away(pair: Pair) -> None:
    options = "select srvoptions from pg_foreign_server where srvname = 'embed_primary'"
    (remark,) = migrate(pair.primary.url(), primary_host="host.invalid,other.invalid:7")
    assert "host.invalid" in remark
    with connect(pair.primary.url()) as connection:
        (stored,) = connection.execute(options).fetchone() or ([],)
        assert f"port={pair.primary.port},7" in stored
        assert migrate(pair.primary.url(), primary_host="") == []
        assert connection.execute(options).fetchone() is None
    assert migrate(pair.primary.url(), primary_host=hosts(pair)) == []
    catch_up(pair.primary, pair.standby)
    assert found(pair.standby.url()).state == "ok"


def test_a_session_that_asked_goes_on_after_the_promotion(pair: Pair, tmp_path: Path) -> None:
    """The old primary runs still, and its worker, but the new one asks its own."""
    workers = Workers(pair.standby.url(), tmp_path)
    with connect(pair.standby.url()) as connection:
        ask(connection, "while it was a standby")
        connection.execute("select pg_promote()")
        said = refused(connection, "EW007", "select embed.query('after the promotion')")
        assert said.message_detail == "another server or database answered"
        try:
            worker = workers.start(
                url=make_conninfo(pair.standby.url(), user="t_few", password="made up"),
                both_lanes=True,
            )
            wait_until(lambda: "leads to this server again" in worker.output(), 60)
            connection.execute("set embed.query_timeout = '30s'")
            new = "after the promotion"
            assert ask(connection, new) == pytest.approx(question_vector(new), abs=1e-7)
            ((_, similarity),) = connection.execute(SEARCH, ["found by meaning"]).fetchall()
            assert similarity is not None
        finally:
            workers.end()
    for text in ("after the promotion", "found by meaning"):
        assert asked(pair.standby, text)
        assert not asked(pair.primary, text)
