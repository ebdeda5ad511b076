"""The commands as a person runs them: what they do, print and say when something is wrong."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, embedworker
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typer.testing import CliRunner

from embedworker.cli.app import app
from embedworker.database.embedded.cluster import Cluster
from embedworker.model import BUNDLED_MODEL, DEFAULT_MODEL, catalog

ARTICLES = [
    ("자전거 펑크", "튜브를 꺼내 물에 담그고 구멍을 찾는다"),
    ("Bread", "Feed the starter once a week"),
    ("보일러", "오류 코드 E-119"),
]


@pytest.fixture
def articles(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The table ``article`` with three rows, not enabled yet."""
    connection.execute(
        "create table article (id bigint generated always as identity primary key,"
        " title text, content text, number integer)"
    )
    with connection.cursor() as cursor:
        cursor.executemany("insert into article (title, content) values (%s, %s)", ARTICLES)
    return connection


@pytest.fixture
def enabled(cli: Cli, articles: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The same, enabled and embedded."""
    cli.ok("enable", "article", "title", "content")
    cli.ok("run", "--once")
    return articles


def url_of(url: str, **changes: str) -> str:
    return make_conninfo(**{**conninfo_to_dict(url), **changes})


@pytest.fixture
def role(server: Cluster) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = "nobody_in_particular"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("create role {} login password 'secret-of-theirs'").format(sql.Identifier(name))
        )
    yield name
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


# Setting up


@pytest.mark.smoke
def test_migrate_sets_up_keeps_the_model_and_takes_out_again(bare_database: str) -> None:
    cli = Cli(bare_database)
    name = conninfo_to_dict(bare_database)["dbname"]
    assert cli.ok("migrate", "--model", "testing:hash") == f"migrating {name} … done\n"
    assert cli.ok("migrate") == f"migrating {name} … done\n"
    with psycopg.connect(bare_database) as connection:
        assert connection.execute("select embed.default_model()").fetchone() == ("testing:hash",)
    assert cli.ok("migrate", "--down") == f"taking embed out of {name} … done\n"
    assert "run `embedworker migrate`" in cli.refused("status")


def test_migrate_says_what_it_could_not_set_up(bare_database: str) -> None:
    said = Cli(bare_database)("migrate", "--loopback-host", "no-such-host.invalid")
    assert said.returncode == 0
    assert "note: the loopback host no-such-host.invalid" in said.stderr


def test_migrate_refuses_to_lose_documents(cli: Cli, connection: psycopg.Connection[Any]) -> None:
    connection.execute("insert into embed.document (content) values ('kept')")
    said = cli("migrate", "--down")
    assert said.returncode == 1
    assert said.stdout.endswith("FAILED\n")
    assert "embed.document" in said.stderr
    assert connection.execute("select content from embed.document").fetchall() == [("kept",)]


def test_migrate_names_the_models_when_it_does_not_know_one(bare_database: str) -> None:
    said = Cli(bare_database).refused("migrate", "--model", "nobody/nothing")
    assert "model 'nobody/nothing' is not known" in said
    assert "embed.add_model" in said


# Errors: each says what to do


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [
        ("mysql://localhost/shop", "expected postgresql://", 2),
        ("postgresql://me:se@cret@localhost/shop", "%40 for @", 2),
        (
            "postgresql://me:hidden@127.0.0.1:1/shop",
            "start the server, or correct host and port",
            1,
        ),
        ("postgresql://me:hidden@no-such-host.invalid/shop", "correct the host name", 1),
    ],
)
def test_a_wrong_url_or_a_server_that_is_down(url: str, said: str, code: int) -> None:
    error = Cli(url).refused("status", code=code)
    assert said in error
    assert "hidden" not in error
    assert "cret" not in error


def test_a_server_that_is_down_is_told_in_whole_sentences() -> None:
    error = Cli("postgresql://me@127.0.0.1:1/shop").refused("status")
    assert "accepting TCP/IP connections? What to do: start the server" in error


def test_a_wrong_password_or_database(cli: Cli) -> None:
    error = cli.refused("status", EMBEDWORKER_DATABASE_URL=url_of(cli.url, password="not-this"))
    assert "check user and password" in error
    assert "not-this" not in error
    error = cli.refused("status", EMBEDWORKER_DATABASE_URL=url_of(cli.url, dbname="not_there"))
    assert "create it or correct its name in the URL" in error


def test_a_missing_extension_that_the_role_may_not_create(bare_database: str, role: str) -> None:
    cli = Cli(url_of(bare_database, user=role, password="secret-of-theirs"))
    assert "as a superuser run: create extension vector" in cli.refused("migrate")
    assert "run `embedworker migrate`" in cli.refused("status")


def test_a_database_that_is_not_set_up(bare_database: str) -> None:
    with psycopg.connect(bare_database) as connection:
        connection.execute("create extension vector")
    for arguments in (["status"], ["enable", "x", "y"], ["sweep"], ["search", "x", "y"]):
        assert "run `embedworker migrate`" in Cli(bare_database).refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["artikle", "title"], "no table is named 'artikle'; did you mean article?"),
        (["nothing like it", "title"], "there are: article, embed.document, keyless"),
        (["x.y.z", "title"], "Write it as in SQL"),
        (["keyless", "content"], "keyless add primary key"),
        (["article", "titel"], "hint: Its text columns: title, content."),
        (
            ["article", "number"],
            "is of type integer, expected a text type",
        ),
        (["article", "title", "--model", "no/such"], f"Known: {min(catalog())}"),
        (["article", "title", "--into-column", "small"], "has 3 dimensions, but model"),
        (["article", "title", "--into-column", "none"], "hint: Add it: alter table"),
        (["article", "title", "--filter", "nonsense"], "filter 'nonsense' is not"),
        (["article", "title", "--key", "title"], "has no usable key"),
    ],
)
def test_what_cannot_be_enabled(
    cli: Cli, articles: psycopg.Connection[Any], arguments: list[str], said: str
) -> None:
    articles.execute("create table keyless (content text)")
    articles.execute("alter table article add column small vector(3)")
    error = cli.refused("enable", *arguments)
    assert said in error
    assert "hint: " in error


@pytest.mark.smoke
def test_hints_name_flags_as_the_command_line_has_them(
    cli: Cli, articles: psycopg.Connection[Any]
) -> None:
    articles.execute(
        "create table tagged (tags text[] primary key, body text);"
        "create table article_embedding (x integer)"
    )
    said = cli.refused("enable", "tagged", "body")
    assert "hint: Give another unique key with --key, or add one of a plain type." in said
    said = cli.refused("enable", "article", "title")
    assert "hint: Rename it, or run `embedworker enable` with another --name." in said


def test_a_model_of_other_dimensions_is_refused_and_the_vectors_stay(
    cli: Cli, enabled: psycopg.Connection[Any]
) -> None:
    error = cli.refused("enable", "article", "title", "content", "--model", "BAAI/bge-m3")
    assert "384" in error
    assert "1024" in error
    assert (
        "hint: To change the model while the old vectors answer: `embedworker switch start" in error
    )
    assert enabled.execute("select count(*) from article_embedding").fetchone() == (3,)


def test_a_table_that_is_in_use_is_not_waited_for_long(
    cli: Cli, articles: psycopg.Connection[Any]
) -> None:
    with articles.transaction():
        articles.execute("update article set title = title")
        error = cli.refused("enable", "article", "title")
    assert "end it (see pg_stat_activity)" in error


def test_wrong_use_exits_with_2(cli: Cli) -> None:
    for arguments in (
        ["search", "article", "x", "-k", "0"],
        ["enable", "article"],
        ["status", "--watch", "--json"],
        ["migrate", "--down", "--loopback-host", "x"],
        ["migrate", "--down", "--primary-host", "x"],
        ["no-such-command"],
    ):
        cli.refused(*arguments, code=2)
    assert "EMBEDWORKER_QUERY_TIMEOUT" in cli.refused(
        "status", code=2, EMBEDWORKER_QUERY_TIMEOUT="x"
    )


# A source's life


def test_enable_says_where_the_vectors_are_and_may_be_repeated(
    cli: Cli, articles: psycopg.Connection[Any]
) -> None:
    said = cli("enable", "article", "title", "content", "--template", "{title}: {content}")
    assert said.stdout == "enabling article (title, content) … done\nvectors:   article_embedding\n"
    assert "no worker is running" in said.stderr
    cli.ok("enable", "article", "title", "content", "--template", "{title}: {content}")
    assert articles.execute(
        "select columns, template from embed.source where relation = 'article'::regclass"
    ).fetchall() == [(["title", "content"], "{1}: {2}")]


@pytest.mark.smoke
def test_enable_passes_every_option_on(cli: Cli, articles: psycopg.Connection[Any]) -> None:
    articles.execute("alter table article add column code text not null default gen_random_uuid()")
    articles.execute("alter table article add unique (code)")
    articles.execute("alter table article add column place vector(384)")
    options = ["--name", "short", "--filter", "number is null", "--key", "code"]
    cli.ok("enable", "article", "title", *options, "--no-chunk", "--model", BUNDLED_MODEL)
    cli.ok("enable", "article", "title", "--into-column", "place")
    assert articles.execute(
        "select name, keys, filter is not null, chunk, model, into_column from embed.source"
        " where relation = 'article'::regclass order by id"
    ).fetchall() == [
        ("short", ["code"], True, False, BUNDLED_MODEL, None),
        ("article", ["id"], False, False, None, "place"),
    ]


def test_a_table_with_any_name(cli: Cli, connection: psycopg.Connection[Any]) -> None:
    connection.execute('create schema "O\'Brien & Söhne"')
    for name in ('"O\'Brien & Söhne"."Ärger ""100%"""', "text", '"user"'):
        connection.execute(
            f'create table {name} (id text primary key, "제목 %s" text)'.encode()  # as typed
        )
        connection.execute(f"insert into {name} values ('k 1', '층간소음')".encode())
        cli.ok("enable", name, "제목 %s")
    cli.ok("run", "--once")
    assert {row["embedded"] for row in cli.json("status")["sources"]} == {0, 1}
    with cli.worker():
        for name in ('"O\'Brien & Söhne"."Ärger ""100%"""', "public.text", '"user"'):
            (hit,) = cli.json("search", name, "층간소음")
            assert hit["key"] == {"id": "k 1"}
            assert hit["row"] == {"id": "k 1", "제목 %s": "층간소음"}


def test_disable_pause_and_resume(cli: Cli, enabled: psycopg.Connection[Any]) -> None:
    def state() -> list[str]:
        return [s["state"] for s in cli.json("status")["sources"] if s["source"] == "article"]

    assert cli.ok("pause", "article") == "pausing article … done\n"
    assert state() == ["paused"]
    assert cli.ok("resume", "article") == "resuming article … done\n"
    assert state() == ["no worker"]
    assert cli.ok("disable", "article") == "disabling article … done\n"
    assert state() == []
    assert enabled.execute("select count(*) from article_embedding").fetchone() == (3,)
    assert "article is not enabled" in cli.refused("pause", "article")
    cli.ok("enable", "article", "title", "content")
    cli.ok("disable", "article", "--drop-vectors")
    assert enabled.execute("select to_regclass('article_embedding')").fetchone() == (None,)


def test_sweep_finds_what_the_triggers_did_not_see_and_has_it_repaired(
    cli: Cli, enabled: psycopg.Connection[Any]
) -> None:
    clean = {"missing": 0, "stale": 0, "orphaned": 0}
    (found,) = cli.json("sweep", "article", "--check")
    assert found | clean == found
    with enabled.transaction():
        enabled.execute("set local session_replication_role = replica")
        enabled.execute("insert into article (title) values ('unseen'), ('unseen too')")
        enabled.execute("update article set title = 'changed' where id = 1")
        enabled.execute("delete from article where id = 2")
    (found,) = cli.json("sweep", "article", "--check", code=1)
    assert (found["missing"], found["stale"], found["orphaned"]) == (2, 1, 1)
    (again,) = cli.json("sweep", "article", "--check", code=1)
    assert again == found  # it only looked
    (repaired,) = cli.json("sweep", "article")
    assert repaired["queued"] == 4
    cli.ok("run", "--once")
    assert [s | clean == s for s in cli.json("sweep", "--check")] == [True, True]
    printed = cli.ok("sweep", "article", "--check")
    assert printed.split()[-6:] == ["article", "article", "8", "0", "0", "0"]


def test_sweep_before_any_worker_says_so(cli: Cli, articles: psycopg.Connection[Any]) -> None:
    assert articles
    cli.ok("enable", "article", "title")
    for arguments in (["sweep", "article"], ["sweep", "article", "--check"]):
        said = cli(*arguments)
        assert said.returncode == 1
        assert "article: no worker has run yet; start one with `embedworker run`" in said.stderr


def test_sweep_of_what_is_not_enabled(cli: Cli, articles: psycopg.Connection[Any]) -> None:
    assert articles
    assert "enable it with `embedworker enable article COLUMN`" in cli.refused("sweep", "article")


def test_failures_are_shown_and_tried_again(cli: Cli, enabled: psycopg.Connection[Any]) -> None:
    enabled.execute("update article set title = '<<fail>>' where id = 3")
    cli("run", "--once", EMBEDWORKER_MAX_ATTEMPTS="1")
    shown = " ".join(cli.ok("status").split())
    assert "66.6 %" in shown
    assert "article id=3: " in shown
    assert "given up after 1 attempts" in shown
    assert cli("status", "--check").returncode == 1
    report = cli.json("status")
    (failure,) = report["failures"]
    assert failure["key"] == {"id": 3}
    assert failure["dead"] is True
    (source,) = [s for s in report["sources"] if s["source"] == "article"]
    assert (source["rows"], source["embedded"], source["dead"]) == (3, 2, 1)
    assert source["coverage"] < 1
    assert cli.ok("retry", "article") == "article: 1 row to try again\n"
    assert cli.ok("retry") == "embed.document: 0 rows to try again\narticle: 1 row to try again\n"


def test_status_with_a_live_worker(cli: Cli, enabled: psycopg.Connection[Any]) -> None:
    assert enabled
    with cli.worker() as process:
        report = cli.json("status", "--check")
        shown = cli.ok("status")
    assert {source["state"] for source in report["sources"]} == {"ready"}
    assert {source["coverage"] for source in report["sources"]} == {1.0}
    assert sorted(lane for worker in report["workers"] for lane in worker["lanes"]) == [
        "passages",
        "questions",
    ]
    assert process.pid in {worker["pid"] for worker in report["workers"]}
    assert "100 %" in shown
    assert "no worker is running; start one with `embedworker run`" in cli.ok("status")


# Searching


@pytest.mark.smoke
def test_search_finds_rows(cli: Cli, enabled: psycopg.Connection[Any]) -> None:
    assert enabled
    with cli.worker():
        hits = cli.json("search", "article", "보일러\n오류 코드 E-119", "-k", "2")
        said = cli("search", "article", "보일러\n오류 코드 E-119", "-k", "1")
    assert len(hits) == 2
    assert {hit["key"]["id"] for hit in hits} <= {1, 2, 3}
    assert hits[0]["score"] >= hits[1]["score"]
    by_id = {hit["key"]["id"]: hit for hit in hits}
    for number, hit in by_id.items():
        title, content = ARTICLES[number - 1]
        assert hit["row"]["title"] == title
        assert hit["passage"] == f"{title}\n{content}"
    assert ARTICLES[hits[0]["key"]["id"] - 1][0] in said.stdout
    assert said.stderr == ""


def test_search_without_a_worker_says_so_within_its_time(
    cli: Cli, enabled: psycopg.Connection[Any], articles: psycopg.Connection[Any]
) -> None:
    assert enabled
    started = time.monotonic()
    said = cli("search", "article", "anything", EMBEDWORKER_QUERY_TIMEOUT="1")
    assert time.monotonic() - started < 15
    assert said.returncode == 0
    assert "the words alone rank the rows: EW001: no worker that answers questions" in said.stderr
    assert "no row of article has a word of the question" in said.stderr
    articles.execute("create table untouched (id int primary key, words text)")
    cli.ok("enable", "untouched", "words")
    assert "Start a worker: embedworker run." in cli.refused("search", "untouched", "anything")


def test_search_where_questions_have_no_road_inside_the_server(
    cli: Cli, enabled: psycopg.Connection[Any]
) -> None:
    enabled.execute(
        "insert into embed.setting (name, value) values ('loopback_problem', 'no dblink here')"
    )
    with cli.worker():
        hits = cli.json("search", "article", "anything", "-k", "3")
    assert len(hits) == 3
    said = cli("search", "article", "something else", EMBEDWORKER_QUERY_TIMEOUT="0.5")
    assert said.returncode == 0
    assert "the words alone rank the rows: EW007: questions cannot reach a worker" in said.stderr


def test_a_role_that_may_only_read_searches_and_is_refused_the_rest(
    cli: Cli, enabled: psycopg.Connection[Any], role: str
) -> None:
    enabled.execute(f"grant select on article, article_embedding to {role}".encode())
    try:
        reader = Cli(url_of(cli.url, user=role, password="secret-of-theirs"))
        with cli.worker():
            assert len(reader.json("search", "article", "anything")) == 3
        enabled.execute("create schema locked; create table locked.box (id int)")
        said = reader.refused("enable", "locked.box", "title")
        assert 'As its owner: grant usage on schema "locked" to' in said
        assert "may not use embed.enable" in reader.refused("enable", "article", "title")
        assert "grant embed_monitor to" in reader.refused("status")
        assert "permission denied" in reader.refused("run", "--once")
    finally:
        enabled.execute(f"drop owned by {role}".encode())


# Models and help


def test_models_shows_the_whole_catalogue(tmp_path: Path) -> None:
    environment = {"HF_HUB_CACHE": str(tmp_path), "EMBEDWORKER_CACHE_DIR": str(tmp_path)}
    rows = Cli("").json("models", **environment)
    assert [row["name"] for row in rows] == list(catalog())
    by_name = {row["name"]: row for row in rows}
    assert by_name[DEFAULT_MODEL]["default"] is True
    assert by_name[DEFAULT_MODEL]["available"] == "hub"
    assert by_name[BUNDLED_MODEL]["available"] == "bundled"
    assert by_name[BUNDLED_MODEL]["query_prefix"] == "query: "
    shown = embedworker("models", **environment).stdout
    assert all(name in shown for name in catalog())


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("enable", "embedworker enable [OPTIONS] TABLE COLUMN..."),
        ("sweep", "embedworker sweep [OPTIONS] [TABLE]"),
        ("retry", "embedworker retry [OPTIONS] [TABLE]"),
        ("run", "embedworker run [OPTIONS]"),
    ],
)
@pytest.mark.smoke
def test_usage_is_written_as_everywhere(command: str, usage: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], prog_name="embedworker").output
    assert usage in map(str.strip, shown.replace("Usage: ", "").splitlines())


@pytest.mark.smoke
def test_help_answers_without_loading_what_is_heavy() -> None:
    said = embedworker("--help", PYTHONPROFILEIMPORTTIME="1")
    assert said.returncode == 0
    for name in ("demo", "migrate", "enable", "run", "search", "status", "sweep", "models", "db"):
        assert f" {name} " in said.stdout
    for heavy in ("torch", "sqlalchemy", "psycopg", "pydantic", "numpy"):
        assert f"| {heavy}\n" not in said.stderr
