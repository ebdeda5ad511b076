"""Conditions and pages of embed.search: matching and skip."""

import json
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter, role, word_vector
from psycopg import sql

from embedworker.database.migrate import migrate


@pytest.fixture
def shop(connection: Connection, vectors: VectorWriter) -> Connection:
    """Twelve embedded rows of one text, with a column of many a type."""
    connection.execute(
        """
        create extension citext;
        create type color as enum ('red', 'blue');
        create domain percent as int check (value between 0 and 100);
        create table "the %s {order} shop" (
            id int primary key, title text, tenant int, price numeric(8, 2), sold boolean,
            colour color, code char(4), short varchar(3), day date, at timestamptz, uid uuid,
            ci citext, share percent,
            extra jsonb, plain json, tags text[], span int4range, "a ""%s"" {distance}" text,
            spans int4multirange, relation regclass, query tsquery
        );
        insert into "the %s {order} shop"
        select
            i, 'apple pie', i % 3, i * 1.5, i % 2 = 0,
            case when i < 4 then 'red'::color else 'blue' end,
            'c' || i, 'v' || i, date '2024-01-01' + i,
            timestamptz '2024-01-01 00:00+00' + i * interval '1 hour',
            lpad(i::text, 32, '0')::uuid, 'Name' || i, i, jsonb_build_object('n', i), '{}',
            array['t' || i, 'all'], int4range(i, i + 2), case when i < 3 then 'few' end,
            int4multirange(int4range(i, i + 1)), 'pg_class', ('a & b' || i)::tsquery
        from generate_series(1, 12) i;
        select embed.enable(
            '"the %s {order} shop"', array['title'], filter => 'title <> ''{order}'''
        );
        """
    )
    vectors.embed('"the %s {order} shop"')
    return connection


def found(
    connection: Connection, matching: Any, k: int = 100, table: str = '"the %s {order} shop"'
) -> list[int]:
    vector = str(word_vector("apple pie").tolist())
    rows = connection.execute(
        f"select (s.\"row\").id from embed.search(null::{table}, '{vector}'::vector, k => {k},"
        f" matching => {sql.Literal(json.dumps(matching)).as_string(connection)}::jsonb) s".encode()
    )
    return [key for (key,) in rows]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("matching", "ids"),
    [
        ({}, range(1, 13)),
        ({"tenant": 1}, [1, 4, 7, 10]),
        ({"tenant": "1"}, [1, 4, 7, 10]),
        ({"tenant": [0, 1], "sold": True}, [4, 6, 10, 12]),
        ({"tenant": []}, []),
        ({"price": 4.5}, [3]),
        ({"price": "4.500"}, [3]),
        ({"price": [1.5, 3, 99]}, [1, 2]),
        ({"sold": False, "tenant": 2}, [5, 11]),
        ({"colour": "red"}, [1, 2, 3]),
        ({"code": "c7"}, [7]),
        ({"code": "c7 and more"}, []),
        ({"short": "v12"}, [12]),
        ({"short": "v123"}, []),
        ({"day": "2024-01-03"}, [2]),
        ({"at": "2024-01-01T12:00:00+09:00"}, [3]),
        ({"uid": "00000000-0000-0000-0000-000000000005"}, [5]),
        ({"ci": "NAME3"}, [3]),
        ({"share": 4}, [4]),
        ({"share": [4, 5]}, [4, 5]),
        ({"share": 101}, []),
        ({"extra": {"n": 6}}, [6]),
        ({"extra": [{"n": 6}, {"n": 7}]}, [6, 7]),
        ({"tags": "{t8,all}"}, [8]),
        ({"tags": ["{t8,all}", "{t9,all}"]}, [8, 9]),
        ({"span": "[2,4)"}, [2]),
        ({"tags": ["{x,y}"] * 100_000 + ["{t8,all}"]}, [8]),
        ({"tenant": [*range(1, 100_000)]}, [1, 2, 4, 5, 7, 8, 10, 11]),
        ({"extra": [{"n": 1}, [[[[[]]]]], "1e400", 10**400]}, [1]),
        ({"price": 10**400}, []),
        ({"spans": "{[2,3)}"}, [2]),
        ({"relation": "pg_class", "tenant": 0}, [3, 6, 9, 12]),
        ({"query": "b3 & a"}, []),
        ({"query": "a & b3"}, [3]),
        ({'a "%s" {distance}': "few"}, [1, 2]),
        ({'a "%s" {distance}': None, "tenant": 0}, [3, 6, 9, 12]),
        ({'a "%s" {distance}': ["few", None], "tenant": 2}, [2, 5, 8, 11]),
        ({"title": "'; drop table article; --"}, []),
    ],
)
def test_only_rows_that_match_are_found(shop: Connection, matching: Any, ids: list[int]) -> None:
    shop.execute("set statement_timeout = '30s'")  # a long list ended the server
    assert found(shop, matching) == list(ids)


@pytest.mark.parametrize(
    ("matching", "message", "hint"),
    [
        ({"lng": "ko"}, "has no column 'lng'", "It has: id, title, tenant,"),
        ({"ctid": "(0,1)"}, "has no column 'ctid'", "It has: id,"),
        ({"tenant": "x"}, 'gives the column tenant of .* no integer: .*"x"', "the type integer"),
        ({"tenant": [1, "x"]}, "gives the column tenant of .* no integer", "the type integer"),
        ({"tenant": 2**40}, "gives the column tenant of .* no integer", "the type integer"),
        ({"tenant": {"is": 5}}, "tenant of .* has the type integer; .* json object", "list of"),
        ({"tenant": [[5]]}, "tenant of .* has the type integer; .* json array", "list of"),
        (
            {"colour": "green"},
            "gives the column colour of .* no public.color",
            "the type public.color",
        ),
        ({"day": "soon"}, "gives the column day of .* no date", "the type date"),
        ({"relation": "absent"}, "the column relation of .* no regclass", "the type regclass"),
        ({"query": "a &"}, "gives the column query of .* no tsquery", "the type tsquery"),
        ({"price": "1e400000"}, "gives the column price of .* no numeric", "the type numeric"),
        ({"tenant) or (true": 1}, "has no column 'tenant\\) or", "It has: id,"),
        ({"plain": "{}"}, "plain of .* cannot be compared for equality", "Leave it out"),
        ([1], "matching is a json array, expected an object", "Write for example"),
        ("x", "matching is a json string, expected an object", "Write for example"),
    ],
)
def test_a_wrong_condition_is_refused(
    shop: Connection, matching: Any, message: str, hint: str
) -> None:
    with pytest.raises(psycopg.DatabaseError, match=message) as caught:
        found(shop, matching)
    assert caught.value.sqlstate == "EW003"
    assert hint in (caught.value.diag.message_hint or "")


def test_in_words_under_row_security_and_over_a_view_of_rights(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute(
        "create table article (id int primary key, body text, lang text, owner text)"
    )
    connection.execute(
        "insert into article select i, 'apple ' || i, (array['ko', 'en'])[i % 2 + 1],"
        " (array['me', 'you'])[i % 5 / 4 + 1] from generate_series(1, 40) i"
    )
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.count("article")
    vectors.know("apple 7")
    connection.execute("alter table article enable row level security")
    connection.execute("create policy own on article using (owner = 'me')")
    asked = """
        select (s."row").id
        from embed.search(null::article, 'apple 7', k => 3, matching => '{"lang": "en"}') s
    """
    assert connection.execute(asked.encode()).fetchall()[0] == (7,)
    with role(connection, "select on article"):
        rows = [key for (key,) in connection.execute(asked.encode())]
    assert len(rows) == 3
    assert rows[0] == 7
    assert all(key % 2 == 1 and key % 5 != 4 for key in rows)


def test_a_table_may_have_the_name_of_what_stands_beside_it(
    connection: Connection, vectors: VectorWriter
) -> None:
    for name in ("hit", "found", "scored", "v", "s", "candidate"):
        connection.execute(
            f"create table {name} (id int primary key, title text, {name} int, k1 int);"
            f"insert into {name} select i, 'apple pie', i, -i from generate_series(1, 3) i;"
            f"select embed.enable('{name}', array['title'])".encode()
        )
        vectors.embed(name)
        assert found(connection, {name: [1, 2], "k1": [-2, -3]}, table=name) == [2]


@pytest.mark.smoke
def test_conditions_need_the_rights_of_the_asker(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute(
        "create table article (id int primary key, title text, owner text, salary int);"
        "insert into article select i, 'apple pie', 'owner' || i % 2, i"
        " from generate_series(1, 4) i;"
        "select embed.enable('article', array['title'])"
    )
    vectors.embed("article")
    with role(connection, "select (id, title, owner) on article"):
        for matching in ({"salary": 1}, {"salary": 99}, {"salary": []}, {"owner": "owner1"}):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                found(connection, matching, table="article")
    connection.execute("alter table article enable row level security")
    connection.execute("create policy own on article using (owner = 'owner1')")
    with role(connection, "select on article"):
        assert found(connection, {"salary": [1, 2, 3]}, table="article") == [1, 3]
        assert found(connection, {"owner": "owner0"}, table="article") == []


def test_no_function_of_others_runs_as_the_definer(
    connection: Connection, vectors: VectorWriter
) -> None:
    """An operator of the same name runs not at all; a cast to a column's type runs as the asker."""
    connection.execute(
        """
        create type pair as (a int, b int);
        create function hear(text) returns pair language plpgsql immutable as $$
        begin
            raise notice 'cast as %', current_user;
            return row(1, 2)::public.pair;
        end $$;
        create cast (text as pair) with function hear(text);
        create function hear(int, int) returns boolean language plpgsql immutable as $$
        begin
            raise exception 'an operator of others ran';
        end $$;
        create operator = (leftarg = int, rightarg = int, function = hear);
        create table article (id int primary key, title text, n int, both_of pair);
        insert into article values (1, 'apple pie', 1, row(1, 2)), (2, 'apple pie', 2, null);
        select embed.enable('article', array['title'])
        """
    )
    vectors.embed("article")
    heard: list[str] = []
    connection.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
    connection.execute("grant usage on schema public to public")
    with role(connection, "select on article") as asker:
        connection.execute("set search_path = public, pg_catalog")
        assert found(connection, {"n": [1, 2], "both_of": "x"}, table="article") == [1]
        connection.execute("reset search_path")
    assert set(heard) == {f"cast as {asker}"}


MANY = 3000


@pytest.fixture
def large(connection: Connection) -> Connection:
    """3,000 embedded rows under HNSW, in 1 to 3 passages each; every 500th is rare."""
    random = np.random.default_rng(3)
    connection.execute("create table note (id int primary key, rare boolean, title text)")
    connection.execute("select embed.enable('note', array['title'])")
    writer = VectorWriter(connection)
    fingerprint = writer.fingerprint()
    connection.execute(
        "insert into note select i, i %% 500 = 0, 'n ' || i from generate_series(0, %s - 1) i",
        [MANY],
    )
    matrix = random.normal(size=(3 * MANY, 384)).astype(np.float32)
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "copy note_embedding (id, chunk, passage_start, passage_end, embedding, fingerprint,"
            " hash, checksum, seq) from stdin"
        ) as copy,
    ):
        for number in range(3 * MANY):
            row, chunk = divmod(number, 3)
            if chunk <= row % 3:
                copy.write_row((row, chunk, 0, 3, matrix[number], fingerprint, b"", b"", 0))
    writer.activate("note", fingerprint)
    writer.drain("note")
    connection.execute("set maintenance_work_mem = '64MB'")
    connection.execute(
        "create index on note_embedding using hnsw (embedding vector_cosine_ops)"
        " with (m = 8, ef_construction = 32)"
    )
    connection.execute("analyze note, note_embedding")
    return connection


def page(connection: Connection, k: int, skip: int = 0, matching: str = "null") -> list[Any]:
    vector = str(word_vector("x").tolist())
    return connection.execute(
        'select (s."row").id, s.score, s.passage_start'
        f" from embed.search(null::note, '{vector}'::vector,"
        f" k => {k}, skip => {skip}, matching => {matching}) s".encode()
    ).fetchall()


@pytest.mark.slow
def test_pages_follow_each_other_to_a_thousand_rows(large: Connection) -> None:
    whole = page(large, 1000) + page(large, 100, 1000)
    assert len({key for key, *_ in whole}) == 1100
    for k, skips in ((10, range(0, 1100, 90)), (100, range(0, 1100, 100)), (7, range(0, 210, 7))):
        for skip in skips:
            assert page(large, k, skip) == whole[skip : skip + k]
    scores = [score for _, score, _ in whole]
    assert scores == sorted(scores, reverse=True)
    assert len(page(large, 1000, 2500)) == MANY - 2500
    assert page(large, 10, MANY) == []


@pytest.mark.slow
def test_rare_rows_are_all_found_and_paged(large: Connection) -> None:
    rare = "'{\"rare\": true}'"
    rows = page(large, 10, 0, rare)
    assert sorted(key for key, *_ in rows) == list(range(0, MANY, 500))
    assert page(large, 2, 0, rare) + page(large, 2, 2, rare) + page(large, 9, 4, rare) == rows


def test_pages_in_words(connection: Connection, vectors: VectorWriter) -> None:
    """The words rank the rows of each look among themselves, so a page does not change another."""
    connection.execute("create table article (id int primary key, body text)")
    connection.execute(
        "insert into article select i, 'apple ' || repeat('pie ', i % 7) || (i * 37 % 101)"
        " from generate_series(1, 260) i"
    )
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    vectors.count("article")
    vectors.know("apple pie 37 74")

    def pages(k: int, skip: int) -> list[Any]:
        return connection.execute(
            """
            select (s."row").id, s.score, s.bm25
            from embed.search(null::article, 'apple pie 37 74', k => %s, skip => %s) s
            """,
            [k, skip],
        ).fetchall()

    whole = pages(1000, 0)
    assert len({key for key, *_ in whole}) == 260
    assert [row for skip in range(0, 260, 20) for row in pages(20, skip)] == whole
    assert [row for skip in range(0, 130, 13) for row in pages(13, skip)] == whole[:130]
    assert len({bm25 for *_, bm25 in whole}) > 10


@pytest.mark.parametrize("skip", [-1, 10001, None])
def test_a_wrong_skip_is_refused(shop: Connection, skip: int | None) -> None:
    for question in ("'apple'", "array_fill(1, array[384])::vector"):
        with pytest.raises(psycopg.DatabaseError, match="skip is") as caught:
            shop.execute(
                f'select embed.search(null::"the %%s {{order}} shop", {question},'
                " skip => %s)".encode(),
                [skip],
            )
        assert caught.value.sqlstate == "EW003"


@pytest.mark.smoke
def test_a_view_over_the_form_of_an_older_version_survives(
    connection: Connection, vectors: VectorWriter, database: str
) -> None:
    connection.execute("create table article (id int primary key, body text)")
    connection.execute("insert into article values (1, 'apple'), (2, 'pear')")
    connection.execute("select embed.enable('article', array['body'])")
    vectors.embed("article")
    columns = """ "row" anyelement, score real, similarity real, bm25 real, reranked real,
        passage text, passage_start integer, passage_end integer """
    connection.execute(
        f"""
        drop function embed.search(
            anyelement, text, integer, text, double precision, integer, jsonb, integer
        );
        create function embed.search(
            source anyelement, question text, k integer default 10, name text default null,
            lexical double precision default null, rerank integer default null
        ) returns table ({columns}) language plpgsql as $$
        begin
            raise exception 'the old body';
        end $$;
        create view apples as
        select (s."row").id from embed.search(null::article, 'apple', k => 1) s;
        """.encode()
    )
    migrate(database)
    vectors.know("apple")
    assert connection.execute("select * from apples").fetchall() == [(1,)]
    row = connection.execute(
        "select (s.\"row\").id from embed.search(null::article, 'apple', k => 1, skip => 1) s"
    ).fetchone()
    assert row == (2,)
