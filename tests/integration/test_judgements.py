"""Questions that are kept, what people chose, and the judgements a worker makes of it."""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from fix_drain import Connection, Drain
from fix_questions import QuestionRunner

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import TESTING_MODEL

TEXTS = {1: "a red kettle", 2: "a blue kettle", 3: "a washing machine"}
SEARCH = (
    'select ("row").id, search_id from embed.search_logged(null::article, %s, k => 3, asker => %s)'
)

SAME_HASH = (  # found by adding up the hashes of the numbers to 8,191
    "7 3392 184 584 2585 2850 3224 2491 41 1689 918 3025 2187 3059 506 1064",
    "5549 5967 7839 5088 6021 7434 4499 4449 7229 7004 6826 4197 7702 8029 6450 4893",
)


@pytest.fixture
def article(app: Connection, shared_database: str, drain: Drain) -> Iterator[Connection]:
    app.execute("create table article (id int primary key, title text)")
    for number, text in TEXTS.items():
        app.execute("insert into article values (%s, %s)", [number, text])
    app.execute("select embed.enable('article', array['title'], model => %s)", [TESTING_MODEL])
    drain()
    with connect(shared_database) as connection:
        set_up_loopback(connection)
    with QuestionRunner(shared_database, 1000):
        # A lane learns after its first answer, which would take the choices of a test. The second
        # answer comes after that, and the next look a minute later.
        for _ in range(2):
            app.execute("select embed.query(%s)", [str(uuid4())])
        yield app
    app.execute("truncate embed.judgement, embed.question_log, embed.logged_search, embed.choice")


def search(connection: Connection, question: str = "kettle", asker: str = "ann") -> Any:
    rows = connection.execute(SEARCH, [question, asker]).fetchall()
    assert len(rows) == 3
    return [row[0] for row in rows], rows[0][1]


def log(connection: Connection, keys: str | None) -> Any:
    """Log a search as a stranger could: the id, None where it is not kept."""
    row = connection.execute(
        "select embed._log_search('article', 'kettle', %s, 'ann')", [keys]
    ).fetchone()
    assert row is not None
    return row[0]


def judgements(connection: Connection) -> list[Any]:
    return connection.execute(
        "select question, key[1]::int, grade, source, asker"
        " from embed.judgement order by grade, key"
    ).fetchall()


def logged(connection: Connection) -> int:
    row = connection.execute("select count(*) from embed.logged_search").fetchone()
    assert row is not None
    return int(row[0])


def test_nothing_is_kept_until_the_owner_says_so(article: Connection) -> None:
    assert search(article)[1] is None
    assert logged(article) == 0
    assert article.execute("select embed.chosen(null, 1)").fetchone() == (False,)


def test_a_choice_becomes_a_judgement_and_what_was_above_it_a_weak_negative(
    article: Connection,
) -> None:
    article.execute("select embed.log_questions('article')")
    order, number = search(article)
    assert article.execute("select embed.chosen(%s, %s)", [number, order[1]]).fetchone() == (True,)
    # Neither a key that was not shown nor a search that nobody made changes anything.
    article.execute("select embed.chosen(%s, 99), embed.chosen(%s, 1)", [number, uuid4()])
    article.execute("select embed._learn()")
    assert judgements(article) == [
        ("kettle", order[0], 0, "click", "ann"),
        ("kettle", order[1], 1, "click", "ann"),
    ]
    article.execute("select embed.chosen(%s, %s)", [number, str(order[0])])
    article.execute("select embed._learn()")
    assert [grade for _, _, grade, _, _ in judgements(article)] == [1, 1]
    assert article.execute("select count(*) from embed.choice").fetchone() == (0,)


def test_a_search_that_finds_nothing_is_no_error(article: Connection) -> None:
    article.execute("select embed.log_questions('article')")
    article.execute("delete from article")
    for skip in (0, 5):
        found = article.execute(
            "select from embed.search_logged(null::article, 'kettle', skip => %s)", [skip]
        )
        assert found.rowcount == 0
    # Whichever side of the join the planner reads first.
    assert log(article, None) is None
    assert logged(article) == 0


def test_a_key_may_be_longer_than_an_index_holds(article: Connection) -> None:
    """That of one table must not stop the work for all, and a file of judgements may have it."""
    article.execute("select embed.log_questions('article')")
    key = "".join(sha256(str(n).encode()).hexdigest() for n in range(100))  # compresses badly
    number = log(article, json.dumps([[key]]))
    assert article.execute("select embed.chosen(%s, %s::text)", [number, key]).fetchone() == (True,)
    article.execute("select embed._learn()")
    assert article.execute("select key from embed.judgement").fetchone() == ([key],)


def test_two_keys_of_one_hash_stop_nothing(article: Connection) -> None:
    """The unique index of judgements holds the hash, and anybody can find two such keys."""
    article.execute("select embed.log_questions('article')")
    keys = [text.split() for text in SAME_HASH]
    hashes = "select hash_array_extended(%s::text[], 0) = hash_array_extended(%s::text[], 0)"
    assert article.execute(hashes, keys).fetchone() == (True,)
    number = log(article, json.dumps([["1"], *keys]))
    for key in keys:
        article.execute("select embed.chosen(%s, %s::text[])", [number, key])
    assert article.execute("select embed._learn()").fetchone() == (2,)
    assert article.execute("select count(*) from embed.choice").fetchone() == (0,)


def test_rows_that_are_logged_and_chosen_many_times_count_once(article: Connection) -> None:
    """Their product took half a minute and a gigabyte, in the session that answers questions."""
    article.execute("select embed.log_questions('article')")
    number = log(article, json.dumps([["1"]] * 999 + [["2"]]))
    for key in (1, 2):
        article.execute(
            "select count(embed.chosen(%s, %s)) from generate_series(1, 500)", [number, key]
        )
    article.execute("set statement_timeout = '5s'")
    assert article.execute("select embed._learn()").fetchone() == (2,)
    article.execute("reset statement_timeout")
    assert [row[1:3] for row in judgements(article)] == [(1, 1), (2, 1)]


def test_an_open_transaction_holds_up_no_question(
    article: Connection, shared_database: str
) -> None:
    """It was waited for by the session that answers questions, again and again."""
    article.execute("select embed.log_questions('article')")
    order, number = search(article)
    article.execute("select embed.chosen(%s, %s)", [number, order[0]])
    article.execute("select embed._learn()")
    article.execute("select embed.chosen(%s, %s)", [number, order[0]])
    with psycopg.connect(shared_database) as other:
        other.execute("delete from embed.judgement")
        article.execute("set statement_timeout = '2s'")
        assert article.execute("select embed._learn()").fetchone() == (0,)
        article.execute("reset statement_timeout")
        other.rollback()
    assert article.execute("select count(*) from embed.choice").fetchone() == (1,)
    assert article.execute("select embed._learn()").fetchone() == (1,)


def test_a_choice_of_an_unknown_search_is_not_kept(article: Connection) -> None:
    kept = article.execute("select embed.chosen(%s, 1)", [uuid4()]).fetchone()
    assert kept == (False,)
    assert article.execute("select count(*) from embed.choice").fetchone() == (0,)


@pytest.mark.parametrize(
    "keys", ["[1]", "[[]]", "[[null]]", "[[1]]", '{"id": 1}', "7", '[["1"], {"id": 2}]', "null"]
)
def test_keys_of_another_form_do_not_stop_the_work_for_all(article: Connection, keys: str) -> None:
    """Any login that may read the table can call the function that logs a search."""
    article.execute("select embed.log_questions('article')")
    article.execute("select embed.chosen(%s, 1)", [log(article, keys)])
    order, number = search(article)
    article.execute("select embed.chosen(%s, %s)", [number, order[0]])
    article.execute("select embed._learn()")
    assert judgements(article) == [("kettle", order[0], 1, "click", "ann")]


def test_questions_are_deleted_when_their_days_are_over_and_for_a_person(
    article: Connection,
) -> None:
    article.execute("select embed.log_questions('article', days => 7)")
    order, number = search(article)
    article.execute("select embed.chosen(%s, %s)", [number, order[0]])
    search(article, "machine", "bob")
    article.execute("select embed._learn()")
    erased = article.execute("select embed.erase_questions('article', asker => 'bob')")
    assert erased.fetchone() == (1,)
    assert (logged(article), len(judgements(article))) == (1, 1)
    article.execute("update embed.logged_search set searched_at = now() - interval '8 days'")
    article.execute("update embed.judgement set judged_at = now() - interval '8 days'")
    article.execute("select embed._learn()")
    assert (logged(article), judgements(article)) == (0, [])
    search(article)
    article.execute("select embed.log_questions('article', days => 0)")
    assert logged(article) == 0
    assert search(article)[1] is None


def test_a_choice_fails_no_application_and_waits_for_nobody(
    article: Connection, shared_database: str
) -> None:
    article.execute("select embed.log_questions('article')")
    order, number = search(article)
    with article.transaction(), connect(shared_database) as other:
        article.execute("select * from embed.logged_search for update")
        article.execute("lock table embed.judgement, embed.question_log in exclusive mode")
        other.execute("set lock_timeout = '1s'")
        chosen = other.execute("select embed.chosen(%s, %s)", [number, order[0]]).fetchone()
        assert chosen == (True,)
    with article.transaction():
        article.execute("set transaction read only")
        assert article.execute("select embed.chosen(%s, 1)", [number]).fetchone() == (False,)
        assert search(article)[1] is None


def test_only_the_owner_of_a_table_reads_its_questions(article: Connection) -> None:
    article.execute("select embed.log_questions('article')")
    order, number = search(article)
    article.execute("select embed.chosen(%s, %s)", [number, order[0]])
    article.execute("select embed._learn()")
    article.execute("create role stranger")
    try:
        article.execute("grant usage on schema shop to stranger")
        article.execute("grant select on article, article_embedding to stranger")
        with article.transaction():
            article.execute("set local role stranger")
            for table in ("logged_search", "judgement"):
                seen = article.execute(f"select count(*) from embed.{table}").fetchone()
                assert seen == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege), article.transaction():
                article.execute("select * from embed.choice")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), article.transaction():
                article.execute("select embed.log_questions('article', days => 0)")
            assert search(article)[1] is not None
        article.execute("revoke select on article from stranger")
        with article.transaction():
            article.execute("set local role stranger")
            said = article.execute(
                "select embed._log_search('article', 'spam', '[[\"1\"]]', null)"
            ).fetchone()
            assert said == (None,)
        assert logged(article) == 2
    finally:
        article.execute("drop owned by stranger")
        article.execute("drop role stranger")
