"""Who may read vectors: whoever may read the text they are made of, by what the source says now."""

import numpy as np
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter, role, word_vector
from psycopg import errors

from embedworker.database.migrate import migrate

MANY = 5000


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    connection.execute("create table article (id int primary key, tenant text, title text)")
    connection.execute("insert into article values (1, 'a', 'one'), (2, 'b', 'two')")
    connection.execute("select embed.enable('article', array['title'])")
    vectors.embed("article")
    return connection


@pytest.fixture
def counted(article: Connection) -> Connection:
    """The same, whose words were counted."""
    article.execute(
        "insert into embed.lexical_state (source, version, passages, average_length, token)"
        " select id, 1, 2, 1, 'made up' from embed.source where name = 'article'"
    )
    with role(article, "select on article"):
        assert article.execute("select token from embed.lexical_state").fetchall() != []
    return article


def readable(connection: Connection, table: str = "article_embedding") -> list[int]:
    rows = connection.execute(
        f"select id from {table} where terms is not null order by id".encode()
    )
    return [number for (number,) in rows]


def as_owner(connection: Connection, name: str, statement: str) -> None:
    """Run as the owner in between."""
    connection.execute("reset role")
    connection.execute(statement.format(name).encode())
    connection.execute(f"set role {name}".encode())


def test_rights_follow_those_of_the_source(article: Connection) -> None:
    with role(article) as name:
        with pytest.raises(errors.InsufficientPrivilege, match="for table article\n"):
            readable(article)
        as_owner(article, name, "grant select on article to {}")
        assert readable(article) == [1, 2]
        as_owner(article, name, "revoke select on article from {}")
        with pytest.raises(errors.InsufficientPrivilege, match="for table article\n"):
            readable(article)
        as_owner(article, name, "grant select (id, tenant) on article to {}")
        with pytest.raises(errors.InsufficientPrivilege, match="for table article\n"):
            readable(article)
        as_owner(article, name, "grant select (title) on article to {}")
        assert readable(article) == [1, 2]


def test_row_security_of_the_source_counts_from_the_moment_it_is_there(
    article: Connection,
) -> None:
    with role(article, "select on article") as name:
        assert readable(article) == [1, 2]
        as_owner(article, name, "alter table article enable row level security")
        assert readable(article) == []
        as_owner(article, name, "create policy own on article using (tenant = 'b')")
        assert readable(article) == [2]
        as_owner(article, name, "alter table article disable row level security")
        assert readable(article) == [1, 2]


def test_a_dropped_column_opens_nothing(counted: Connection) -> None:
    """Nobody knows any more who was allowed to read it; the hint gives the whole table."""
    with role(counted, "select (id, tenant) on article") as name:
        as_owner(counted, name, "alter table article drop column title")
        with pytest.raises(errors.InsufficientPrivilege, match="a column was dropped") as said:
            readable(counted)
        assert counted.execute("select * from embed.lexical_state").fetchall() == []
        hint = said.value.diag.message_hint or ""
        as_owner(counted, name, hint.removeprefix("As its owner: "))
        assert readable(counted) == [1, 2]


def test_numbers_of_columns_from_before_a_restore_open_nothing(counted: Connection) -> None:
    """A restore numbers columns anew: what was the number of the text is that of tenant now."""
    counted.execute("update embed.source set relation_oid = 1, column_attnums = '{2}'")
    ((function,),) = counted.execute(
        "select pg_get_functiondef(format('embed.source_%s_open()', s.id)::regprocedure)"
        " from embed.source s where s.name = 'article'"
    ).fetchall()
    assert "{1,3}" in function
    counted.execute(function.replace("{1,3}", "{1,2}").encode())
    with role(counted, "select (id, tenant) on article"):
        with pytest.raises(errors.InsufficientPrivilege, match="for table article"):
            readable(counted)
        assert counted.execute("select * from embed.lexical_state").fetchall() == []


def expected_rows(connection: Connection, table: str, condition: str) -> int:
    """The rows that EXPLAIN tells who may not see one of them."""
    explain = f"explain (format json) select from {table} where {condition}"
    (((plan,),),) = connection.execute(explain.encode()).fetchall()
    return int(plan["Plan"]["Plan Rows"])


def test_plans_tell_no_key_and_no_question(article: Connection, vectors: VectorWriter) -> None:
    """The greatest key was found in 40 steps, and who had asked what in one."""
    article.execute("create table patient (mail text primary key, note text)")
    article.execute("insert into patient select 'm' || n, 'note' from generate_series(1, 300) n")
    article.execute("select embed.enable('patient', array['note'])")
    vectors.embed("patient")
    article.execute(
        "insert into embed.logged_search (id, relation, question, keys, asker)"
        " select gen_random_uuid(), 'patient', q, '[]', 'alice'"
        " from unnest(array_fill('asked'::text, array[100]) || array_fill('b'::text, array[9])) q"
    )
    # Statistics of the time before they were hidden.
    article.execute("alter table patient_embedding alter column mail set statistics 100")
    article.execute("alter table embed.logged_search alter column question set statistics 100")
    article.execute("analyze patient_embedding, embed.logged_search")
    with role(article):
        assert expected_rows(article, "patient_embedding", "mail < 'm2'") < 290
        assert expected_rows(article, "embed.logged_search", "question = 'asked'") > 20
    article.execute("update embed.source_state set structure = null")
    article.execute("select embed._refresh(id) from embed.source where name = 'patient'")
    article.execute("select embed._hide_statistics('embed.logged_search')")
    article.execute("analyze patient_embedding, embed.logged_search")
    with role(article):
        told = {expected_rows(article, "patient_embedding", f"mail < '{k}'") for k in ("a", "z")}
        assert len(told) == 1
        asked = ("asked", "b", "c")
        told = {expected_rows(article, "embed.logged_search", f"question = '{q}'") for q in asked}
        assert len(told) == 1


def test_migrate_removes_what_was_known_of_hidden_columns(
    article: Connection, database: str
) -> None:
    """An enabler who is no superuser hides them, and cannot remove it before PostgreSQL 18."""
    article.execute("alter table article_embedding alter column id set statistics 100")
    article.execute("analyze article_embedding")
    article.execute("alter table article_embedding alter column id set statistics 0")
    known = "select from pg_statistic where starelid = 'article_embedding'::regclass"
    known += " and staattnum = 1"
    assert article.execute(known.encode()).rowcount == 1
    migrate(database)
    assert article.execute(known.encode()).rowcount == 0


def test_nobody_but_the_owner_writes(article: Connection) -> None:
    with role(article, "all on article"):
        for statement in (
            "delete from article_embedding",
            "update article_embedding set seq = 0",
            "truncate article_embedding",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                article.execute(statement.encode())
    with role(article, "all on article", "all on article_embedding"):
        assert article.execute("delete from article_embedding").rowcount == 0
        assert article.execute("update article_embedding set seq = 9").rowcount == 0
    assert readable(article) == [1, 2]


def test_the_table_can_be_renamed_changed_and_dropped(article: Connection) -> None:
    article.execute("alter table article rename to paper; alter table paper rename title to t")
    with role(article, "select on paper"):
        assert readable(article) == [1, 2]
        row = article.execute(
            'select (s."row").id from embed.search(null::paper, %s::vector, 1) s',
            [word_vector("two")],
        ).fetchone()
        assert row == (2,)
    article.execute("alter table paper drop column tenant; alter table paper drop column t")
    article.execute("drop table paper")
    article.execute("select embed._refresh(id) from embed.source")
    assert article.execute("select to_regclass('article_embedding')").fetchone() == (None,)


def test_what_is_left_of_a_disabled_table_is_nobodys(article: Connection) -> None:
    article.execute("select embed.disable('article')")
    with role(article, "select on article"):
        assert readable(article) == []
    article.execute("select embed.enable('article', array['title'])")
    with role(article, "select on article"):
        assert readable(article) == [1, 2]
    with role(article), pytest.raises(errors.InsufficientPrivilege, match="for table article\n"):
        readable(article)


def test_an_old_table_without_terms_is_not_taken_over(article: Connection) -> None:
    article.execute("select embed.disable('article')")
    article.execute("alter table article_embedding drop column terms")
    with pytest.raises(errors.DuplicateTable, match="not a vector table") as caught:
        article.execute("select embed.enable('article', array['title'])")
    assert caught.value.diag.message_detail == "Missing: terms sparsevec."


def test_a_vector_in_a_column_is_searched_by_ordinary_roles(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute(
        "create table article (id int primary key, tenant text, title text, v vector(384))"
    )
    connection.execute("insert into article values (1, 'a', 'one'), (2, 'b', 'two')")
    connection.execute("select embed.enable('article', array['title'], into_column => 'v')")
    vectors.embed("article")
    state = vectors.source("article")["vectors"]
    statement = 'select (s."row").id from embed.search(null::article, %s::vector) s'
    with role(connection, "select on article") as name:
        assert connection.execute(statement, [word_vector("two")]).fetchall() == [(2,), (1,)]
        assert readable(connection, state) == [1, 2]
        as_owner(connection, name, "alter table article enable row level security")
        as_owner(connection, name, "create policy own on article using (tenant = 'a')")
        assert connection.execute(statement, [word_vector("two")]).fetchall() == [(1,)]
        assert readable(connection, state) == [1]
    with role(connection), pytest.raises(errors.InsufficientPrivilege):
        readable(connection, state)


@pytest.mark.slow
def test_an_ordinary_role_gets_k_of_many_rows_through_the_index(
    connection: Connection, vectors: VectorWriter
) -> None:
    random = np.random.default_rng(2)
    connection.execute(
        "create table note (id int primary key, title text);"
        " select embed.enable('note', array['title']);"
    )
    fingerprint = vectors.fingerprint()
    connection.execute("insert into note select i, 'n' from generate_series(1, %s) i", [MANY])
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "copy note_embedding (id, passage_start, passage_end, embedding, fingerprint, hash,"
            " checksum, seq) from stdin"
        ) as copy,
    ):
        for number in range(1, MANY + 1):
            vector = random.normal(size=384).astype(np.float32)
            copy.write_row((number, 0, 1, vector, fingerprint, b"", b"", 0))
    vectors.activate("note", fingerprint)
    vectors.drain("note")
    connection.execute("create index on note_embedding using hnsw (embedding vector_cosine_ops)")
    connection.execute("analyze note, note_embedding")
    statement = 'select (s."row").id from embed.search(null::note, %s::vector, %s) s'
    with role(connection, "select on note") as name:
        plan = connection.execute(
            b"explain select id from note_embedding order by embedding <=> %s limit 10",
            [word_vector("x")],
        ).fetchall()
        assert "note_embedding_embedding_idx" in str(plan)
        for k in (10, 100):
            assert len(connection.execute(statement, [word_vector("x"), k]).fetchall()) == k
        as_owner(connection, name, "alter table note enable row level security")
        as_owner(connection, name, "create policy few on note using (id % 100 = 0)")
        found = connection.execute(statement, [word_vector("x"), 20]).fetchall()
        assert len(found) == 20
        assert all(number % 100 == 0 for (number,) in found)


RENAMED = {
    "schema": "alter schema shop rename to elsewhere; create schema shop",
    "table": "alter table shop.article rename to elsewhere",
    "moved": "create schema elsewhere; alter table shop.article set schema elsewhere",
    "dropped": "drop table shop.article",
}


@pytest.mark.parametrize("how", RENAMED)
def test_a_table_of_another_that_takes_the_name_opens_nothing(
    connection: Connection, vectors: VectorWriter, how: str
) -> None:
    """The policy asked the table of that name, so whoever made it read all keys and words."""
    connection.execute(
        "create schema shop; create table shop.article (id int primary key, title text);"
        "insert into shop.article values (1, 'one'), (2, 'two');"
        "alter table shop.article enable row level security;"
        "select embed.enable('shop.article', array['title']); set search_path = shop, public"
    )
    vectors.embed("article")
    connection.execute("reset search_path")
    guarded = "elsewhere" if how == "schema" else "shop"
    with role(connection, "select on shop.article") as name:
        as_owner(connection, name, "create policy own on shop.article using (id = 2)")
        as_owner(connection, name, "grant usage, create on schema shop to {}")
        assert readable(connection, "shop.article_embedding") == [2]
        as_owner(connection, name, RENAMED[how])
        as_owner(connection, name, f"grant usage, create on schema shop, {guarded} to {{}}")
        if how == "moved":
            as_owner(connection, name, "grant usage on schema elsewhere to {}")
        expected = [] if how == "dropped" else [2]
        assert readable(connection, f"{guarded}.article_embedding") == expected
        connection.execute("create table shop.article (id int primary key, title text)")
        assert readable(connection, f"{guarded}.article_embedding") == expected
        # A worker's look makes the quick form of the policy's functions again.
        as_owner(connection, name, "select embed._refresh(id) from embed.source")
        if how != "dropped":
            assert readable(connection, f"{guarded}.article_embedding") == expected
            body = "select prosrc from pg_proc where proname = 'source_' || {} || '_visible'"
            connection.execute("reset role")
            ((number, table),) = connection.execute(
                "select id, relation::text from embed.source where name = 'article'"
            ).fetchall()
            ((source,),) = connection.execute(body.format(number).encode()).fetchall()
            assert f"from {table} s where" in source
        connection.execute("reset role; drop table shop.article")


def test_enabling_says_nothing_of_policies(connection: Connection) -> None:
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    assert [notice for notice in said if "policy" in notice] == []
