"""A missing right is named, with the statement that gives it; each hint is followed and helps."""

import re
from collections.abc import Iterator

import psycopg
import pytest
from fix_roles import as_login, database_with_logins
from psycopg import errors

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.queue.source import Connection

LOGINS = {"owner": "embed_admin", "stranger": None, "reader": None}


@pytest.fixture(scope="module")
def url(server: Cluster, template: str) -> Iterator[str]:
    with database_with_logins(server, template, LOGINS) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                f"""
                create schema shop authorization t_owner;
                revoke temporary on database {connection.info.dbname} from public;
                grant temporary on database {connection.info.dbname} to t_owner;
                set role t_owner;
                create table shop.person (id int primary key, bio text, name text);
                create table shop.more (id int primary key, bio text);
                insert into shop.person values (1, 'one', 'Anna');
                select embed.enable('shop.person', array['bio']);
                insert into shop.person_embedding (id, passage_start, passage_end, embedding,
                    fingerprint, hash, checksum, seq)
                select 1, 0, 3, array_fill(1, array[384])::vector, 1, '', '', 1;
                grant usage on schema shop to t_reader;
                grant select (bio) on shop.person to t_reader;
                """.encode()
            )
        yield url


@pytest.fixture
def superuser(url: str) -> Iterator[Connection]:
    """In a transaction that is taken back."""
    with connect(url) as connection:
        connection.execute("begin")
        yield connection
        connection.execute("rollback")


def attempt(superuser: Connection, login: str, call: str) -> psycopg.Error | None:
    superuser.execute(f"savepoint before; set local role t_{login}".encode())
    try:
        superuser.execute(call.encode())
    except psycopg.Error as error:
        superuser.execute("rollback to before")
        return error
    superuser.execute("reset role")
    return None


def follow_hints(superuser: Connection, login: str, call: str) -> list[str]:
    """Call as t_LOGIN, and give what is said to be missing until the call works."""
    given: list[str] = []
    while isinstance(error := attempt(superuser, login, call), errors.InsufficientPrivilege):
        assert (error.diag.message_primary or "").startswith(f"the role t_{login} ")
        statement = re.search(r"grant .*;$", error.diag.message_hint or "")
        assert statement, error
        assert statement[0] not in given
        if statement[0] == ADMIN:
            assert (error.diag.message_hint or "").startswith(TRUSTED)
        superuser.execute(statement[0].encode())
        given.append(statement[0])
    # Nobody is there to embed anything.
    assert error is None or error.sqlstate in ("EW001", "EW007"), error
    return given


ADMIN = "grant embed_admin to t_stranger;"
TRUSTED = (
    "Members of embed_admin are trusted with all embedding in this database. Have a superuser "
)
MONITOR = "grant embed_monitor to t_stranger;"
OWNER = "grant t_owner to t_stranger;"
USAGE = "grant usage on schema shop to t_stranger;"
ROWS = "grant select (id, bio, name) on shop.person to t_stranger;"
VECTOR = "array_fill(1, array[384])::vector"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("select embed.enable({more}, array['bio'])", [ADMIN, OWNER]),
        ("select embed.disable({person})", [ADMIN, OWNER]),
        ("select embed.pause({person})", [ADMIN, OWNER]),
        ("select embed.resume({person})", [ADMIN, OWNER]),
        ("select embed.retry({person})", [ADMIN, OWNER]),
        ("select embed.set_lexical({person}, 0.5)", [ADMIN, OWNER]),
        ("select embed.sweep({person})", [ADMIN, OWNER]),
        ("select embed.add_model('x/y', 384)", [ADMIN]),
        ("select embed.use_model(embed.default_model())", [ADMIN]),
        ("select embed.use_reranker(embed.reranker())", [ADMIN]),
        ("select embed.limit_questions(9)", [ADMIN]),
        ("select * from embed.status", [MONITOR]),
        ("select * from embed.status_exact()", [MONITOR]),
        ("select * from embed.failure", [MONITOR]),
        ("select * from embed.worker", [MONITOR]),
        ("select * from embed.doctor()", [MONITOR]),
        ("select embed.search(null::shop.person, 'x')", [USAGE, ROWS]),
        (f"select embed.search(null::shop.person, {VECTOR})", [USAGE, ROWS]),
        ("select embed.similar(null::shop.person, 1)", [USAGE, ROWS]),
    ],
)
def test_the_hint_gives_the_right(superuser: Connection, call: str, expected: list[str]) -> None:
    # By number, because a name in a schema that the role may not use is refused by PostgreSQL.
    oids = superuser.execute(
        "select 'shop.person'::regclass::oid, 'shop.more'::regclass::oid"
    ).fetchone()
    assert oids is not None
    person, more = (f"{oid}::regclass" for oid in oids)
    call = call.format(person=person, more=more)
    if "null::shop" in call:
        superuser.execute("grant usage on schema shop to t_stranger")
        expected = expected[1:]
    assert follow_hints(superuser, "stranger", call) == expected


# For the login of the loopback only.
INTERNAL = {"ask", "await"}


def test_no_refusal_is_the_servers_own(superuser: Connection, url: str) -> None:
    """Every function and view that a user is told of, called by somebody without any right."""
    functions = superuser.execute(
        """
        select p.proname, array(
            select format('null::%%s', case t.typname when 'anyelement' then 'embed.document'
                when 'anycompatible' then 'integer' else format_type(t.oid, null) end)
            from unnest(p.proargtypes::oid[]) with ordinality as a (type, place)
            join pg_type t on t.oid = a.type
            order by a.place
        )
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace and p.proname !~ '^(_|source_[0-9])'
        and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
        and p.proname <> all (%s)
        """,
        [list(INTERNAL)],
    ).fetchall()
    assert len(functions) > 20
    calls = [f"select embed.{name}({', '.join(nulls)})" for name, nulls in functions]
    calls += [f"select * from embed.{view}" for view in ("status", "failure", "worker")]
    raw = []
    refused = 0
    with connect(as_login(url, "stranger")) as stranger:
        for call in calls:
            try:
                stranger.execute(call.encode())
            except psycopg.Error as error:
                refused += 1
                raw += [f"{call}: {error}"] if not error.diag.message_hint else []
    assert raw == []
    assert refused > 15


def test_a_superusers_role_is_not_given_away(superuser: Connection) -> None:
    """Whoever is a member of it can become a superuser."""
    superuser.execute("grant embed_admin to t_stranger")
    for call in ("select embed.restrict_questions()", "select embed.pause('embed.document')"):
        error = attempt(superuser, "stranger", call)
        assert error is not None
        assert error.diag.message_hint == "Ask postgres or another superuser to do it."


def test_a_filter_needs_a_temporary_table(superuser: Connection) -> None:
    superuser.execute("grant embed_admin, t_owner to t_stranger")
    superuser.execute(f"revoke temporary on database {superuser.info.dbname} from t_owner".encode())
    call = "select embed.enable('shop.more', array['bio'], filter => 'id > 0')"
    assert follow_hints(superuser, "stranger", call) == [
        f"grant temporary on database {superuser.info.dbname} to t_stranger;"
    ]


def test_the_table_of_vectors_needs_a_place(superuser: Connection) -> None:
    superuser.execute("grant embed_admin, t_owner to t_stranger")
    superuser.execute("alter schema shop owner to postgres; grant usage on schema shop to t_owner")
    assert follow_hints(
        superuser, "stranger", "select embed.enable('shop.more', array['bio'])"
    ) == ["grant create on schema shop to t_stranger;"]


@pytest.mark.parametrize("call", ["embed.query('x')", "embed.similarity('x', 'y')"])
def test_questions_that_are_left_to_members(superuser: Connection, call: str) -> None:
    superuser.execute("select embed.restrict_questions()")
    given = follow_hints(superuser, "stranger", f"select {call}")
    assert given == ["grant embed_search to t_stranger;"]


def test_a_search_without_rights_asks_nobody(url: str) -> None:
    """It waited five seconds for a worker, and blamed that one."""
    with (
        connect(as_login(url, "reader")) as reader,
        pytest.raises(
            errors.InsufficientPrivilege,
            match="may not read id, name: permission denied for table person",
        ),
    ):
        reader.execute("select embed.search(null::shop.person, 'x')")


def test_keys_are_as_secret_as_in_the_table(url: str, superuser: Connection) -> None:
    """Whoever may read the text alone read the keys beside the vectors."""
    columns = ("id", "chunk, embedding", "count(*)")
    with connect(as_login(url, "reader")) as reader:
        for column in columns:
            with pytest.raises(
                errors.InsufficientPrivilege,
                match="may not read id: permission denied for table person",
            ):
                reader.execute(f"select {column} from shop.person_embedding".encode())
    for column in columns:
        superuser.execute("savepoint s")
        call = f"select {column} from shop.person_embedding"
        assert follow_hints(superuser, "reader", call) == [
            "grant select (id) on shop.person to t_reader;"
        ]
        superuser.execute("rollback to s")
