"""SQLAlchemy models whose text is searchable: declared, enabled, searched."""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_vectors import VectorWriter, word_vector
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    configure_mappers,
    declarative_base,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.schema import CreateSchema

from embedworker.database.embedded.cluster import Cluster
from embedworker.errors import (
    ConfigurationError,
    DatabaseError,
    EmbedworkerError,
    NoLoopback,
    SearchWarning,
)
from embedworker.integrations.declaration import declarations, vector_table_name
from embedworker.integrations.sqlalchemy import (
    Embedded,
    Passage,
    declare_embedded,
    enable_all,
    query,
    search,
    search_async,
    search_statement,
    typed_errors,
)

ARTICLES = {
    1: "apple pie with cinnamon",
    2: "pear tart with cream",
    3: "train from seoul to busan",
    4: "apple orchard in autumn",
}


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    __table_args__ = (UniqueConstraint("title"), {"comment": "what is written"})
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    notes: Mapped[list["Note"]] = relationship(back_populates="article")
    embedding = Embedded("title")


class Note(Base):
    __tablename__ = 'no:te%"s'
    __table_args__ = {"schema": 'bl%og"s'}  # noqa: RUF012 -- as SQLAlchemy's documentation has it
    tenant: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column('nu%m"ber', primary_key=True)
    heading: Mapped[str] = mapped_column("He:ading%")
    body: Mapped[str]
    article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))
    article: Mapped[Article | None] = relationship(back_populates="notes")
    embedding = Embedded("heading", "body", template="100%: {heading} {{so}} 'it' :is {body}")


def url_of(database: str) -> str:
    return database.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(scope="module")
def database(server: Cluster, template: str) -> Iterator[str]:
    """One for all tests here; their questions are known, so that nobody needs to answer."""
    with new_database(server, template) as url:
        yield url


@pytest.fixture(scope="module")
def engine(database: str) -> Iterator[Engine]:
    made = create_engine(url_of(database))
    with made.begin() as connection:
        connection.execute(CreateSchema('bl%og"s'))
        Base.metadata.create_all(connection)
        enable_all(connection, Base.metadata)
    yield made
    made.dispose()


@pytest.fixture
def session(engine: Engine, vectors: VectorWriter) -> Iterator[Session]:
    """A session on four embedded articles."""
    vectors.connection.execute("truncate article, article_embedding, embed.question_cache cascade")
    with Session(engine) as opened:
        opened.add_all(Article(id=key, title=title) for key, title in ARTICLES.items())
        opened.commit()
        vectors.embed("article")
        yield opened


def test_search_returns_rows_scores_and_passages(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    first, second = search(session, Article, "apple pie", 2, lexical=0)
    assert first.row is session.get(Article, 1)
    assert second.row.title == ARTICLES[4]
    wanted = float(word_vector("apple pie") @ word_vector(ARTICLES[1]))
    assert first.score == first.similarity == pytest.approx(wanted, abs=1e-5)
    assert (first.bm25, first.passage) == (None, ARTICLES[1])
    assert (first.passage_start, first.passage_end) == (0, len(ARTICLES[1]))


def test_words_count_unless_told_otherwise(session: Session, vectors: VectorWriter) -> None:
    vectors.count("article")
    vectors.know("apple pie")
    (hit,) = search(session, Article, "apple pie", 1)
    assert hit.bm25 is not None
    assert hit.score > hit.similarity


def test_search_by_vector(session: Session) -> None:
    hits = search(session, Article, [float(x) for x in word_vector("train to busan")], 2)
    assert hits[0].row.id == 3
    assert len(hits) == 2


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ([Article.title == ARTICLES[2]], [2]),
        ([Article.title.like("apple%")], [1, 4]),
        ([Article.title.like("apple%"), Article.id > 1], [4]),
        ([Article.id == 3], [3]),
        ([Article.id.in_([2, 3]), Article.title == ARTICLES[3]], [3]),
        ([Article.title == "a", Article.title == "b"], []),
        ([or_(Article.id == 1, Article.notes.any())], [1]),
        ([Article.id > 99], []),
    ],
)
def test_conditions_are_inside_the_search(
    session: Session, vectors: VectorWriter, where: list[Any], keys: list[int]
) -> None:
    vectors.know("apple pie")
    hits = search(session, Article, "apple pie", 2, where=where)
    assert sorted(hit.row.id for hit in hits) == keys
    assert hits.degraded is None
    vector = [float(x) for x in word_vector("apple pie")]
    assert [h.row.id for h in search(session, Article, vector, 1, where=where)] == [
        hit.row.id for hit in hits[:1]
    ]


@pytest.mark.usefixtures("session")
def test_a_condition_of_a_key_of_several_columns() -> None:
    with pytest.raises(ConfigurationError, match="a key of 2 columns"):
        search_statement(Note, "x", where=[Note.number > 3])
    assert "jsonb_build_object" in str(search_statement(Note, "x", where=[Note.body == "a"]))


def test_pages(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    whole = [hit.row.id for hit in search(session, Article, "apple pie", 4)]
    pages = [search(session, Article, "apple pie", 1, offset=n)[0].row.id for n in range(4)]
    assert pages == whole
    assert search(session, Article, "apple pie", 1, offset=4) == []


def test_the_words_alone(session: Session, vectors: VectorWriter) -> None:
    """Nobody answers here, and nothing else than the words is known of the question."""
    vectors.count("article")
    with pytest.warns(SearchWarning, match="the words alone rank the rows: EW007"):
        hits = search(session, Article, "orchards")
    assert [hit.row.id for hit in hits] == [4]
    assert hits[0].similarity is None
    assert hits.degraded is not None
    with pytest.warns(SearchWarning, match="the words alone"):
        assert search(session, Article, "zebra").degraded is not None
    vectors.know("zebra")
    assert search(session, Article, "zebra").degraded is None


def test_distance_is_one_value_a_row_of_its_best_passage(
    session: Session, vectors: VectorWriter
) -> None:
    assert vectors.embed("article", words_a_passage=2) == 9
    session.add(Article(id=9, title="not embedded yet"))
    vectors.know("seoul to")
    distance = Article.embedding.distance(query("seoul to"))
    rows = session.execute(select(Article.id, distance).order_by(distance, Article.id)).all()
    assert rows[0][0] == 3
    assert sorted(key for key, _ in rows) == [1, 2, 3, 4, 9]
    best = max(
        float(word_vector("seoul to") @ word_vector(part))
        for part in ("train from", "seoul to", "busan")
    )
    assert rows[0][1] == pytest.approx(1 - best, abs=1e-5)
    assert rows[-1] == (9, None)


def test_rows_without_a_vector_can_be_left_out(session: Session, vectors: VectorWriter) -> None:
    """As the README writes it; they would come last."""
    session.add(Article(id=9, title="not embedded yet"))
    vectors.know("seoul")
    embedded = select(Article.id).where(Article.embedding.any())
    found = session.scalars(embedded.order_by(Article.embedding.distance(query("seoul")))).all()
    assert found[0] == 3
    assert sorted(found) == [1, 2, 3, 4]


def test_a_text_is_a_question(session: Session, vectors: VectorWriter) -> None:
    vectors.know("pear")
    nearest = select(Article).order_by(Article.embedding.distance("pear")).limit(1)
    assert session.scalars(nearest).one().id == 2


def test_the_question_is_computed_once(session: Session, vectors: VectorWriter) -> None:
    vectors.know("pear")
    statement = select(Article.id).order_by(Article.embedding.distance("pear"))
    assert "InitPlan" in explain(session, statement)


def explain(session: Session, statement: Select[Any]) -> str:
    compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    return "\n".join(session.execute(text(f"explain {compiled}")).scalars())


def test_distance_in_where_joins_and_aliases(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple orchard")
    other = aliased(Article)
    statement = (
        select(Article.id, other.id)
        .join(other, Article.id < other.id)
        .where(Article.embedding.distance("apple orchard") < 0.9)
        .where(other.embedding.distance("apple orchard") < 0.9)
    )
    assert session.execute(statement).all() == [(1, 4)]


def test_the_relationship_holds_the_passages(session: Session, vectors: VectorWriter) -> None:
    vectors.embed("article", words_a_passage=2)
    article = session.get_one(Article, 3)
    spans = [ARTICLES[3][p.passage_start : p.passage_end] for p in article.embedding]
    assert spans == ["train from", "seoul to", "busan"]
    assert [p.chunk for p in article.embedding] == [0, 1, 2]
    assert article.embedding[2].embedding == pytest.approx(word_vector("busan"), abs=1e-6)
    assert repr(article.embedding[2]) == "<Article_embedding 2 [20, 25)>"
    eager = session.scalars(select(Article).options(selectinload(Article.embedding))).all()
    assert [len(each.embedding) for each in sorted(eager, key=lambda a: a.id)] == [2, 2, 3, 2]
    with_passage = select(Article).where(
        Article.embedding.any(Article.embedding.passage.chunk == 2)
    )
    assert session.scalars(with_passage).all() == [article]


def test_joined_passages_are_ordered_by_the_index(session: Session, vectors: VectorWriter) -> None:
    vectors.know("pear tart")
    passage = Article.embedding.passage
    statement = (
        select(Article.title, passage.passage_end)
        .join(Article.embedding)
        .order_by(passage.distance("pear tart"))
        .limit(1)
    )
    assert session.execute(statement).all() == [(ARTICLES[2], len(ARTICLES[2]))]
    session.execute(
        text("create index on article_embedding using hnsw (embedding vector_cosine_ops)")
    )
    session.execute(text("set local enable_seqscan = off; set local enable_sort = off"))
    explained = explain(session, statement)
    assert "article_embedding_embedding_idx" in explained
    assert "Order By" in explained


def test_nearest_narrows_by_the_index(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    statement = (
        select(Article.id)
        .where(Article.embedding.nearest("apple pie", passages=2))
        .order_by(Article.id)
    )
    assert session.scalars(statement).all() == [1, 4]


def test_odd_names_schemas_and_composite_keys(engine: Engine, vectors: VectorWriter) -> None:
    tenant = uuid4()
    relation = '"bl%og""s"."no:te%""s"'
    with Session(engine) as session:
        session.add_all(
            Note(tenant=tenant, number=n, heading="note", body=body) for n, body in ARTICLES.items()
        )
        session.commit()
        vectors.embed(relation)
        vectors.know("seoul")
        (hit,) = search(session, Note, "seoul", 1, lexical=0)
        assert (hit.row.tenant, hit.row.number) == (tenant, 3)
        assert hit.passage == f"100%: note {{so}} 'it' :is {ARTICLES[3]}"
        ordered = select(Note.number).order_by(Note.embedding.distance("seoul"))
        assert session.scalars(ordered).first() == 3
        near = select(Note.number).where(Note.embedding.nearest("seoul", passages=1))
        assert session.scalars(near).all() == [3]
        (passage,) = hit.row.embedding
        assert getattr(passage, 'nu%m"ber') == 3


def test_create_all_leaves_the_vector_table_to_enable(
    engine: Engine, connection: Connection
) -> None:
    assert not any(name.endswith("_embedding") for name in Base.metadata.tables)
    sources = connection.execute("select version from embed.source order by id").fetchall()
    with engine.begin() as opened:
        Base.metadata.create_all(opened)
        enable_all(opened, Base.metadata)
    assert connection.execute("select version from embed.source order by id").fetchall() == sources


def test_deleting_a_row_leaves_its_vectors_to_the_worker(
    session: Session, connection: Connection
) -> None:
    article = session.get_one(Article, 1)
    assert len(article.embedding) == 1
    session.delete(article)
    session.commit()
    left = connection.execute("select from article_embedding where id = 1").fetchall()
    assert len(left) == 1


def test_what_is_pending_in_the_session_is_found(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    session.get_one(Article, 1).title = "changed"
    (hit,) = search(session, Article, "apple pie", 1, lexical=0)
    assert hit.row.title == "changed"


def test_schema_translate_map(database: str, connection: Connection, vectors: VectorWriter) -> None:
    base = declarative_base(metadata=MetaData(schema="tenant"))

    class Document(base):  # type: ignore[misc, valid-type]  # its class is made at run time
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding = Embedded("body")

    connection.execute("create schema t1")
    made = create_engine(url_of(database)).execution_options(schema_translate_map={"tenant": "t1"})
    with made.begin() as opened:
        base.metadata.create_all(opened)
        enable_all(opened, base.metadata)
    with Session(made) as session:
        session.add(Document(id=1, body="pear tart"))
        session.commit()
        vectors.embed("t1.document")
        vectors.know("pear")
        assert [hit.row.id for hit in search(session, Document, "pear")] == [1]
        distance = session.scalar(select(Document.embedding.distance("pear")).select_from(Document))
        assert distance == pytest.approx(
            1 - float(word_vector("pear") @ word_vector("pear tart")), abs=1e-5
        )
    made.dispose()


@pytest.mark.usefixtures("session")
def test_asynchronous(database: str, vectors: VectorWriter) -> None:
    vectors.know("apple pie")

    async def ask() -> list[Any]:
        engine = create_async_engine(url_of(database))
        async with engine.begin() as connection:
            await connection.run_sync(enable_all, Base.metadata)
        async with AsyncSession(engine) as opened:
            hits = await search_async(
                opened, Article, "apple pie", 2, options=[selectinload(Article.embedding)]
            )
            ordered = select(Article.id).order_by(Article.embedding.distance(query("apple pie")))
            found = [(hit.row.id, len(hit.row.embedding)) for hit in hits]
            found.append((await opened.scalars(ordered)).first())
        await engine.dispose()
        return found

    assert asyncio.run(ask()) == [(1, 1), (4, 1), 1]


def test_several_declarations_of_one_class(database: str, vectors: VectorWriter) -> None:
    class Both(DeclarativeBase):
        pass

    class Page(Both):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str]
        by_title = Embedded("title", name="page_title")
        by_body = Embedded("body", name="page_body", chunk=False)

    made = create_engine(url_of(database))
    with made.begin() as opened:
        Both.metadata.create_all(opened)
        enable_all(opened, Both.metadata)
    with Session(made) as session:
        session.add_all(
            [Page(id=1, title="apple", body="train"), Page(id=2, title="train", body="pear")]
        )
        session.commit()
        vectors.embed("page", name="page_title")
        vectors.embed("page", name="page_body")
        vectors.know("train")
        assert search(session, Page, "train", 1, name="page_title")[0].row.id == 2
        assert search(session, Page, "train", 1, name="page_body")[0].row.id == 1
        by_body = select(Page.id).order_by(Page.by_body.distance("train"))
        assert session.scalars(by_body).all() == [1, 2]
    made.dispose()


def test_a_vector_in_the_table_itself_is_declared_without_attribute() -> None:
    metadata = MetaData()
    table = Table("plain", metadata, Column("id", Integer, primary_key=True), Column("t", Text))
    declare_embedded(table, "t", into_column="t", filter="t <> ''", key=["id"])
    (declared,) = declarations(metadata)
    assert (declared.table, declared.columns, declared.into_column) == ("plain", ("t",), "t")
    assert (declared.filter, declared.key) == ("t <> ''", ("id",))


def test_mixins_inheritance_and_dataclasses() -> None:
    class Root(MappedAsDataclass, DeclarativeBase, kw_only=True):
        pass

    class Titled(MappedAsDataclass, kw_only=True):
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding = Embedded("title")

    class Book(Titled, Root):
        __tablename__ = "book"
        __mapper_args__ = {"polymorphic_identity": "book", "polymorphic_on": "kind"}  # noqa: RUF012
        kind: Mapped[str] = mapped_column(init=False)

    class Novel(Book):
        __tablename__ = "novel"
        __mapper_args__ = {"polymorphic_identity": "novel"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(ForeignKey("book.id"), primary_key=True, init=False)
        plot: Mapped[str]
        plot_embedding = Embedded("plot")

    class Film(Titled, Root):
        __tablename__ = "film"

    configure_mappers()
    tables = sorted(found.table for found in declarations(Root.metadata))
    assert tables == ["book", "film", "novel"]
    assert Book(id=1, title="x").title == "x"
    assert Novel.embedding.passage is Book.embedding.passage
    assert Novel.plot_embedding.passage.__table__.name == "novel_embedding"
    assert issubclass(Film.embedding.passage, Passage)
    assert isinstance(vars(Titled)["embedding"], Embedded)
    assert "embedding" in inspect(Film).relationships


def test_the_model_of_the_declaration_answers() -> None:
    class Own(DeclarativeBase):
        pass

    class Paper(Own):
        __tablename__ = "paper"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        embedding = Embedded("body", model="BAAI/bge-m3")

    def models(expression: Any) -> set[Any]:
        return {v for v in expression.compile().params.values() if "/" in str(v)}

    assert models(Paper.embedding.distance("x")) == {"BAAI/bge-m3"}
    assert models(Paper.embedding.nearest(query("x"))) == {"BAAI/bge-m3"}
    assert models(Paper.embedding.passage.distance("x")) == {"BAAI/bge-m3"}
    assert models(Paper.embedding.distance(query("x", "a/b"))) == {"a/b"}


def test_a_class_that_was_enabled_elsewhere_is_searched_without_declaration(
    session: Session, vectors: VectorWriter
) -> None:
    class Plain(DeclarativeBase):
        pass

    class Row(Plain):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)

    vectors.know("pear")
    (hit,) = search(session, Row, "pear", 1)
    assert hit.row.id == 2


def test_a_statement_can_be_narrowed(session: Session, vectors: VectorWriter) -> None:
    vectors.know("apple pie")
    with pytest.warns(SearchWarning, match="can leave fewer than k"):
        statement = search_statement(Article, "apple pie", 4).where(Article.id > 1)
    assert session.scalars(statement).first() is session.get(Article, 4)


def test_errors_of_the_server_keep_their_sqlstate(session: Session) -> None:
    with pytest.raises(EmbedworkerError) as caught:
        search(session, Article, "unknown", 0)
    assert caught.value.sqlstate == "EW003"


SECRET = "a question that nobody else may read"


def ask_in_search(session: Session) -> object:
    return search(session, Article, SECRET, lexical=0)


def ask_in_a_statement(session: Session) -> object:
    with typed_errors():
        return session.scalars(select(Article).order_by(Article.embedding.distance(SECRET))).all()


@pytest.mark.parametrize("ask", [ask_in_search, ask_in_a_statement])
def test_an_error_says_its_kind_and_not_the_question(
    session: Session, ask: Callable[[Session], object]
) -> None:
    with pytest.raises(NoLoopback, match="run `embedworker migrate` here") as caught:
        ask(session)
    assert caught.value.sqlstate == "EW007"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_errors_of_asyncpg(database: str) -> None:
    async def ask() -> None:
        engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
        try:
            async with AsyncSession(engine) as opened:
                await search_async(opened, Article, SECRET, lexical=0)
        finally:
            await engine.dispose()

    with pytest.raises(NoLoopback, match="run `embedworker migrate` here") as caught:
        asyncio.run(ask())
    assert caught.value.sqlstate == "EW007"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_of_an_error_with_a_value_only_the_code_is_told(session: Session) -> None:
    with pytest.raises(DatabaseError) as caught, typed_errors():
        session.execute(text("select cast(:given as integer)"), {"given": SECRET})
    assert str(caught.value) == "the server refused it with SQLSTATE 22P02"


def test_what_is_no_refusal_of_the_server_stays_as_it_is(session: Session) -> None:
    with pytest.raises(DBAPIError), typed_errors():
        session.execute(text("select :given"), {"given": object()})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": "ten"}, "k is 'ten'"),
        ({"k": 2.5}, "k is 2.5"),
        ({"k": None}, "k is None"),
        ({"rerank": True}, "rerank is True"),
        ({"question": 17}, "the question is of type int"),
        ({"question": b"apple pie"}, "the question is of type bytes"),
    ],
)
def test_arguments_of_another_type_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        search_statement(Article, **{"question": "apple pie", **given})


def test_unknown_attributes_are_refused_when_the_class_is_mapped() -> None:
    class Wrong(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match=r"has no column 'titel'.*it has: id, title"):

        class Article(Wrong):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str]
            embedding = Embedded("titel")


def test_two_ways_to_embed_one_table_need_two_names() -> None:
    class Twice(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="declared twice under the name 'article'"):

        class Article(Twice):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str]
            first = Embedded("title")
            second = Embedded("title", chunk=False)


@pytest.mark.parametrize("name", ["a", "x" * 63, "가" * 21, "a" + "가" * 20, "x" * 53])
def test_the_vector_table_is_named_as_by_the_server(connection: Connection, name: str) -> None:
    row = connection.execute("select embed._bounded_name(%s, '_embedding')", [name]).fetchone()
    assert row == (vector_table_name(name),)
