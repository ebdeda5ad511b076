"""embed.search, embed.similar and embed.similarity, through the SQL that users write."""

from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter, role, word_vector
from psycopg import errors

ARTICLES = {
    1: "apple pie with cinnamon",
    2: "pear tart with cream",
    3: "train from seoul to busan",
    4: "apple orchard in autumn",
    5: "bread without yeast",
}


@pytest.fixture
def article(connection: Connection, vectors: VectorWriter) -> Connection:
    """The table article of five embedded rows."""
    connection.execute("create table article (id bigint primary key, title text)")
    with connection.cursor() as cursor:
        cursor.executemany("insert into article values (%s, %s)", list(ARTICLES.items()))
    connection.execute("select embed.enable('article', array['title'])")
    assert vectors.embed("article") == len(ARTICLES)
    return connection


def found(
    connection: Connection, question: str, k: int = 10, relation: str = "article"
) -> list[Any]:
    """Keys of the rows nearest to the words of ``question``."""
    return [
        row[0]
        for row in connection.execute(
            f'select (s."row").id from embed.search(null::{relation}, %s::vector, %s) s'.encode(),
            [word_vector(question), k],
        )
    ]


def test_a_text_question_returns_typed_rows_with_scores_and_passages(
    article: Connection, vectors: VectorWriter
) -> None:
    vectors.know("apple pie")
    rows = article.execute(
        """
        select (s."row").*, s.score, s.similarity, s.passage, s.passage_start, s.passage_end, s.bm25
        from embed.search(null::article, 'apple pie', k => 2, lexical => 0) s
        """
    ).fetchall()
    wanted = float(word_vector("apple pie") @ word_vector(ARTICLES[1]))
    assert [row[:2] for row in rows] == [(1, ARTICLES[1]), (4, ARTICLES[4])]
    assert rows[0][2] == pytest.approx(wanted, abs=1e-5)
    assert rows[0][2:] == (rows[0][3], rows[0][3], ARTICLES[1], 0, len(ARTICLES[1]), None)
    assert rows[0][2] > rows[1][2]


def test_no_more_rows_than_there_are(article: Connection) -> None:
    assert len(found(article, "apple", k=1)) == 1
    assert sorted(found(article, "apple", k=1000)) == sorted(ARTICLES)


def test_what_is_deleted_or_inserted_in_this_transaction_counts(article: Connection) -> None:
    with article.transaction():
        article.execute("delete from article where id = 1")
        assert sorted(found(article, "apple pie")) == [2, 3, 4, 5]


def test_a_stale_row_is_still_found_by_its_old_vector(article: Connection) -> None:
    article.execute("update article set title = 'whale' where id = 1")
    row = article.execute(
        """select (s."row").title from embed.search(null::article, %s::vector, k => 1) s""",
        [word_vector("cinnamon pie")],
    ).fetchone()
    assert row == ("whale",)


def test_the_best_passage_stands_for_its_row(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute("create table article (id bigint primary key, title text)")
    long = " ".join(f"apple variety number{i}" for i in range(300)) + " 한국의  사과 축제"
    connection.execute("insert into article values (1, %s), (2, 'one apple'), (3, 'pear')", [long])
    connection.execute("select embed.enable('article', array['title'])")
    assert vectors.embed("article", words_a_passage=3) == 303
    # 300 passages of row 1 are nearer than anything of the others: k rows come all the same.
    assert found(connection, "apple variety", k=3)[0] == 1
    assert sorted(found(connection, "apple variety", k=3)) == [1, 2, 3]
    row = connection.execute(
        """
        select s.passage, s.passage_start, s.passage_end,
            substr((s."row").title, s.passage_start + 1, s.passage_end - s.passage_start)
        from embed.search(null::article, %s::vector, k => 1) s
        """,
        [word_vector("한국의 사과 축제")],
    ).fetchone()
    start = long.index("한국의")
    assert row == ("한국의  사과 축제", start, len(long), "한국의  사과 축제")


def test_equal_scores_come_in_the_order_of_the_key(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute("create table article (id text primary key, title text)")
    connection.execute(
        "insert into article select 'k' || lpad(i::text, 3, '0'), 'same words'"
        " from generate_series(200, 1, -1) i"
    )
    connection.execute("select embed.enable('article', array['title'])")
    vectors.embed("article")
    assert found(connection, "same", k=5) == [f"k{i:03}" for i in range(1, 6)]


@pytest.mark.parametrize(
    ("type_name", "key"),
    [
        ("bigint", 2**63 - 1),
        ("uuid", UUID("00000000-0000-4000-8000-000000000001")),
        ("text", 'it\'s a "key" with \\ and %s {1}'),
        ("varchar(40)", "한글"),
        ("char(8)", "ab      "),
        ("numeric", 12345678901234567890),
        ("bytea", b"\x00\xff"),
        ("boolean", True),
        ("timestamptz", "2024-02-29 12:00:00.000001+09"),
        ("color", "red"),
        ("positive", 3),
    ],
)
def test_any_type_of_key(
    connection: Connection, vectors: VectorWriter, type_name: str, key: object
) -> None:
    connection.execute("create type color as enum ('blue', 'red')")
    connection.execute("create domain positive as int check (value > 0)")
    connection.execute(f"create table article (id {type_name} primary key, title text)".encode())
    connection.execute("insert into article values (%s, 'apple')", [key])
    connection.execute("select embed.enable('article', array['title'])")
    vectors.embed("article")
    row = connection.execute(
        f"""
        select (s."row").id = %s::{type_name}, s.passage
        from embed.search(null::article, %s::vector) s
        """.encode(),
        [key, word_vector("apple")],
    ).fetchone()
    assert row == (True, "apple")
    similar = f"select * from embed.similar(null::article, %s::{type_name})"
    assert connection.execute(similar.encode(), [key]).fetchall() == []


def test_composite_keys_and_names_that_need_quotes(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute('create schema "Sel ect"')
    connection.execute(
        """
        create table "Sel ect"."order" (
            "User" uuid, "a ""b" text, "order" text, "row" text, "s" text,
            primary key ("User", "a ""b")
        )
        """
    )
    table = '"Sel ect"."order"'
    user = UUID(int=7)
    connection.execute(
        f"""
        insert into {table} values
            (%s, 'x', 'apple', 'pie', 'kept'), (%s, 'y', 'apple', 'cake', ''),
            (%s, 'z', 'pear', '', '')
        """.encode(),
        [user, user, user],
    )
    connection.execute(
        "select embed.enable(%s, array['row', 'order'], filter => '\"order\".s is not null')",
        [table],
    )
    vectors.embed(table)
    rows = connection.execute(
        f"""
        select (s."row")."a ""b", (s."row")."order", s.passage
        from embed.search(null::{table}, %s::vector, k => 2) s
        """.encode(),
        [word_vector("pie apple")],
    ).fetchall()
    assert rows == [("x", "apple", "pie\napple"), ("y", "apple", "cake\napple")]
    for key in (
        "row(%(user)s::uuid, 'x')",
        "jsonb_build_array(%(user)s::text, 'x')",
        """jsonb_build_object('a "b', 'x', 'User', %(user)s::text)""",
        "array[%(user)s::text, 'x']",
    ):
        rows = connection.execute(
            f"""select (s."row")."a ""b" from embed.similar(null::{table}, {key}, 1) s""".encode(),
            {"user": user},
        ).fetchall()
        assert rows == [("y",)], key


def test_a_hostile_search_path_changes_nothing(article: Connection) -> None:
    article.execute(
        """
        create schema evil;
        create table evil.article_embedding (id bigint);
        create table evil.pg_class (oid oid);
        create function evil.never(bigint, bigint) returns boolean language sql return false;
        create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.never);
        create function evil.substr(text, integer, integer) returns text language sql return 'evil';
        create function evil.zero(float8, float8) returns float8 language sql return 0;
        create operator evil.- (leftarg = float8, rightarg = float8, function = evil.zero);
        create function evil.unnest(tid[], float8[]) returns table (a tid, b float8)
            language sql as 'select null::tid, 0::float8 where false';
        """
    )
    question = word_vector("apple pie")
    statement = """
        select (s."row").id, s.passage, s.score
        from embed.search(null::public.article, %s::public.vector, k => 2) s
    """
    before = article.execute(statement, [question]).fetchall()
    article.execute("set search_path = evil, pg_catalog")
    assert article.execute(statement, [question]).fetchall() == before
    assert [row[0] for row in before] == [1, 4]


def test_the_filter_of_the_source_applies(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute("create table article (id int primary key, title text, public boolean)")
    connection.execute("insert into article values (1, 'apple', true), (2, 'apple', true)")
    connection.execute("select embed.enable('article', array['title'], filter => 'public')")
    vectors.embed("article")
    connection.execute("update article set public = false where id = 1")
    assert found(connection, "apple") == [2]
    connection.execute("alter table article rename public to shown")
    assert found(connection, "apple") == [2]
    connection.execute("alter table article drop shown")
    with pytest.raises(errors.DatabaseError, match="dropped") as caught:
        found(connection, "apple")
    assert caught.value.diag.sqlstate == "EW004"


def test_partitions_and_inheritance(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute(
        """
        create table event (id int, region text, title text, primary key (id, region))
            partition by list (region);
        create table event_kr partition of event for values in ('kr');
        create table event_us (region text, title text, id int, primary key (id, region));
        alter table event_us alter id set not null;
        alter table event attach partition event_us for values in ('us');
        insert into event (id, region, title) values (1, 'kr', 'apple'), (1, 'us', 'apple pie');
        create table parent (id int primary key, title text);
        create table child () inherits (parent);
        """
    )
    connection.execute("insert into parent values (1, 'apple')")
    connection.execute("insert into child values (1, 'apple of the child')")
    for relation in ("event", "parent"):
        connection.execute("select embed.enable(%s, array['title'])", [relation])
        vectors.embed(relation)
    rows = connection.execute(
        """
        select (s."row").region, (s."row").id, s.passage
        from embed.search(null::event, %s::vector) s
        """,
        [word_vector("apple pie")],
    ).fetchall()
    assert rows == [("us", 1, "apple pie"), ("kr", 1, "apple")]
    rows = connection.execute(
        'select (s."row").title from embed.search(null::parent, %s::vector) s',
        [word_vector("apple")],
    ).fetchall()
    assert rows == [("apple",)]
    with pytest.raises(errors.DatabaseError, match="partition") as caught:
        found(connection, "apple", relation="event_kr")
    assert caught.value.diag.sqlstate == "EW002"
    assert "null::public.event" in (caught.value.diag.message_hint or "")


def test_vectors_in_a_column_of_the_table(connection: Connection, vectors: VectorWriter) -> None:
    connection.execute("create table article (id int primary key, title text, v vector(384))")
    connection.execute("insert into article values (1, 'apple'), (2, 'pear'), (3, 'apple pie')")
    connection.execute("select embed.enable('article', array['title'], into_column => 'v')")
    vectors.embed("article")
    assert found(connection, "apple pie") == [3, 1, 2]
    row = connection.execute(
        'select (s."row").id, s.passage from embed.similar(null::article, 3, 1) s'
    ).fetchone()
    assert row == (1, "apple")
    connection.execute("update article set v = null where id = 3")
    assert found(connection, "apple pie") == [1, 2]


def test_several_sources_of_one_table(article: Connection, vectors: VectorWriter) -> None:
    article.execute("alter table article add body text")
    article.execute("update article set body = 'apple pie' where id = 5")
    article.execute("select embed.enable('article', array['body'], name => 'bodies')")
    vectors.embed("article", name="bodies")
    statement = 'select (s."row").id from embed.search(null::article, %s::vector, 1, name => %s) s'
    question = word_vector("apple pie")
    assert article.execute(statement, [question, None]).fetchone() == (1,)
    assert article.execute(statement, [question, "article"]).fetchone() == (1,)
    assert article.execute(statement, [question, "bodies"]).fetchone() == (5,)
    with pytest.raises(errors.DatabaseError, match="not enabled under the name 'titles'") as caught:
        article.execute(statement, [question, "titles"])
    assert caught.value.diag.sqlstate == "EW002"
    assert "'article', 'bodies'" in (caught.value.diag.message_hint or "")


def test_nothing_found_while_rows_wait_is_said(
    article: Connection, vectors: VectorWriter, database: str
) -> None:
    notices: list[str] = []
    article.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    article.execute("delete from embed.sweep_request; delete from article")
    vectors.embed("article")
    assert found(article, "apple") == []
    assert notices == []
    article.execute("insert into article values (6, 'apple juice')")
    article.execute("set lock_timeout = 0; set statement_timeout = '5s'")
    with psycopg.connect(database) as other:
        other.execute("lock table embed.inbox_2 in access exclusive mode")
        assert found(article, "apple") == []
        assert notices == []
        other.rollback()
    assert article.execute("show lock_timeout").fetchone() == ("0",)
    assert found(article, "apple") == []
    assert notices == ["no row was found, but rows of public.article wait for a worker"]
    vectors.embed("article")
    assert found(article, "apple") == [6]
    assert len(notices) == 1


def test_another_model_without_a_switch_is_told(article: Connection) -> None:
    """And what the hint says keeps all rows."""
    hints: list[str] = []
    article.add_notice_handler(lambda notice: hints.append(notice.message_hint or ""))
    article.execute("select embed.add_model('other', 384)")
    article.execute("select embed.enable('article', array['title'], model => 'other')")
    assert [hint for hint in hints if "embed.begin_switch fills the vectors" in hint]
    article.execute(
        "select embed.enable('article', array['title'], model => embed.default_model())"
    )
    article.execute("select embed.begin_switch('article', 'other')")
    assert len(found(article, "apple")) == 5


def test_only_vectors_of_the_active_fingerprint_are_compared(
    article: Connection, vectors: VectorWriter
) -> None:
    notices: list[str] = []
    article.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    assert len(found(article, "apple")) == 5
    assert notices == []
    vectors.embed("article", revision="2", where="id <= 2")
    assert sorted(found(article, "apple")) == [1, 2]
    assert notices == [
        "about 60 % of the vectors of public.article are of another model and are not compared"
        " until they are embedded again"
    ]


@pytest.mark.parametrize(
    ("call", "state", "words"),
    [
        ("embed.search(null::article, '[1,2]'::vector)", "EW005", "2 dimensions.* have 384"),
        ("embed.search(null::article, array_fill(0, array[384])::vector)", "EW003", "zero vector"),
        ("embed.search(null::article, null::vector)", "EW003", "null"),
        ("embed.search(null::article, ' ')", "EW003", "blank"),
        (
            "embed.search(null::article, array_fill(1, array[384])::vector, k => 0)",
            "EW003",
            "1 to 1000",
        ),
        ("embed.search(null::article, 'x', k => 1001)", "EW003", "1 to 1000"),
        ("embed.search(null::article, 'x', k => null)", "EW003", "1 to 1000"),
        ("embed.search(null::article, 'x', lexical => -0.1)", "EW003", "lexical is -0.1"),
        ("embed.search(null::article, 'x', lexical => 'nan')", "EW003", "lexical is NaN"),
        ("embed.set_lexical('article', -1)", "EW003", "weight is -1"),
        ("embed.set_lexical('article', null)", "EW003", "weight is null"),
        ("embed.set_lexical('other', 0)", "EW002", "other is not enabled"),
        ("embed.search(null::text, 'x')", "EW003", "row of a table"),
        ("embed.search(null, 'x', lexical => 0)", "EW003", "text NULL"),
        ("embed.search('no such table', 'x')", "EW003", "row of a table"),
        ("embed.search('article'::regclass, 'x')", "EW003", "of type regclass"),
        ("embed.search(null::other, 'x')", "EW002", "other is not enabled"),
        ("embed.search(null::fresh, 'x')", "EW001", "no worker"),
        ("embed.similar(null::article, 99)", "EW003", "no row with the key 99"),
        ("embed.similar(null::article, 'x')", "EW003", "does not fit"),
        ("embed.similar(null::article, row(1, 2))", "EW003", "does not fit"),
        ("embed.similar(null::article, null::bigint)", "EW003", "does not fit"),
        ("embed.similar(null::article, 6)", "EW002", "no vector yet"),
        ("embed.similar(null::article, 7)", "EW002", "since it has no text"),
        ("embed.similar(null::broken, 1)", "EW004", "dropped"),
    ],
)
def test_errors_say_what_to_do(article: Connection, call: str, state: str, words: str) -> None:
    article.execute(
        """
        create table other (id int primary key, t text);
        create table fresh (id int primary key, t text);
        create table broken (id int primary key, t text);
        insert into article values (6, 'not embedded yet'), (7, null);
        select embed.enable('fresh', array['t']);
        select embed.enable('broken', array['t']);
        alter table broken drop t;
        """
    )
    with pytest.raises(errors.DatabaseError, match=words) as caught:
        article.execute(f"select * from {call}".encode())
    assert caught.value.diag.sqlstate == state
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("embed.search('article', 'apple pie', k => 2)", "'apple pie', k => 2"),
        ("embed.search('article', %(vector)s, 2)", "%(vector)s, 2"),
        ("embed.search('article', 'apple pie', k => 2, lexical => 0)", "'apple pie', k => 2"),
        ("embed.similar('article', 1, k => 2)", "1, k => 2"),
        ("embed.similar('article', '1', 2)", "1, 2"),
    ],
)
def test_a_name_is_answered_with_the_call_to_write(
    article: Connection, vectors: VectorWriter, call: str, arguments: str
) -> None:
    """Also for a name that needs quotes; the hint is followed."""
    article.execute('alter table article rename to "Art icle"')
    call = call.replace("'article'", "'\"Art icle\"'")
    values = {"vector": word_vector("apple pie")}
    vectors.know("apple pie")
    with pytest.raises(errors.DatabaseError, match="expected a row of a table") as caught:
        article.execute(f"select * from {call}".encode(), values)
    assert caught.value.diag.sqlstate == "EW003"
    hint = caught.value.diag.message_hint or ""
    written = hint[hint.index("select") :].replace("…", arguments)
    rows = article.execute(written.encode(), values).fetchall()
    assert len(rows) == 2
    assert {row[0] for row in rows} <= set(ARTICLES)


def test_a_vector_without_its_type_is_no_text(article: Connection, vectors: VectorWriter) -> None:
    """Its digits would be searched for as words; the hint says which cast is missing."""
    vectors.know("x")
    digits = str([float(x) for x in word_vector("apple pie")])
    search = 'select (s."row").id from embed.search(null::article, %s, 2) s'
    for call in (search, "select embed.query(%s)", "select embed.similarity('x', %s)"):
        with pytest.raises(errors.DatabaseError, match="looks like a vector") as caught:
            article.execute(call.encode(), [digits])
        assert caught.value.diag.sqlstate == "EW003"
        hint = caught.value.diag.message_hint or ""
    assert "::public.vector, or $1::public.vector" in hint
    cast = hint[hint.index("::") : hint.index(",", hint.index("::"))]
    rows = article.execute(search.replace("%s", "%s" + cast).encode(), [digits]).fetchall()
    assert rows == [(1,), (4,)]
    for words in ("[1]", "[2024, a]", "1, 2", "[apple, pie]"):
        vectors.know(words)
        assert len(article.execute(search.encode(), [words]).fetchall()) == 2


def test_not_a_number_is_no_question(article: Connection) -> None:
    with pytest.raises(errors.DataException, match="NaN"):
        article.execute(
            "select * from embed.search(null::article, array_fill('NaN'::real, array[384])::vector)"
        )


def test_a_zero_vector_in_the_table_is_never_found(article: Connection) -> None:
    article.execute(
        "update article_embedding set embedding = array_fill(0, array[384])::vector where id = 1"
    )
    assert sorted(found(article, "apple pie")) == [2, 3, 4, 5]


def test_a_role_that_may_only_read(article: Connection, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    statement = """select (s."row").id from embed.search(null::article, 'apple pie', 2) s"""
    with role(article, "select on article"):
        assert article.execute(statement).fetchall() == [(1,), (4,)]
        rows = article.execute('select (s."row").id from embed.similar(null::article, 1, 2) s')
        assert sorted(rows) == [(2,), (4,)]
    for grants in ([], ["select (id) on article"], ["select on article_embedding"]):
        with (
            role(article, *grants),
            pytest.raises(errors.InsufficientPrivilege, match="for table article\n"),
        ):
            article.execute(statement)
    article.execute("revoke select on article_embedding from public")
    with (
        role(article, "select on article"),
        pytest.raises(errors.InsufficientPrivilege, match="article_embedding") as caught,
    ):
        article.execute(statement)
    assert caught.value.diag.message_hint == (
        "As the owner: grant select on article_embedding to public."
    )


def test_a_read_only_transaction(article: Connection, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    with article.transaction():
        article.execute("set transaction isolation level repeatable read read only")
        row = article.execute(
            """select (s."row").id from embed.search(null::article, 'apple pie', 1) s"""
        ).fetchone()
    assert row == (1,)


MANY = 5000
VISIBLE = 25
SUBJECTS = 99


@pytest.fixture
def notes(connection: Connection) -> Connection:
    """5,000 embedded rows under HNSW, of which every 200th belongs to the tenant min."""
    random = np.random.default_rng(1)
    connection.execute(
        """
        create table note (id int primary key, tenant text, title text);
        alter table note enable row level security;
        create policy own on note using (tenant = current_setting('app.tenant', true));
        select embed.enable('note', array['title']);
        """
    )
    writer = VectorWriter(connection)
    fingerprint = writer.fingerprint()
    # Around 100 subjects, as texts are: vectors at random in 384 dimensions have no near and far.
    subjects = np.stack([word_vector(f"subject{n}") for n in range(SUBJECTS)])
    noise = random.normal(scale=384**-0.5, size=(MANY, 384))
    matrix = (subjects[np.arange(MANY) % SUBJECTS] + noise).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    connection.execute(
        """
        insert into note
        select i, case when i %% %s = 0 then 'min' else 'others' end, 'note ' || i
        from generate_series(0, %s - 1) i
        """,
        [MANY // VISIBLE, MANY],
    )
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "copy note_embedding (id, passage_start, passage_end, embedding, fingerprint, hash,"
            " checksum, seq) from stdin"
        ) as copy,
    ):
        for number, vector in enumerate(matrix):
            copy.write_row((number, 0, 6, vector, fingerprint, b"", b"", 0))
    writer.activate("note", fingerprint)
    writer.drain("note")
    connection.execute("create index on note_embedding using hnsw (embedding vector_cosine_ops)")
    connection.execute("analyze note, note_embedding")
    return connection


def plan(connection: Connection, column: str) -> str:
    """How the server runs the candidates of a search, as EXPLAIN prints it."""
    row = connection.execute(
        f"select {column} from embed._search_plan('note'::regtype, null, 10, false)".encode()
    ).fetchone()
    assert row is not None
    vector = "'" + str(word_vector("x").tolist()) + "'::vector"
    statement = row[0].replace("$1", vector).replace("$2", "50").replace("$5", "1")
    statement = statement.replace("$6", "'{}'::tid[]")
    return "\n".join(line for (line,) in connection.execute(f"explain {statement}".encode()))


@pytest.mark.slow
def test_the_index_is_used(notes: Connection) -> None:
    """Where it is worth it: with ef_search = 250 so few rows are as quickly compared."""
    notes.execute("set enable_sort = off; set enable_seqscan = off")
    assert "Index Scan using note_embedding_embedding_idx" in plan(notes, "by_index")
    assert "note_embedding_embedding_idx" not in plan(notes, "by_scan")
    with role(notes, "select on note"):
        notes.execute("set app.tenant = 'others'")
        assert "Index Scan using note_embedding_embedding_idx" in plan(notes, "by_index")


@pytest.mark.slow
def test_index_and_comparison_agree(notes: Connection) -> None:
    hits = 0
    for number in range(20):
        row = notes.execute(
            'select array_agg((s."row").id) from embed.search(null::note, %s::vector) s',
            [word_vector(f"subject{number} question")],
        ).fetchone()
        exact = notes.execute(
            "select array(select id from note_embedding order by (embedding <=> %s) + 0 limit 10)",
            [word_vector(f"subject{number} question")],
        ).fetchone()
        assert row is not None
        assert exact is not None
        hits += len(set(row[0]) & set(exact[0]))
    assert hits >= 190  # HNSW is approximate; random vectors are its hardest case


@pytest.mark.slow
def test_row_security_leaves_k_rows_of_the_reader_s_own(notes: Connection) -> None:
    with role(notes, "select on note"):
        notes.execute("set app.tenant = 'min'")
        for k in (10, VISIBLE, 100):
            rows = notes.execute(
                """
                select (s."row").tenant, (s."row").id
                from embed.search(null::note, %s::vector, k => %s) s
                """,
                [word_vector("question"), k],
            ).fetchall()
            assert len({number for _, number in rows}) == min(k, VISIBLE)
            assert {tenant for tenant, _ in rows} == {"min"}
        notes.execute("set app.tenant = 'nobody'")
        assert found(notes, "question", relation="note") == []
        with pytest.raises(errors.DatabaseError, match="no row with the key 1\n"):
            notes.execute("select * from embed.similar(null::note, 1)")


@pytest.mark.slow
def test_an_index_that_gives_up_early_does_not_cost_rows(notes: Connection) -> None:
    notes.execute("set hnsw.max_scan_tuples = 50")
    notes.execute("delete from note where tenant <> 'min'")
    assert len(found(notes, "question", k=VISIBLE, relation="note")) == VISIBLE


@pytest.mark.slow
def test_a_policy_may_rely_on_the_caller_s_search_path(notes: Connection) -> None:
    notes.execute(
        """
        create schema app;
        create table app.membership as select 'min' as tenant;
        grant usage on schema app to public;
        grant select on app.membership to public;
        create function app.mine(text) returns boolean stable language plpgsql
            as 'begin return $1 in (select m.tenant from membership m); end';
        drop policy own on note;
        create policy own on note using (app.mine(tenant));
        set search_path = app, public;
        """
    )
    with role(notes, "select on note"):
        assert len(found(notes, "question", relation="note")) == 10


def test_similar_rows_leave_out_the_row_itself(article: Connection) -> None:
    rows = article.execute(
        'select (s."row").id, s.similarity from embed.similar(null::article, 1, k => 3) s'
    ).fetchall()
    assert [row[0] for row in rows] == sorted(
        (n for n in ARTICLES if n != 1),
        key=lambda n: -float(word_vector(ARTICLES[n]) @ word_vector(ARTICLES[1])),
    )[:3]
    assert rows[0][1] == pytest.approx(
        float(word_vector(ARTICLES[rows[0][0]]) @ word_vector(ARTICLES[1])), abs=1e-5
    )


def test_similar_compares_the_mean_of_a_row_in_several_passages(
    connection: Connection, vectors: VectorWriter
) -> None:
    connection.execute("create table article (id bigint primary key, title text)")
    connection.execute(
        "insert into article values (1, 'apple pear'), (2, 'apple apple'), (3, 'pear pear'),"
        " (4, 'x y')"
    )
    connection.execute("select embed.enable('article', array['title'])")
    vectors.embed("article", words_a_passage=1)
    rows = connection.execute(
        'select (s."row").id, s.similarity from embed.similar(null::article, 1, k => 2) s'
    ).fetchall()
    assert {row[0] for row in rows} == {2, 3}
    mean = word_vector("apple") + word_vector("pear")
    wanted = {
        2: float(word_vector("apple") @ mean) / float(np.linalg.norm(mean)),
        3: float(word_vector("pear") @ mean) / float(np.linalg.norm(mean)),
    }
    assert dict(rows) == pytest.approx(wanted, abs=1e-5)


def test_similarity_of_texts_is_symmetric(article: Connection, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    vectors.know("apple cake")
    row = article.execute(
        """
        select
            embed.similarity('apple pie', 'apple cake'),
            embed.similarity('apple cake', 'apple pie'),
            embed.similarity('apple pie', 'apple pie')
        """
    ).fetchone()
    assert row is not None
    wanted = float(word_vector("apple pie") @ word_vector("apple cake"))
    assert row[0] == row[1] == pytest.approx(wanted, abs=1e-5)
    assert row[2] == pytest.approx(1, abs=1e-6)
