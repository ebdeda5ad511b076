"""``embed.doctor()``: well where all is well, and each trouble found and told apart."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, source_of
from psycopg.conninfo import make_conninfo
from waiting import wait_until

from embedworker.database.migrate import migrate
from embedworker.database.rows import fetch_one

Findings = dict[str, tuple[str, str, str | None]]


@pytest.fixture
def article(app: Connection, drain: Drain) -> Connection:
    app.execute("create table article (id int primary key, title text)")
    app.execute("insert into article values (1, 'one'), (2, 'two')")
    app.execute("select embed.enable('article', array['title'])")
    assert drain() == []
    return app


def findings(connection: Connection, subject: str = "shop.article") -> Findings:
    rows = connection.execute(
        'select "check", state, detail, advice from embed.doctor() where subject = %s', [subject]
    ).fetchall()
    return {check: (state, found, advice) for check, state, found, advice in rows}


def troubles(connection: Connection, subject: str = "shop.article") -> dict[str, str]:
    return {c: state for c, (state, _, _) in findings(connection, subject).items() if state != "ok"}


def is_old(connection: Connection) -> bool:
    """Whether pgvector is older than 0.8.4, as beside PostgreSQL 15 and 17 of Debian."""
    (version,) = fetch_one(
        connection.execute("select extversion from pg_extension where extname = 'vector'")
    )
    return tuple(map(int, version.split("."))) < (0, 8, 4)


def test_a_table_that_is_well(article: Connection) -> None:
    found = findings(article)
    assert {check: state for check, (state, _, _) in found.items()} == dict.fromkeys(
        [
            *["table", "triggers", "model", "queue"],
            "dead rows",
            "fingerprints",
            "index",
            "size",
            "sweep",
        ],
        "ok",
    )
    assert found["queue"][1] == "2 of 2 rows embedded, 0 wait, the oldest for -"
    assert all(advice is None for _, _, advice in found.values())
    assert troubles(article, "database") == ({"pgvector": "warning"} if is_old(article) else {})


@pytest.mark.parametrize("name", [None, "second"])
def test_a_table_of_another_model_than_the_default_one(
    article: Connection, name: str | None
) -> None:
    """embed.query without ``of`` gives a vector that the server compares without an error."""
    article.execute("create table note (id int primary key, body text)")
    article.execute("select embed.add_model('equal', 384), embed.add_model('wide', 512)")
    enable = "select embed.enable('note', '{body}', name => %s, model => %s)"
    subject = "shop.note" + (f" ({name})" if name else "")
    article.execute(enable, [name, "equal"])
    state, found, advice = findings(article, subject)["questions"]
    assert (state, found.endswith("cannot be compared with these")) == ("warning", True)
    named = re.search(r"of => '(.+?)'\)", advice or "")
    assert named
    asked = article.execute("select embed._model_of(%s)", [named[1]]).fetchone()
    assert asked == ("equal",)
    article.execute("select embed.disable('note', drop_vectors => true, name => %s)", [name])
    article.execute(enable, [name, "wide"])
    assert "questions" not in findings(article, subject), "the server refuses to compare these"
    assert "questions" not in findings(article)


@pytest.mark.parametrize(
    ("statement", "check", "state", "advice"),
    [
        ("alter table article disable trigger all", "triggers", "problem", "enable trigger embed_"),
        (
            "alter table article disable trigger user",
            "triggers",
            "problem",
            "embed.sweep('shop.article",
        ),
        (
            "do $$ begin execute (select format('drop trigger %I on article', tgname)"
            " from pg_trigger where tgrelid = 'article'::regclass limit 1); end $$",
            "triggers",
            "problem",
            "puts them back",
        ),
        ("select embed.pause('article')", "queue", "warning", "embed.resume('shop.article')"),
        (
            "update article_embedding set fingerprint = 0 where id = 1",
            "fingerprints",
            "warning",
            "computes them again",
        ),
        (
            "update embed.source set created_at = now() - interval '9 days';"
            " update embed.sweep_state set finished_at = now() - interval '8 days'",
            "sweep",
            "warning",
            "every night",
        ),
    ],
)
def test_trouble_is_found(
    article: Connection, statement: str, check: str, state: str, advice: str
) -> None:
    article.execute(statement.encode())
    assert troubles(article) == {check: state}
    said = findings(article)[check][2]
    assert said is not None
    assert advice in said


def test_advice_on_triggers_can_be_followed_by_an_owner(app: Connection, drain: Drain) -> None:
    """No superuser, so not those of foreign keys; partitions have some of their own."""
    app.execute(
        """
        create table author (id int primary key);
        create table "Book" (id int primary key, author int references author, title text)
            partition by range (id);
        create table book_1 partition of "Book" for values from (0) to (100);
        select embed.enable('"Book"', array['title']);
        create role t_bookseller;
        grant usage on schema shop to t_bookseller;
        alter table "Book" owner to t_bookseller;
        alter table book_1 owner to t_bookseller;
        """
    )
    try:
        assert drain() == []
        app.execute('alter table "Book" disable trigger user')
        app.execute("insert into \"Book\" values (1, null, 'missed')")
        state, detail, advice = findings(app, 'shop."Book"')["triggers"]
        assert state == "problem"
        assert "_row on shop.book_1" in detail
        assert advice is not None
        enable, sweep = advice.removeprefix("As the owner: ").split(" then ")
        app.execute("set role t_bookseller")
        app.execute(enable.encode())
        app.execute("reset role")
        assert troubles(app, 'shop."Book"').keys() == set()
        assert app.execute(sweep.partition(",")[0].encode()).rowcount == 1
        assert drain() == []
        found = app.execute('select title from "Book" join "Book_embedding" using (id)')
        assert found.fetchall() == [("missed",)]
    finally:
        app.execute(
            'reset role; drop table "Book" cascade;'
            "drop owned by t_bookseller; drop role t_bookseller"
        )


def test_a_stored_error_is_told_with_what_to_do(article: Connection, drain: Drain) -> None:
    article.execute(
        "create function shop.refuse() returns trigger language plpgsql as"
        " $$ begin raise 'no vectors on Sundays' using hint = 'Wait for Monday.'; end $$;"
        "create trigger refuse before insert or update on article_embedding"
        " execute function shop.refuse();"
        "update article set title = 'other'"
    )
    assert drain() != []
    state, detail, advice = findings(article)["table"]
    assert (state, detail) == ("problem", "no vectors on Sundays")
    assert advice is not None
    assert advice.startswith("Wait for Monday. That is how the work of a worker on it ended")


def test_what_an_obstacle_says_to_do_is_the_advice(article: Connection) -> None:
    article.execute("alter table article alter id type bigint")
    assert findings(article)["table"] == (
        "problem",
        "the key of shop.article changed its type, id from integer to bigint",
        "call embed.disable('shop.article', name => 'article', drop_vectors => true) and enable"
        " it again",
    )


def test_a_model_that_no_worker_has_loaded(article: Connection) -> None:
    article.execute("update embed.source_state set fingerprint = null")
    assert troubles(article)["model"] == "warning", "the worker has only just started"
    article.execute("update embed.worker_session set started_at = now() - interval '1 h'")
    assert troubles(article)["model"] == "problem"


def test_columns_that_are_gone(article: Connection) -> None:
    article.execute("alter table article drop column title")
    found = findings(article)
    assert [*found] == ["table"]
    assert found["table"][0] == "problem"
    assert "dropped" in found["table"][1]


def test_vectors_that_are_gone_hide_nothing_of_others(article: Connection, drain: Drain) -> None:
    article.execute("create table note (id int primary key, title text)")
    article.execute("select embed.enable('note', array['title'])")
    assert drain() == []
    article.execute("drop table article_embedding cascade")
    assert troubles(article) == {"table": "problem"}
    assert troubles(article, "shop.note") == {}
    article.execute("select embed.disable('article')")


def test_a_lost_state_is_made_by_migrate(article: Connection, shared_database: str) -> None:
    """Its worker moved no row, and nothing said why."""
    article.execute("delete from embed.source_state")
    assert findings(article)["table"] == (
        "problem",
        "embed.source_state has no row of shop.article",
        "run `embedworker migrate`, which makes it",
    )
    migrate(shared_database)
    article.execute("select embed._refresh(id) from embed.source")
    assert findings(article)["table"][0] == "ok"


def test_dead_rows(article: Connection) -> None:
    article.execute(
        "do $$ declare n int := (select id from embed.source where name = 'article'); begin"
        " execute format('insert into embed.queue_%s (k1, seq, due, error) values"
        " (2, 1, ''infinity'', ''too hard'')', n); end $$"
    )
    assert troubles(article)["dead rows"] == "problem"
    advice = findings(article)["dead rows"][2]
    assert advice is not None
    assert "embed.retry('shop.article')" in advice


def test_invalid_index(article: Connection) -> None:
    article.execute(
        "create index broken on article_embedding using hnsw (embedding vector_cosine_ops);"
        " update pg_index set indisvalid = false where indexrelid = 'broken'::regclass"
    )
    state, found, advice = findings(article)["index"]
    assert (state, found) == ("problem", "invalid")
    assert advice is not None
    for statement in advice[advice.index("drop index") :].split(";")[:-1]:
        article.execute(statement.encode())
    assert findings(article)["index"][:2] == ("ok", "valid")


def test_a_build_that_fails(article: Connection) -> None:
    article.execute(
        "update embed.source_state t set index_state = 'failed: out of memory' from embed.source s"
        " where s.id = t.source and s.name = 'article'"
    )
    state, found, advice = findings(article)["index"]
    assert (state, found) == (
        "problem",
        "none for 2 vectors: every search reads all of them; failed: out of memory",
    )
    assert advice is not None
    article.execute(advice[advice.index("create index") :].encode())
    assert findings(article)["index"][:2] == ("ok", "valid")


def test_index_that_a_large_table_lacks_or_does_not_use(article: Connection) -> None:
    article.execute(
        "insert into article_embedding"
        " select i, 0, 0, 1, false, (select embedding from article_embedding where id = 1), null,"
        "  (select fingerprint from article_embedding where id = 1), 'x', 'x', 1"
        " from generate_series(3, 10010) i"
    )
    state, found, advice = findings(article)["index"]
    assert state == "warning"
    assert found == "none for 10010 vectors: every search reads all of them"
    assert advice is not None
    article.execute(advice[advice.index("create index") :].replace("concurrently ", "").encode())
    assert findings(article)["index"][:2] == ("ok", "valid and used")
    article.execute("set enable_indexscan = off")
    assert findings(article)["index"][:2] == ("warning", "valid, but the planner does not use it")
    article.execute("reset enable_indexscan")


def test_sizes_are_told_and_an_index_that_does_not_fit(article: Connection) -> None:
    article.execute(
        "create index mine on article_embedding using hnsw (embedding vector_cosine_ops)"
    )
    article.execute("vacuum analyze article_embedding")
    page = 8192
    in_status = "select storage, row_bytes, index_bytes from embed.status where name = 'article'"
    assert article.execute(in_status.encode()).fetchone() == ("vector", page // 2, 2 * page)
    state, found, advice = findings(article)["size"]
    assert (state, advice) == ("ok", None)
    assert found.startswith("vector, 4096 bytes a row; index 16 kB, shared_buffers ")
    assert "; the next build takes 8197 kB of memory, maintenance_work_mem is " in found
    with article.transaction() as attempt:  # as if it had 800 GB
        article.execute("update pg_class set relpages = 100000000 where oid = 'mine'::regclass")
        state, found, advice = findings(article)["size"]
        assert state == "warning"
        assert advice is not None
        article.execute(advice[advice.index("select ") :].encode())
        assert article.execute("select count(*) from embed.switch").fetchone() == (1,)
        raise psycopg.Rollback(attempt)


def test_a_pgvector_whose_vacuum_damages_an_index(app: Connection) -> None:
    for version, state in (("0.8.3", "warning"), ("0.8.4", "ok"), ("0.9.0", "ok")):
        with app.transaction() as attempt:
            app.execute(
                "update pg_extension set extversion = %s where extname = 'vector'", [version]
            )
            found = findings(app, "database")["pgvector"]
            # An older one than there is to be had is a warning of its own.
            if state == "ok":
                assert "damage" not in found[1]
            else:
                assert found[0] == state
                assert "in which a vacuum can damage an HNSW index" in found[1]
                assert "alter extension vector update" in str(found[2])
            raise psycopg.Rollback(attempt)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("alter", "check", "state"),
    [
        ("set default_transaction_read_only = on", "server", "problem"),
        ("delete from embed.setting where name = 'loopback'", "embed.query", "problem"),
    ],
)
def test_trouble_of_the_database(app: Connection, alter: str, check: str, state: str) -> None:
    app.execute(alter.encode())
    subject = "database" if check == "server" else "questions"
    assert findings(app, subject)[check][0] == state
    assert findings(app, subject)[check][2]


@pytest.fixture
def restored(app: Connection) -> Iterator[None]:
    app.execute("create temporary table kept as select * from embed.setting")
    yield
    app.execute("set default_transaction_read_only = off")
    app.execute("insert into embed.setting select * from kept on conflict do nothing")


@pytest.mark.parametrize(
    "switch",
    [
        "set default_transaction_read_only = on",
        "alter database {database} set default_transaction_read_only = on",
        "alter role t_reader set default_transaction_read_only = on",
        "alter role t_reader in database {database} set default_transaction_read_only = on",
        "alter system set default_transaction_read_only = on; select pg_reload_conf()",
    ],
)
def test_a_database_that_takes_no_writes_is_no_standby(database: str, switch: str) -> None:
    """Its advice is followed as it stands; in the next session the check is well."""
    with (
        psycopg.connect(database, autocommit=True) as boss,
        login(database, "t_reader", "superuser") as first,
    ):
        again = make_conninfo(database, user="t_reader", password="made up")
        switch = switch.format(database=boss.info.dbname)
        try:
            for statement in switch.split("; "):
                (first if switch.startswith("set ") else boss).execute(statement.encode())
            with psycopg.connect(again, autocommit=True) as second:
                reader = first if switch.startswith("set ") else second
                wait_until(
                    lambda: reader.execute("show transaction_read_only").fetchone() == ("on",), 10
                )
                state, detail, advice = findings(reader, "database")["server"]
                assert state == "problem"
                assert detail.endswith(", default_transaction_read_only is on")
                for statement in re.findall(r"((?:set|alter|reset|select) [^;]*);", advice or ""):
                    reader.execute(statement.encode())
            reader = first if switch.startswith("set ") else psycopg.connect(again, autocommit=True)
            with reader:
                wait_until(lambda: findings(reader, "database")["server"][0] == "ok")
        finally:
            boss.execute("set default_transaction_read_only = off")
            boss.execute("alter system reset default_transaction_read_only")
            boss.execute("select pg_reload_conf()")


@contextmanager
def login(url: str, name: str, *grants: str) -> Iterator[Connection]:
    """A session of a login of its own, which has the given rights and no others."""
    with psycopg.connect(url, autocommit=True) as boss:
        boss.execute(f"create role {name} login password 'made up' {' '.join(grants)}".encode())
        try:
            with psycopg.connect(
                make_conninfo(url, user=name, password="made up"), autocommit=True
            ) as connection:
                yield connection
        finally:
            boss.execute(f"drop owned by {name}; drop role {name}".encode())


def held_up(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute(
        "select detail, advice from embed.doctor() where \"check\" = 'locks' and state = 'problem'"
    ).fetchall()


@pytest.mark.slow
def test_a_stranger_who_holds_a_lock_of_the_worker(
    article: Connection, shared_database: str
) -> None:
    source = source_of(article, "article").id
    with login(shared_database, "t_intruder") as intruder:
        intruder.execute("set application_name = 'psql'")
        intruder.execute("select pg_advisory_lock(1701667430, %s)", [source])
        intruder.execute("select pg_advisory_lock(1701667428, 3)")
        intruder.execute("select pg_advisory_lock(4711, 1)")
        ((detail, advice),) = wait_until(lambda: held_up(article), 30)
        pid = intruder.info.backend_pid
        assert detail.startswith(
            f"process {pid} (role t_intruder, application 'psql') holds up"
            " embedworker migrate, sweeps of shop.article, at least since 2"
        )
        assert f"select pg_terminate_backend({pid})" in advice
        with login(shared_database, "t_looker", "in role embed_worker") as looker:
            ((seen, _),) = held_up(looker)  # a stranger's sessions are not for it to see into
            assert seen + ", at least since" == detail[: len(seen) + 16]


@pytest.mark.slow
def test_ordinary_holders_of_locks(article: Connection, shared_database: str) -> None:
    """A worker, a transaction that wakes workers, and a sweep from the command line: no trouble."""
    with (
        closing(Lane(shared_database)) as lane,
        login(shared_database, "t_clerk") as clerk,
        login(shared_database, "t_mate", "in role embed_worker") as mate,
        login(shared_database, "t_looker", "in role embed_worker") as looker,
    ):
        number = source_of(article, "article").id
        lane.connection.execute("select pg_advisory_lock(1701667432, %s)", [number])
        clerk.execute("begin; select pg_advisory_xact_lock(1701667428, 1)")
        mate.execute("set application_name = 'embedworker cli'")
        mate.execute("select pg_advisory_lock(1701667430, %s)", [number])
        # Had it been trouble, it would be after ten seconds.
        held = "select now() - state_change > interval '11 s' from pg_stat_activity where pid = %s"
        pid = mate.info.backend_pid
        wait_until(lambda: article.execute(held, [pid]).fetchone() == (True,), 30)
        for reader in (article, looker):
            assert held_up(reader) == []
        clerk.execute("commit; select pg_advisory_lock(1701667428, 1)")
        ((detail, _),) = wait_until(lambda: held_up(article), 30)
        assert "holds up waking workers up" in detail


def test_a_superuser_works_on_tables_of_others(article: Connection, shared_database: str) -> None:
    """What their owners put on them would run with its rights; a login of its own is the advice."""
    with closing(Lane(shared_database)) as lane:
        lane.connection.execute(
            "update embed.worker_session set lock_held = true where id = %s", [lane.worker.id]
        )
        lane.connection.execute("select pg_advisory_lock(1701667429, %s)", [lane.worker.id])
        boss = lane.connection.info.user
        assert findings(article, "workers")["login"] == ("ok", boss, None)
        article.execute("create role t_bookseller; alter table article owner to t_bookseller")
        try:
            state, detail, advice = findings(article, "workers")["login"]
            assert (state, detail) == (
                "warning",
                f"workers log in as the superuser {boss},"
                " and shop.article belongs to a role that is none",
            )
            assert advice is not None
            assert "in role embed_worker" in advice
        finally:
            article.execute("drop owned by t_bookseller cascade; drop role t_bookseller")
    assert "login" not in findings(article, "workers"), "no worker whose login can be seen"
