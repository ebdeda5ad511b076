"""What a worker writes of a text beside its vector: passages, whether it was cut, and its terms."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
from fix_database import Connection
from fix_drain import Lane, assert_current

from embedworker.database.connect import connect
from embedworker.model.encoder import Tokens, Vectors
from embedworker.model.lexical import length, term_vector
from embedworker.model.testing import HashEncoder

LONG = "한국어 문장입니다. " * 1000  # 11,000 characters; the encoder of the tests reads 8,192


@pytest.fixture
def article(testing_database: str) -> Iterator[Connection]:
    with connect(testing_database) as opened:
        opened.execute("create table article (id int primary key, body text, v vector(384))")
        yield opened


@pytest.fixture
def lane(testing_database: str) -> Iterator[Lane]:
    with closing(Lane(testing_database)) as opened:
        yield opened


def fill(connection: Connection, *texts: str, **options: Any) -> None:
    named = "".join(f", {name} => %({name})s" for name in options)
    connection.execute(
        f"select embed.enable('article', array['body']{named})".encode(), options or None
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into article (id, body) values (%s, %s)", list(enumerate(texts, 1))
        )


def flags(connection: Connection) -> tuple[Any, ...]:
    """(truncated, split) of the view, which are counts of rows."""
    row = connection.execute(
        "select truncated, split from embed.status where name = 'article'"
    ).fetchone()
    assert row is not None
    return row


def check_terms(connection: Connection) -> None:
    """Terms are those of each passage, in relation to the average of what was there together."""
    (vectors,) = connection.execute(
        "select vectors::text from embed.source where name = 'article'"
    ).fetchone() or (None,)
    rows = connection.execute(
        f"select substr(s.body, v.passage_start + 1, v.passage_end - v.passage_start), v.terms"
        f" from {vectors} v join article s using (id)".encode()
    ).fetchall()
    average = sum(length(text) for text, _ in rows) / len(rows)
    for text, terms in rows:
        wanted = term_vector(text, average)
        assert terms.indices() == wanted.indices()
        assert terms.values() == pytest.approx(wanted.values(), rel=1e-6)


def test_a_long_text_is_split_and_nothing_is_cut(article: Connection, lane: Lane) -> None:
    fill(article, LONG, "짧은 글")
    assert lane.drain() == []
    assert flags(article) == (0, 1)
    check_terms(article)


@pytest.mark.parametrize(
    "character",
    ["👨‍👩‍👧‍👦", "q\u0308", "🇰🇷", "각"],
    ids=["family", "accent", "flag", "syllable"],
)
def test_no_passage_begins_or_ends_inside_a_character(
    article: Connection, lane: Lane, character: str
) -> None:
    """Not even inside one that is several code points."""
    fill(article, character * (30_000 // len(character)))
    assert lane.drain() == []
    borders = article.execute(
        "select passage_start, passage_end from article_embedding order by chunk"
    ).fetchall()
    assert len(borders) > 2
    assert all(place % len(character) == 0 for border in borders for place in border), borders


def test_without_splitting_it_is_cut_and_counted(article: Connection, lane: Lane) -> None:
    fill(article, LONG, "짧은 글", LONG, chunk=False)
    assert lane.drain() == []
    assert flags(article) == (2, 0)
    article.execute("update article set body = 'short' where id = 1")
    assert lane.drain() == []
    assert flags(article) == (1, 0)


def test_into_a_column_it_is_cut_and_counted(article: Connection, lane: Lane) -> None:
    fill(article, LONG, "짧은 글", into_column="v")
    assert lane.drain() == []
    assert flags(article) == (1, 0)
    check_terms(article)
    article.execute("update article set body = 'short' where id = 1")
    assert lane.drain() == []
    assert flags(article) == (0, 0)


@pytest.mark.parametrize("into", [None, "v"])
def test_terms_follow_the_text(article: Connection, lane: Lane, into: str | None) -> None:
    fill(article, "하나 둘", into_column=into)
    assert lane.drain() == []
    check_terms(article)
    article.execute("update article set body = '셋 넷'")
    assert lane.drain() == []
    check_terms(article)


def test_no_text_waits_behind_a_very_long_one(article: Connection, lane: Lane) -> None:
    fill(article, LONG * 40, "짧은 글", LONG)
    embedded = "select array_agg(distinct id order by id) from article_embedding"
    seen = []
    while not lane.lane.step() or lane.progress.embedded < 3:
        (ids,) = article.execute(embedded).fetchone() or (None,)
        if ids is not None and ids not in seen:
            seen.append(ids)
    assert [1] not in seen
    assert [2, 3] in seen, seen
    (passages,) = article.execute("select count(*) from article_embedding where id = 1").fetchone()
    assert passages > 32


def test_equal_texts_go_through_the_model_once(
    article: Connection, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one window; each row has its own vector all the same."""
    seen: list[str] = []
    right = HashEncoder.encode_tokens

    def encode(self: HashEncoder, batch: Sequence[Tokens]) -> Vectors:
        seen.extend("".join(map(chr, tokens.ids)) for tokens in batch)
        return right(self, batch)

    monkeypatch.setattr(HashEncoder, "encode_tokens", encode)
    fill(article, "같은 글", "다른 글", "같은 글", "같은 글")
    assert lane.drain() == []
    assert sorted(seen) == ["passage: 같은 글", "passage: 다른 글"]
    assert len(assert_current(article, "article")) == 4


def test_a_table_disabled_between_two_batches_ends_only_its_own_work(
    article: Connection, lane: Lane
) -> None:
    fill(article, "하나", "둘", "셋")
    for _ in range(10):
        if lane.progress.claimed:
            break
        lane.lane.step()
    assert lane.progress.claimed
    article.execute("select embed.disable('article', drop_vectors => true)")
    lane.wake.set()  # the look for fresh rows meets the missing table, and all that is held goes
    lane.lane.step()
    fill(article)
    assert lane.drain() == []
    assert article.execute("select count(*) from article_embedding").fetchone() == (3,)
