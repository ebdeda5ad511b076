"""Conditions, pages and row security beside an HNSW index: as many rows as were asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
from fix_database import Connection
from fix_database import _new_database as new_database
from fix_vectors import VectorWriter
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from embedworker import Client
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.migrate import downgrade, migrate
from embedworker.integrations.sqlalchemy import Embedded

ROWS = 22_000  # more than pgvector looks at by default
DIMENSIONS = 8  # so that the index is built in seconds
QUESTION = [0.3, -0.1, 0.2, 0.4, -0.3, 0.1, 0.0, -0.2]
SHARES = {1: 0.1, 2: 0.01, 3: 0.001}  # of the rows, by customer; the others have the customer 0
PASSWORD = "made up for the test"
# What a session has that no `migrate` has prepared.
UNPREPARED = (
    "-c hnsw.iterative_scan=off -c hnsw.ef_search=40 -c hnsw.max_scan_tuples=20000"
    " -c hnsw.scan_mem_multiplier=1"
)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int]
    title: Mapped[str]
    embedding = Embedded("title")


@pytest.fixture(scope="module")
def database(server: Cluster, template: str) -> Iterator[str]:
    """Articles of customers, an index of their vectors, and a role that sees one customer's."""
    with new_database(server, template) as url, connect(url) as c:
        c.execute("select embed.add_model('tiny', %s, 512, '', '')", [DIMENSIONS])
        c.execute("select embed.use_model('tiny')")
        c.execute("create table article (id int primary key, customer int not null, title text)")
        c.execute("select embed.enable('article', array['title'])")
        c.execute("alter table article disable trigger user")
        c.execute(
            "insert into article select n, case when n %% 10 = 1 then 1 when n %% 100 = 2 then 2"
            " when n %% 1000 = 3 then 3 else 0 end, 'title ' || n from generate_series(1, %s) n",
            [ROWS],
        )
        vectors = VectorWriter(c)
        vectors.activate("article", vectors.fingerprint())
        c.execute("select setseed(0.5)")
        c.execute(
            "insert into article_embedding"
            " select a.id, 0, 0, 1, false, (select array_agg(random() - 0.5) from"
            "  generate_series(1, %s) where a.id > 0)::vector, null, %s, 'x', 'x', 1"
            " from article a",
            [DIMENSIONS, vectors.fingerprint()],
        )
        c.execute(
            "create index nearest on article_embedding using hnsw (embedding vector_cosine_ops)"
        )
        c.execute("analyze article, article_embedding")
        vectors.know("where is it", np.array(QUESTION, np.float32))
        c.execute(f"create role t_customer login password '{PASSWORD}'".encode())
        c.execute("grant select on article to t_customer")
        c.execute(
            "create policy own on article to t_customer"
            " using (customer = current_setting('app.customer')::int)"
        )
        c.execute("alter table article enable row level security")
        yield url
        c.execute("drop owned by t_customer; drop role t_customer")


@pytest.fixture
def reader(database: str) -> Iterator[Connection]:
    """A session as an application has it, with little memory for a scan."""
    with psycopg.connect(database, autocommit=True) as c:
        c.execute("set work_mem = '1MB'")
        yield c


def nearest(c: Connection, where: str, limit: int, offset: int, exact: bool = False) -> list[int]:
    return [
        key
        for (key,) in c.execute(
            f"select id from article join article_embedding using (id) where {where}"
            f" order by {'0 + ' if exact else ''}(embedding <=> (select %s::vector))"
            f" limit {limit} offset {offset}".encode(),
            [str(QUESTION)],
        )
    ]


def by_the_index(c: Connection, where: str) -> None:
    """Leave the planner no other way, as where it takes a condition for less selective."""
    for way in ("sort", "seqscan", "bitmapscan", "hashjoin", "mergejoin"):
        c.execute(f"set enable_{way} = off".encode())
    plan = "\n".join(
        line
        for (line,) in c.execute(
            f"explain select id from article join article_embedding using (id) where {where}"
            " order by embedding <=> (select %s::vector) limit 10".encode(),
            [str(QUESTION)],
        )
    )
    assert "Index Scan using nearest" in plan, plan


def assert_near(found: Sequence[int], wanted: Sequence[int], rows: int) -> None:
    assert len(found) == len(set(found)) == len(wanted) == rows
    assert len(set(found) & set(wanted)) >= 0.95 * rows
    ranks = [wanted.index(key) for key in found if key in wanted]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("forced", [False, True], ids=["planner", "index"])
@pytest.mark.parametrize(("limit", "offset"), [(10, 0), (10, 12)])
@pytest.mark.parametrize("customer", SHARES)
def test_a_condition_leaves_as_many_rows_as_were_asked_for(
    reader: Connection, customer: int, limit: int, offset: int, forced: bool
) -> None:
    where = f"customer = {customer}"
    if forced:
        by_the_index(reader, where)
    wanted = nearest(reader, where, limit, offset, exact=True)
    assert_near(nearest(reader, where, limit, offset), wanted, limit)


def test_a_far_page_without_a_condition(reader: Connection) -> None:
    by_the_index(reader, "true")
    wanted = nearest(reader, "true", 200, 300, exact=True)
    assert_near(nearest(reader, "true", 200, 300), wanted, 200)


@pytest.mark.parametrize("customer", SHARES)
def test_row_security_leaves_as_many_rows_as_were_asked_for(database: str, customer: int) -> None:
    with as_customer(database, customer) as c, connect(database) as owner:
        wanted = nearest(owner, f"customer = {customer}", 10, 5, exact=True)
        assert_near(nearest(c, "true", 10, 5), wanted, 10)


@contextmanager
def as_customer(database: str, customer: int, options: str = "") -> Iterator[Connection]:
    options = f"{options} -c app.customer={customer}"
    url = make_conninfo(database, user="t_customer", password=PASSWORD, options=options)
    with psycopg.connect(url, autocommit=True) as c:
        yield c


@pytest.mark.parametrize("customer", SHARES)
def test_the_client_needs_no_preparation(database: str, customer: int) -> None:
    options = f"{UNPREPARED} -c app.customer={customer}"
    url = make_conninfo(database, user="t_customer", password=PASSWORD, options=options)
    with Client(url) as client, connect(database) as owner:
        found = [hit.key["id"] for hit in client.search("article", "where is it", 10, lexical=0)]
        assert_near(found, nearest(owner, f"customer = {customer}", 10, 0, exact=True), 10)


@pytest.fixture
def unprepared(database: str) -> Iterator[Session]:
    engine = create_engine(
        database.replace("postgresql://", "postgresql+psycopg://"),
        connect_args={"options": UNPREPARED},
    )
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_nearest_of_sqlalchemy_finds_as_many_passages(
    unprepared: Session, reader: Connection
) -> None:
    """By a vector and by a question; what it sets for that is gone with the transaction."""
    wanted = set(nearest(reader, "true", 1000, 0, exact=True))
    for asked in (QUESTION, "where is it"):
        for way in ("sort", "seqscan"):
            unprepared.execute(select(func.set_config(f"enable_{way}", "off", True)))
        statement = select(Article.id).where(Article.embedding.nearest(asked, passages=1000))
        found = unprepared.scalars(statement).all()
        assert len(found) == 1000
        assert len(wanted & set(found)) >= 950
        unprepared.rollback()
        assert unprepared.scalar(select(func.current_setting("hnsw.iterative_scan"))) == "off"


@pytest.mark.parametrize("customer", SHARES)
def test_passages_of_sqlalchemy_under_a_condition(
    unprepared: Session, reader: Connection, customer: int
) -> None:
    for way in ("sort", "seqscan", "bitmapscan", "hashjoin", "mergejoin"):
        unprepared.execute(select(func.set_config(f"enable_{way}", "off", True)))
    passage = Article.embedding.passage
    statement = (
        select(Article.id)
        .join(Article.embedding)
        .where(Article.customer == customer)
        .order_by(passage.distance("where is it"))
        .limit(10)
    )
    found = unprepared.scalars(statement).all()
    assert_near(found, nearest(reader, f"customer = {customer}", 10, 0, exact=True), 10)


# What migrate sets, and what it leaves


def settings(c: Connection) -> dict[str, str]:
    return dict(
        c.execute(
            "select split_part(c, '=', 1), split_part(c, '=', 2)"
            " from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase,"
            " unnest(s.setconfig) c where d.datname = current_database() and s.setrole = 0"
        ).fetchall()
    )


WANTED = {
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "250",
    "hnsw.max_scan_tuples": "200000",
    "hnsw.scan_mem_multiplier": "10",
}


def test_migrate_sets_what_nobody_has_set_and_takes_it_back(bare_database: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as c:
        name = sql.Identifier(c.info.dbname)
        c.execute("create extension vector")
        c.execute(sql.SQL("alter database {} set hnsw.ef_search = 100").format(name))
        migrate(bare_database)
        migrate(bare_database)
        assert settings(c) == WANTED | {"hnsw.ef_search": "100"}
        # An older version had set another value: it is replaced as long as it is ours.
        c.execute(sql.SQL("alter database {} set hnsw.max_scan_tuples = 30000").format(name))
        c.execute("update embed.setting set value = 30000 where name = 'hnsw.max_scan_tuples'")
        migrate(bare_database)
        assert settings(c) == WANTED | {"hnsw.ef_search": "100"}
        downgrade(bare_database)
        assert settings(c) == {"hnsw.ef_search": "100"}


def test_who_does_not_own_the_database_is_told_what_to_run(bare_database: str) -> None:
    with psycopg.connect(bare_database, autocommit=True) as c:
        name = c.info.dbname
        c.execute("create extension vector")
        c.execute(f"create role t_guest login password '{PASSWORD}'".encode())
        try:
            c.execute(f"grant create on database {name} to t_guest".encode())
            remarks = migrate(make_conninfo(bare_database, user="t_guest", password=PASSWORD))
            (remark,) = [r for r in remarks if "alter database" in r]
            assert "'t_guest' may not set" in remark
            c.execute(remark[remark.index("alter database") :].encode())
            assert settings(c) == WANTED
        finally:
            c.execute("drop owned by t_guest cascade; drop role t_guest")


def test_the_doctor_sees_for_whom_they_are_not_in_force(database: str) -> None:
    """Of the database and of a login; its advice is followed."""

    def checked(c: Connection) -> tuple[str, str, str]:
        return c.execute(  # type: ignore[return-value]
            "select state, detail, coalesce(advice, '') from embed.doctor()"
            " where \"check\" = 'index scans'"
        ).fetchone()

    with connect(database) as c:
        name = sql.Identifier(c.info.dbname)
        assert checked(c)[0] == "ok"
        c.execute(sql.SQL("alter role t_customer set hnsw.ef_search = 20"))
        state, detail, _ = checked(c)
        assert (state, detail) == ("warning", "hnsw.ef_search is 20 for t_customer")
        c.execute(
            sql.SQL("alter role t_customer in database {} set hnsw.iterative_scan = off").format(
                name
            )
        )
        c.execute(sql.SQL("alter database {} reset hnsw.iterative_scan").format(name))
        c.execute(sql.SQL("alter database {} set hnsw.max_scan_tuples = 10").format(name))
        state, detail, advice = checked(c)
        assert (state, detail) == (
            "problem",
            "hnsw.iterative_scan is pgvector's default for every role,"
            " hnsw.max_scan_tuples is 10 for every role,"
            " hnsw.ef_search is 20 for t_customer, hnsw.iterative_scan is off for t_customer",
        )
        c.execute(advice[advice.index("alter database") :].encode())
        assert checked(c)[0] == "ok"
        with as_customer(database, 1) as customer:
            row = customer.execute("show hnsw.iterative_scan").fetchone()
            assert row == ("strict_order",)
