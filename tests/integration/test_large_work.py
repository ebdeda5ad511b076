"""A million rows that are gone, and a text of many megabytes: other rows do not wait for them."""

import psycopg
import pytest
from fix_database import Connection
from fix_drain import Lane, assert_current, source_of
from oracle import queue_of
from psycopg import sql

from embedworker.model import chunking as splitting
from embedworker.model.testing import HashEncoder
from embedworker.queue.claim import move
from embedworker.queue.cursor import FRESH, Cursor
from embedworker.queue.strike import strike
from embedworker.service import reader

ROWS = 5000
LONG = ("가나다 라마바사 " * 26_000).strip()  # 234,000 characters


@pytest.fixture
def article(app: Connection) -> Connection:
    app.execute(
        "create table article (id integer primary key, content text);"
        "select embed.enable('article', array['content'])"
    )
    return app


def step_until(lane: Lane, app: Connection, key: int) -> int:
    """Work until a row has a vector; return the steps it took."""
    made = "select from article_embedding where id = %s"
    for steps in range(1, 200):
        lane.wake.set()
        lane.lane.step()
        if app.execute(made, [key]).fetchone() is not None:
            return steps
    raise AssertionError("the row has no vector")


@pytest.mark.parametrize("emptied", ["truncate article", "delete from article"])
def test_rows_that_are_gone_are_struck_at_once(
    emptied: str, article: Connection, lane: Lane
) -> None:
    """One window of 200 after the other, they took 25 steps."""
    article.execute("insert into article select n, '글 ' || n from generate_series(1, 300) n")
    assert lane.drain() == []
    article.execute(
        "insert into article select n, '글 ' || n from generate_series(301, %s) n", [ROWS]
    )
    article.execute(emptied)
    article.execute("insert into article values (%s, '새 글')", [ROWS + 1])
    assert step_until(lane, article, ROWS + 1) <= 8
    assert lane.drain() == []
    assert assert_current(article, "article") == {(str(ROWS + 1),): "새 글"}


def test_a_row_that_is_there_or_was_changed_is_not_struck(
    article: Connection, lane: Lane, shared_database: str
) -> None:
    article.execute(
        "insert into article select n, '글 ' || n from generate_series(1, 10) n;"
        "delete from article where id > 2"
    )
    source = source_of(article, "article")
    queue = queue_of(article, "article")
    lane.lane.look()
    move(lane.connection, source)
    cursor = Cursor()
    with psycopg.connect(shared_database) as other:
        changed = sql.SQL("update {} set seq = nextval('embed.seq') where k1 = 5").format(queue)
        other.execute(changed)
        assert strike(lane.connection, source, FRESH, cursor) == 7
        other.commit()
    assert cursor.due == {}  # others are still to be looked at
    left = sql.SQL("select k1 from {} order by k1").format(queue)
    assert article.execute(left).fetchall() == [(1,), (2,), (5,)]
    assert lane.drain() == []
    assert len(assert_current(article, "article")) == 2


def test_a_filtered_row_with_a_column_for_its_vector_is_not_struck(
    app: Connection, lane: Lane
) -> None:
    """It is there, and its column is to be emptied."""
    app.execute(
        "create table article (id integer primary key, content text, shown boolean, v vector(384));"
        "select embed.enable('article', array['content'], filter => 'shown', into_column => 'v');"
        "insert into article select n, '글 ' || n, true from generate_series(1, 300) n"
    )
    assert lane.drain() == []
    app.execute("update article set shown = false")
    assert lane.drain() == []
    assert app.execute("select count(v) from article").fetchone() == (0,)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of a long text takes a whole turn."""
    monkeypatch.setattr(reader, "SPLIT_TURN", 0.0)


@pytest.mark.usefixtures("slow")
def test_rows_overtake_a_long_text_that_is_being_split(article: Connection, lane: Lane) -> None:
    article.execute("insert into article values (1, %s)", [3 * LONG])
    lane.lane.step()
    assert lane.lane.reader.long_texts
    article.execute("insert into article select n, '글 ' || n from generate_series(2, 300) n")
    assert step_until(lane, article, 300) < 10
    assert lane.lane.reader.long_texts
    assert not lane.lane.drained
    assert lane.drain() == []
    assert len(assert_current(article, "article")) == 300


@pytest.mark.usefixtures("slow")
def test_a_long_text_that_changes_while_it_is_split(article: Connection, lane: Lane) -> None:
    article.execute("insert into article values (1, %s)", [LONG])
    lane.lane.step()
    article.execute("update article set content = %s", ["다른 " + LONG])
    lane.lane.step()
    (held,) = lane.lane.reader.long_texts
    assert held.text == "다른 " + LONG
    assert lane.drain() == []
    assert_current(article, "article")


@pytest.mark.usefixtures("slow")
def test_a_long_text_is_handed_back(article: Connection, lane: Lane) -> None:
    article.execute("insert into article values (1, %s)", [LONG])
    lane.lane.step()
    assert lane.lane.reader.long_texts
    lane.lane.hand_back()
    waiting = sql.SQL("select attempts, claimed_by, due <= now() from {}")
    row = article.execute(waiting.format(queue_of(article, "article"))).fetchall()
    assert row == [(0, None, True)]
    article.execute("drop table article")
    assert lane.drain() == []


@pytest.mark.usefixtures("slow")
def test_a_long_text_whose_table_is_gone(article: Connection, lane: Lane) -> None:
    article.execute("insert into article values (1, %s)", [LONG])
    lane.lane.step()
    article.execute("drop table article")
    lane.a_minute_later()
    assert lane.drain() == []
    assert not lane.lane.reader.long_texts


def test_no_more_is_held_than_fits(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SPLIT_TURN", 0.0)
    monkeypatch.setattr(reader, "CHARACTERS", len(LONG) - 1)
    monkeypatch.setattr(reader, "LATER", 0.0)
    article.execute("insert into article select n, %s from generate_series(1, 3) n", [LONG])
    lane.lane.step()
    assert len(lane.lane.reader.long_texts) == 1
    assert lane.drain() == []
    assert len(assert_current(article, "article")) == 3


@pytest.mark.smoke
def test_a_long_text_without_passages_is_read_as_far_as_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    encoder = HashEncoder()
    read: list[int] = []
    tokenize = encoder.tokenize_passages
    monkeypatch.setattr(
        encoder, "tokenize_passages", lambda texts: read.extend(map(len, texts)) or tokenize(texts)
    )
    ((start, end, tokens),) = splitting.split(encoder, [LONG], chunk=False)[0:1][0]
    assert (start, end, tokens.truncated) == (0, len(LONG), True)
    assert max(read) == splitting.LONG
