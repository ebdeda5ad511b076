"""The default model is changed: all tables that follow it are cut over together."""

from collections.abc import Iterator

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane
from fix_questions import QuestionRunner
from fix_switch import OTHER, answer, check_sides, one

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import TESTING_MODEL
from embedworker.model.testing import hash_vector


@pytest.fixture
def shop(testing_database: str) -> Iterator[Connection]:
    """Two tables that follow the default model, testing:hash."""
    with (
        psycopg.connect(testing_database, autocommit=True) as connection,
        connect(testing_database) as other,
        QuestionRunner(testing_database, 1000),
    ):
        set_up_loopback(other)
        connection.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
        for table in ("article", "note"):
            connection.execute(f"create table {table} (id int primary key, title text)".encode())
            connection.execute(f"insert into {table} values (1, 'a red kettle')".encode())
            connection.execute("select embed.enable(%s::regclass, '{title}')", [table])
        yield connection


@pytest.fixture
def work(testing_database: str) -> Iterator[Drain]:
    lane = Lane(testing_database)
    yield lane.drain
    lane.close()


def test_tables_that_follow_the_default_model_are_cut_over_together(
    shop: Connection, work: Drain, testing_database: str
) -> None:
    shop.execute("create table later (id int primary key, title text)")
    notices: list[str] = []
    shop.add_notice_handler(lambda said: notices.append(str(said.message_primary)))
    for _ in range(2):
        shop.execute("select embed.use_model(%s, switch => true)", [OTHER])
    assert notices[-1].endswith("public.article, public.note")
    with pytest.raises(psycopg.Error, match="not complete"):
        shop.execute("select embed.cut_over('note')")
    work()
    assert one(shop, "select count(*) from embed.switch where phase = 'ready'") == 3
    shop.execute("delete from article_next_embedding where id = 1")
    with pytest.raises(psycopg.Error, match=r"of .*article by .* it lacks 1 rows"):
        shop.execute("select embed.cut_over('note')")
    shop.execute("select embed.sweep('article')")
    follow_later = "select embed.enable('later', '{title}')"
    shop.execute(follow_later.encode())
    work()
    with pytest.raises(psycopg.Error, match=r"not being changed: .*later") as error:
        shop.execute("select embed.cut_over('note')")
    assert "switch => true" in str(error.value.diag.message_hint)
    shop.execute("select embed.use_model(%s, switch => true)", [OTHER])
    work()

    plain = "select 1 - (embedding <=> (select embed.query('kettle'))) from note_embedding"
    with connect(testing_database) as old:
        old.execute("begin isolation level repeatable read")
        old.execute("select 1")
        old.execute("select count(*) from embed.setting")
        shop.execute("select embed.cut_over('note')")
        # Its snapshot has the old default model, and the name stands for the new vectors.
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.execute(plain.encode())
    assert one(shop, "select embed.default_model()") == OTHER
    assert one(shop, "select array_agg(distinct phase) from embed.switch") == ["cut over"]
    expected = float(hash_vector("query: kettle", 64) @ hash_vector("passage: a red kettle", 64))
    assert one(shop, plain) == pytest.approx(expected, abs=1e-5)
    answer(shop, "kettle", 64)
    shop.execute("update article set title = 'a green kettle' where id = 1")
    work()
    check_sides(shop, serving=64)

    shop.execute("select embed.roll_back('article')")
    assert one(shop, "select embed.default_model()") == TESTING_MODEL
    answer(shop, "kettle", 384)
    shop.execute("select embed.cut_over('later')")
    shop.execute("select embed.end_switch('article')")
    assert shop.execute("select * from embed.switch").fetchall() == []
    assert one(shop, "select count(*) from embed.source where model is null") == 4
    assert one(shop, "select bool_and(dimensions = 64) from embed.source") is True
    work()
    answer(shop, "kettle", 64)


def test_without_a_switch_a_notice_says_what_will_be_missing(shop: Connection, work: Drain) -> None:
    work()
    shop.execute("select embed.add_model('wide', 384)")
    notices: list[str] = []
    shop.add_notice_handler(lambda said: notices.append(str(said.message_primary)))
    shop.execute("select embed.use_model('wide', switch => false)")
    assert notices == [
        "search finds none of these rows until a worker has embedded them again:"
        " article (1 rows), note (1 rows)"
    ]
