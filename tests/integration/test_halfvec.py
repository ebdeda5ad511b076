"""Vectors with two bytes for each number: kept current, found, switched to and back."""

import json
from typing import Any

import numpy as np
import psycopg
import pytest
from fix_cli import Cli
from fix_drain import Connection, Drain, assert_current, source_of
from fix_questions import QuestionRunner
from pgvector import Vector
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.integrations.sqlalchemy import Embedded, enable_all, search
from embedworker.model.testing import HashEncoder, hash_vector
from embedworker.service.indexing import Indexer

ROWS = 60
TYPE = """
select format_type(atttypid, atttypmod) from pg_attribute
where attrelid = %s::regclass and attname = %s
"""
NEAREST = """
select id from note join note_embedding using (id)
order by embedding <=> (select embed.query('text 7', of => 'note')) limit 5
"""
SEARCHED = 'select (s."row").id from embed.search(null::note, %s::vector, k => 10) s'


@pytest.fixture
def note(app: Connection, drain: Drain) -> Connection:
    """A table with vectors of type halfvec."""
    app.execute("create table note (id integer primary key, content text)")
    app.execute("insert into note select n, 'text ' || n from generate_series(1, %s) n", [ROWS])
    app.execute("select embed.enable('note', array['content'], storage => 'halfvec')")
    assert drain() == []
    return app


def value(connection: Connection, query: str, *given: Any) -> Any:
    row = connection.execute(query.encode(), given or None).fetchone()
    assert row is not None
    return row[0]


def nearest(connection: Connection, question: str) -> list[int]:
    """What numpy finds among the rows as they are."""
    rows = connection.execute("select id, content from note where content is not null").fetchall()
    asked = hash_vector("query: " + question)
    cosines = {n: float(asked @ hash_vector("passage: " + text)) for n, text in rows}
    return sorted(cosines, key=lambda n: -cosines[n])


def index(connection: Connection, url: str) -> str:
    """Build the index as a worker does; its definition."""
    source = source_of(connection, "note", "note")
    indexer = Indexer(url, after_rows=10, memory=64 << 20)
    indexer.run_if_due(connection, source)
    indexer.wait()
    return str(
        value(
            connection,
            "select pg_get_indexdef(x.index) from embed.source s, embed._vector_indexes(s) x"
            " where s.name = 'note' and x.valid",
        )
    )


def test_a_table_of_halfvec_is_kept_current(note: Connection, drain: Drain) -> None:
    assert value(note, TYPE, "note_embedding", "embedding") == "halfvec(384)"
    assert len(assert_current(note, "note")) == ROWS
    note.execute("update note set content = 'other ' || id where id <= 10")
    note.execute("delete from note where id = 60")
    assert drain() == []
    assert len(assert_current(note, "note")) == ROWS - 1
    # The checksum is of what is stored: nothing is embedded again, and what was altered is.
    found = "select missing, stale, orphaned, altered from embed.sweep('note')"
    assert note.execute(found.encode()).fetchone() == (0, 0, 0, 0)
    note.execute("update note_embedding set embedding = embedding + embedding where id = 3")
    assert note.execute(found.encode()).fetchone() == (0, 0, 0, 1)
    assert drain() == []
    assert_current(note, "note")
    # The same call again keeps the type, and so does one that does not name it.
    for more in ("", ", storage => 'halfvec'"):
        value(note, f"select embed.enable('note', array['content']{more})::text")
        assert value(note, TYPE, "note_embedding", "embedding") == "halfvec(384)"
    with pytest.raises(psycopg.DatabaseError, match="storage => 'halfvec'") as refused:
        note.execute("select embed.enable('note', array['content'], storage => 'vector')")
    assert refused.value.sqlstate == "EW003"


def test_halfvec_is_searched_with_the_index_and_without(
    note: Connection, shared_database: str
) -> None:
    asked = hash_vector("query: text 7")
    expected = nearest(note, "text 7")[:10]
    assert [n for (n,) in note.execute(SEARCHED, [asked.tolist()])] == expected
    definition = index(note, shared_database)
    assert "hnsw (embedding halfvec_cosine_ops)" in definition.replace("public.", "")
    assert [n for (n,) in note.execute(SEARCHED, [asked.tolist()])] == expected
    similar = note.execute('select (s."row").id from embed.similar(null::note, 7, k => 3) s')
    assert len(similar.fetchall()) == 3
    with connect(shared_database) as asking, QuestionRunner(shared_database, 1000):
        set_up_loopback(asking)
        asking.execute("set search_path = shop, public; set enable_seqscan = off")
        # Nothing else is to be written than for a vector: the server casts the question.
        plan = "\n".join(row for (row,) in asking.execute("explain " + NEAREST))
        assert "Index Scan using note_embedding_hnsw" in plan, plan
        assert [n for (n,) in asking.execute(NEAREST)] == expected[:5]


def test_an_index_of_another_extension_is_used(note: Connection, shared_database: str) -> None:
    """As VectorChord and pgvectorscale declare theirs, with the handler of pgvector behind it."""
    asked = hash_vector("query: text 7").tolist()
    note.execute("create access method vchordrq type index handler hnswhandler")
    try:
        note.execute(
            "create operator class halfvec_cosine_ops for type halfvec using vchordrq as"
            " operator 1 <=> (halfvec, halfvec) for order by float_ops,"
            " function 1 halfvec_negative_inner_product(halfvec, halfvec),"
            " function 2 l2_norm(halfvec), function 3 hnsw_halfvec_support(internal);"
            "create index mine on note_embedding using vchordrq (embedding halfvec_cosine_ops);"
            "analyze note_embedding; set enable_seqscan = off; set enable_sort = off"
        )
        # A worker builds none beside it.
        assert "USING vchordrq" in index(note, shared_database)
        used = "select pg_stat_get_xact_numscans('mine'::regclass)"
        with note.transaction():
            found = [n for (n,) in note.execute(SEARCHED, [asked])]
            assert value(note, used) > 0
        assert found == nearest(note, "text 7")[:10]
        ((state, said),) = note.execute(
            "select state, detail from embed.doctor()"
            " where subject = 'shop.note' and \"check\" = 'index'"
        )
        assert (state, said) == ("ok", "valid")
    finally:
        note.execute("drop access method vchordrq cascade")


def test_a_column_of_halfvec_holds_the_vector(app: Connection, drain: Drain) -> None:
    app.execute("create table note (id integer primary key, content text, v halfvec(384))")
    app.execute("insert into note values (1, 'one'), (2, 'two'), (3, null)")
    with pytest.raises(psycopg.DatabaseError, match=r"column v of type vector\(384\)"):
        app.execute(
            "select embed.enable('note', '{content}', into_column => 'v', storage => 'vector')"
        )
    app.execute("select embed.enable('note', '{content}', into_column => 'v')")
    assert drain() == []
    assert len(assert_current(app, "note")) == 2
    found = app.execute(SEARCHED, [hash_vector("query: one").tolist()]).fetchall()
    assert [n for (n,) in found] == nearest(app, "one")


def test_vectors_that_are_left_keep_their_type(note: Connection, drain: Drain) -> None:
    before = value(note, "select max(embedded_at) from note_embedding")
    note.execute("select embed.disable('note')")
    with pytest.raises(psycopg.DatabaseError, match="of type halfvec, not vector"):
        note.execute("select embed.enable('note', array['content'], storage => 'vector')")
    note.execute("select embed.enable('note', array['content'])")
    assert drain() == []
    assert value(note, "select max(embedded_at) from note_embedding") == before


@pytest.mark.parametrize("into_column", [False, True])
def test_a_switch_to_halfvec_and_back(
    into_column: bool, app: Connection, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.execute("create table note (id integer primary key, content text, v vector(384))")
    app.execute("insert into note select n, 'text ' || n from generate_series(1, 20) n")
    column = "'v'" if into_column else "null"
    app.execute(f"select embed.enable('note', '{{content}}', into_column => {column})".encode())
    assert drain() == []
    place = ("note", "v") if into_column else ("note_embedding", "embedding")
    app.execute("select embed.begin_switch('note', storage => 'halfvec')")
    app.execute("select embed.begin_switch('note', storage => 'halfvec')")  # says the same
    app.execute("update note set content = 'changed' where id = 4")
    if not into_column:
        app.execute("update note_embedding set embedding = embedding + embedding where id = 5")
    encoded = []
    encode = HashEncoder.encode_tokens

    def counted(self: HashEncoder, tokens: Any) -> Any:
        encoded.extend(tokens)
        return encode(self, tokens)

    monkeypatch.setattr(HashEncoder, "encode_tokens", counted)
    assert drain() == []
    # Taken from the other side: all but what was changed, there or in the table.
    assert len(encoded) < 5 if not into_column else len(encoded) >= 20
    assert value(app, "select phase from embed.switch") == "ready"
    app.execute("select embed.cut_over('note')")
    assert value(app, TYPE, *place) == "halfvec(384)"
    app.execute("update note set content = 'again' where id = 5")
    assert drain() == []
    assert len(assert_current(app, "note", "note")) == 20
    assert len(assert_current(app, "note", "note_next")) == 20
    app.execute("select embed.roll_back('note')")
    assert value(app, TYPE, *place) == "vector(384)"
    app.execute("select embed.cut_over('note'), embed.end_switch('note')")
    assert value(app, TYPE, *place) == "halfvec(384)"
    # It goes on to follow the default model.
    assert value(app, "select model is null from embed.source where name = 'note'")
    found = app.execute(SEARCHED, [hash_vector("query: again").tolist()]).fetchall()
    assert [n for (n,) in found] == nearest(app, "again")[:10]
    with pytest.raises(psycopg.DatabaseError, match="of the type halfvec"):
        app.execute("select embed.begin_switch('note', storage => 'halfvec')")


def test_the_bytes_of_halfvec(note: Connection) -> None:
    half = value(note, "select avg(pg_column_size(embedding))::integer from note_embedding")
    assert half == np.dtype(np.float16).itemsize * 384 + 8
    assert half == value(note, "select embed._vector_bytes('halfvec', 384)")


@pytest.mark.parametrize("declared", ["halfvec", None])
def test_sqlalchemy_compares_halfvec(
    declared: str | None, note: Connection, shared_database: str
) -> None:
    """None: the table was declared before its vectors became halfvec."""

    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        __table_args__ = {"schema": "shop"}  # noqa: RUF012 -- as SQLAlchemy's documentation has it
        id: Mapped[int] = mapped_column(primary_key=True)
        content: Mapped[str]
        embedding = Embedded("content", storage=declared)

    index(note, shared_database)
    engine = create_engine(shared_database.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        enable_all(connection, Base.metadata)
    asked = hash_vector("query: text 7")
    expected = nearest(note, "text 7")[:3]
    with Session(engine) as session:
        for given in (Vector(asked), asked.tolist()):
            by_distance = select(Note.id).order_by(Note.embedding.distance(given)).limit(3)
            assert session.scalars(by_distance).all() == expected
            near = select(Note.id).where(Note.embedding.nearest(given, passages=3))
            assert sorted(session.scalars(near)) == sorted(expected)
            assert [hit.row.id for hit in search(session, Note, given, 3)] == expected
        passage = session.scalars(select(Note.embedding.passage).limit(1)).one()
        assert len(passage.embedding) == 384
    engine.dispose()


def test_the_command_line_names_a_storage(app: Connection, shared_database: str) -> None:
    app.execute("create table shop.note (id integer primary key, content text)")
    cli = Cli(shared_database)
    cli.ok("enable", "shop.note", "content", "--storage", "halfvec")
    assert value(app, TYPE, "note_embedding", "embedding") == "halfvec(384)"
    said = cli.ok("switch", "start", "shop.note", "--storage", "vector")
    assert "vectors:   shop.note_next_embedding" in said
    assert value(app, TYPE, "note_next_embedding", "embedding") == "vector(384)"
    shown = cli.ok("switch", "status")
    assert "(halfvec)" in shown
    assert "(vector)" in shown
    found = json.loads(cli.ok("status", "--json"))["sources"]
    kinds = {one["name"]: one["storage"] for one in found}
    assert (kinds["note"], kinds["note_next"]) == ("halfvec", "vector")
    refused = cli("enable", "shop.note", "content", "--storage", "half")
    assert refused.returncode != 0
    assert "expected 'vector' or 'halfvec'" in refused.stderr
