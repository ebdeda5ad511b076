"""The model of a table is changed: both sides are kept, and the way back is open."""

import psycopg
import pytest
from fix_drain import Connection, Drain, Lane, assert_current, drain_url, source_of
from fix_roles import as_login, database_with_logins
from fix_switch import NEAREST, OTHER, answer, begin, check_sides, one, switch
from psycopg import sql
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.model.catalog import TESTING_MODEL
from embedworker.model.testing import hash_vector
from embedworker.queue.claim import FRESH, claim, move
from embedworker.queue.complete import EmbeddedPassage, Result, complete
from embedworker.queue.cursor import Cursor
from embedworker.queue.failure import fail, release
from embedworker.queue.source import load_sources
from embedworker.queue.strike import strike
from embedworker.queue.sweep import Sweep
from embedworker.service.building import build
from embedworker.service.index_plan import indexes, plan


def test_the_whole_way_and_back(article: Connection, drain: Drain) -> None:
    drain()
    first = answer(article, "kettle", 384)
    begin(article)
    assert switch(article)[0] == "filling"
    assert answer(article, "kettle", 384) == first  # nothing changes for whoever asks
    drain()
    assert switch(article) == ("ready", 1, 1)

    article.execute("select embed.cut_over('article')")
    assert switch(article) == ("cut over", 1, 1)
    second = answer(article, "kettle", 64)
    assert sorted(second) == sorted(first)
    article.execute("update article set title = 'a green kettle' where id = 1")
    article.execute("insert into article values (4, 'a new one')")
    article.execute("delete from article where id = 2")
    drain()
    check_sides(article, serving=64)
    assert sorted(answer(article, "kettle", 64)) == [1, 3, 4]

    article.execute("select embed.roll_back('article')")
    assert sorted(answer(article, "kettle", 384)) == [1, 3, 4]  # current at once
    article.execute("update article set title = 'a grey kettle' where id = 1")
    drain()
    check_sides(article, serving=384)

    article.execute("select embed.cut_over('article')")
    article.execute("select embed.end_switch('article')")
    assert article.execute("select * from embed.switch").fetchall() == []
    assert one(article, "select to_regclass('article_next_embedding')") is None
    article.execute("update article set title = 'the last kettle' where id = 1")
    drain()
    assert sorted(answer(article, "kettle", 64)) == [1, 3, 4]
    indexes = one(
        article,
        "select array_agg(indexname::text) from pg_indexes where tablename = 'article_embedding'",
    )
    assert indexes == ["article_embedding_pkey"]


def test_search_goes_by_the_side_that_answers(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    found = "select array_agg((hit.\"row\").id) from embed.search(null::article, 'kettle') as hit"
    assert sorted(one(article, found)) == [1, 2, 3]
    article.execute("select embed.cut_over('article')")
    assert sorted(one(article, found)) == [1, 2, 3]
    assert one(article, "select model from embed.status where name = 'article'") == OTHER
    # A source of another name is found by its table alone, whichever side answers.
    assert one(article, "select embed._model_of('article')") == OTHER


@pytest.mark.parametrize("name", [None, "search"])
def test_the_side_that_waits_is_never_the_table(
    app: Connection, drain: Drain, name: str | None
) -> None:
    app.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
    app.execute("create table note (id int primary key, body text)")
    app.execute("insert into note values (1, 'a red kettle')")
    app.execute(
        "select embed.enable('note', '{body}', name => %s, model => %s)", [name, TESTING_MODEL]
    )
    app.execute("select embed.begin_switch('note', %s)", [OTHER])
    drain()
    assert one(app, "select embed._model_of('note')") == TESTING_MODEL
    app.execute("select embed.cut_over('note')")
    assert one(app, "select embed._model_of('note')") == OTHER
    chosen = "select (embed._find_source('note'::regclass::text::regtype, null)).name"
    assert one(app, chosen) == (name or "note")


def test_a_cut_is_refused_while_rows_are_missing(article: Connection, drain: Drain) -> None:
    drain()
    begin(article)
    with pytest.raises(psycopg.Error, match="no worker has begun with it") as error:
        article.execute("select embed.cut_over('article')")
    assert error.value.sqlstate == "EW010"
    drain()
    article.execute("delete from article_next_embedding where id = 1")
    with pytest.raises(psycopg.Error, match="it lacks 1 rows") as error:
        article.execute("select embed.cut_over('article')")
    assert switch(article)[0] != "cut over"
    article.execute("select embed.cut_over('article', force => true)")
    assert one(article, "select phase, forced from embed.switch") == ("cut over", True)
    drain()


def test_a_row_that_was_changed_just_now_keeps_nobody(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    article.execute("insert into article values (9, 'just now')")
    source = source_of(article, "article", "article_next")
    drain()
    article.execute("delete from article_next_embedding where id = 9")
    article.execute(f"insert into embed.inbox_{source.id} values (9)".encode())
    article.execute("select embed.cut_over('article')")


def test_a_worse_judgement_refuses(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    article.execute(
        "update embed.switch_state set judgement = %s",
        ['{"questions": 30, "difference": -0.002, "lower": -0.03}'],
    )
    with pytest.raises(
        psycopg.Error, match=r"may be worse by 0\.0300 nDCG@10, and 0\.01 are allowed"
    ):
        article.execute("select embed.cut_over('article')")
    with article.transaction():
        article.execute("set local embed.switch_tolerance = '0.05'")
        article.execute("select embed.cut_over('article')")
    assert switch(article)[0] == "cut over"


def test_every_call_can_be_repeated(article: Connection, drain: Drain) -> None:
    begin(article)
    begin(article)
    drain()
    article.execute("select embed.roll_back('article')")
    for _ in range(2):
        article.execute("select embed.cut_over('article')")
    assert switch(article)[0] == "cut over"
    for _ in range(2):
        article.execute("select embed.roll_back('article')")
    assert switch(article)[0] == "ready"
    article.execute("select embed.end_switch('article')")
    with pytest.raises(psycopg.Error, match="is not being changed") as error:
        article.execute("select embed.end_switch('article')")
    assert error.value.sqlstate == "EW010"
    assert_current(article, "article")
    begin(article)  # and once more from the beginning
    drain()
    article.execute("select embed.cut_over('article')")
    answer(article, "kettle", 64)


def test_what_would_part_the_sides_is_refused(article: Connection, drain: Drain) -> None:
    begin(article)
    for call in (
        "select embed.enable('article', '{title,lang}', model => 'testing:hash')",
        "select embed.begin_switch('article', 'intfloat/multilingual-e5-small')",
    ):
        with pytest.raises(psycopg.Error) as error:
            article.execute(call.encode())
        assert error.value.sqlstate == "EW010"
        assert error.value.diag.message_hint
    drain()
    article.execute("create table other (id int primary key)")
    for make, drop in (
        ("view titles as select id, fingerprint from article_embedding", "view titles"),
        (
            "function near() returns bigint return (select count(*) from article_embedding)",
            "function near()",
        ),
        (
            "policy seen on other using (exists (select from article_embedding))",
            "policy seen on other",
        ),
        ("publication vectors for table article_embedding", "publication vectors"),
    ):
        article.execute(f"create {make}".encode())
        with pytest.raises(psycopg.Error, match=f"bound to the table .*: .*{make.split()[1]}"):
            article.execute("select embed.cut_over('article', force => true)")
        article.execute(f"drop {drop}".encode())
    article.execute(
        "alter table other add foreign key (id, id) references article_embedding (id, chunk)"
    )
    with pytest.raises(psycopg.Error, match=r"bound to the table .*: constraint other_id_id_fkey"):
        article.execute("select embed.cut_over('article', force => true)")


def test_two_schemas_are_refused(article: Connection, drain: Drain) -> None:
    """The tables exchange their names alone: the one that queries name would be gone."""
    article.execute("create schema elsewhere")
    article.execute("alter table article set schema elsewhere")
    try:
        article.execute("select embed.begin_switch('elsewhere.article', %s)", [OTHER])
        drain()
        with pytest.raises(psycopg.Error, match="are in two schemas") as refused:
            article.execute("select embed.cut_over('elsewhere.article')")
        article.execute((refused.value.diag.message_hint or "").encode())
        article.execute("select embed.cut_over('elsewhere.article')")
        assert one(article, "select vector_dims(embedding) from article_embedding limit 1") == 64
    finally:
        article.execute("alter table elsewhere.article set schema shop; drop schema elsewhere")


def test_filter_template_and_weight_are_those_of_the_other_side(
    app: Connection, drain: Drain
) -> None:
    app.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
    app.execute("create table page (id int primary key, title text, body text, live boolean)")
    app.execute("insert into page values (1, 'Pump', 'It hums', true), (2, 'Belt', 'Worn', false)")
    app.execute(
        "select embed.enable('page', '{title,body}', template => '{title}: {body}',"
        " filter => 'live', model => %s)",
        [TESTING_MODEL],
    )
    app.execute("update embed.source set lexical = 0.5 where name = 'page'")
    app.execute("select embed.begin_switch('page', %s)", [OTHER])
    drain()
    app.execute("update page set live = true where id = 2")
    drain()
    app.execute("select embed.cut_over('page')")
    rows = app.execute("select id, embedding::real[] from page_embedding order by id").fetchall()
    assert [number for number, _ in rows] == [1, 2]
    assert rows[0][1] == pytest.approx(hash_vector("passage: Pump: It hums", 64).tolist(), abs=1e-6)
    assert one(app, "select lexical from embed.source where name = 'page'") == 0.5


def test_an_old_transaction_gets_an_error_and_no_mixture(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    begin(article)
    drain()
    with connect(shared_database) as old:
        old.execute("set search_path = shop, public")
        old.execute("begin isolation level repeatable read")
        old.execute("select 1 from article limit 1")
        article.execute("select embed.cut_over('article')")
        with pytest.raises(psycopg.errors.SerializationFailure) as error:
            old.execute(NEAREST.encode(), ["kettle", "kettle"])
        assert error.value.diag.message_hint == "Repeat the transaction."
        old.execute("rollback")
        answer(old, "kettle", 64)


def test_a_reader_keeps_the_cut_waiting_and_writers_do_not(
    article: Connection, drain: Drain, shared_database: str
) -> None:
    begin(article)
    drain()
    with connect(shared_database) as reader:
        reader.execute("set search_path = shop, public")
        with reader.transaction():
            reader.execute("select 1 from article_embedding limit 1")
            article.execute("set lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable, match="transactions hold") as held:
                article.execute("select embed.cut_over('article')")
            assert f"Processes: {reader.info.backend_pid}." == held.value.diag.message_detail
            article.execute("reset lock_timeout")
            assert switch(article)[0] == "ready"
    article.execute("select embed.cut_over('article')")


@pytest.mark.parametrize("moment", ["before the claim", "after the claim"])
def test_a_worker_writes_nothing_into_the_wrong_table(
    article: Connection, lane: Lane, shared_database: str, moment: str
) -> None:
    """It knows the tables by the names that they had before the cut."""
    begin(article)
    lane.drain()
    stale = source_of(article, "article", "article")
    article.execute("update article set title = 'a new text' where id = 1")
    move(article, stale)
    if moment == "before the claim":
        article.execute("select embed.cut_over('article')")
    (job,), _ = claim(article, stale, worker=77, quotas={FRESH: 10}, lease=60.0, max_attempts=5)
    if moment == "after the claim":
        article.execute("select embed.cut_over('article')")
    vectors = "select array_agg(e.*::text order by id) from article_embedding e"
    before = one(article, vectors)
    made = Result(job, [EmbeddedPassage(0, 10, hash_vector("passage: a new text"))])
    with connect(shared_database) as worker:
        written = complete(
            worker, [made], worker=77, fingerprint=stale.fingerprint or 0, average_length=10.0
        )
        assert written == 0
        release(worker, [job], worker=77)
    assert one(article, vectors) == before
    lane.drain()
    check_sides(article, serving=64)


def test_a_row_that_is_gone_is_not_struck_by_the_name_before_the_cut(
    article: Connection, lane: Lane
) -> None:
    """The vector would go from the other side alone, and the entry that names it with it."""
    begin(article)
    lane.drain()
    stale = source_of(article, "article", "article")
    article.execute("delete from article where id = 1")
    move(article, stale)
    article.execute("select embed.cut_over('article')")
    assert strike(lane.connection, stale, FRESH, Cursor()) == 0
    lane.drain()
    check_sides(article, serving=64)


def test_a_source_that_is_read_during_a_cut_has_names_of_one_moment(
    article: Connection, lane: Lane, shared_database: str
) -> None:
    """A snapshot shows tables as they were, and ``::text`` a name as it is now."""
    begin(article)
    lane.drain()
    with psycopg.connect(shared_database) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("set local search_path = shop, public")
        reader.execute("select 1")
        article.execute("select embed.cut_over('article')")
        stale = next(source for source in load_sources(reader) if source.name == "article")
    article.execute("delete from article where id = 1")
    move(article, stale)
    assert strike(lane.connection, stale, FRESH, Cursor()) == 0
    lane.drain()
    check_sides(article, serving=64)


@pytest.mark.parametrize("phase", ["rows", "orphans"])
def test_a_page_of_a_sweep_by_the_name_before_the_cut_counts_for_nothing(
    article: Connection, drain: Drain, shared_database: str, phase: str
) -> None:
    begin(article)
    drain()
    stale = source_of(article, "article", "article")
    article.execute(
        "set session_replication_role = replica; delete from article where id = 1;"
        "set session_replication_role = default"
    )
    with connect(shared_database) as connection:
        Sweep.begin(connection, stale)
        sweep = Sweep(connection, stale, stale.fingerprint)
        if phase == "orphans":
            assert sweep.page().held
        article.execute("select embed.cut_over('article', force => true)")
        page = sweep.page()
    assert (page.held, page.done, page.visited, page.orphaned) == (False, False, 0, 0)
    state = "select phase from embed.sweep_state where source = %s"
    assert one(article, state, stale.id) == phase
    # A worker goes on with it, by the names after the cut.
    wait_until(lambda: drain_url(shared_database) == [], what="a worker without trouble")
    left = "select count(*) from article_next_embedding where id = 1"
    assert one(article, left) == 0


def test_a_row_that_fails_after_the_cut_leaves_no_old_vector(
    article: Connection, lane: Lane
) -> None:
    """Its vectors go, of the table where they are: a dead letter with a stale vector would stay."""
    begin(article)
    lane.drain()
    stale = source_of(article, "article", "article")
    article.execute("update article set title = 'a text that the model refuses' where id = 1")
    move(article, stale)
    article.execute("select embed.cut_over('article', force => true)")
    (job,), _ = claim(article, stale, worker=77, quotas={FRESH: 10}, lease=60.0, max_attempts=5)
    failed = {"worker": 77, "max_attempts": 1, "longest_backoff": 1.0}
    assert fail(lane.connection, [(job, "too odd")], **failed) == 0
    waits = sql.SQL("select count(*) from {}").format(sql.Identifier("embed", f"queue_{stale.id}"))
    wait_until(
        lambda: lane.drain() == [] and article.execute(waits).fetchone() == (0,),
        what="the row that was handed back",
    )
    check_sides(article, serving=64)


@pytest.mark.parametrize("broken", [False, True])
def test_no_build_drops_the_index_that_has_its_name_after_the_cut(
    article: Connection, drain: Drain, shared_database: str, broken: bool
) -> None:
    begin(article)
    drain()
    make = "create index {0}_hnsw on {0} using hnsw (embedding public.vector_cosine_ops)"
    article.execute(make.format("article_next_embedding").encode())
    stale = source_of(article, "article", "article")
    if broken:
        article.execute(make.format("article_embedding").encode())
        article.execute(
            "update pg_index set indisvalid = false"
            " where indexrelid = 'article_embedding_hnsw'::regclass"
        )
    with connect(shared_database, lock_timeout=0) as connection:
        planned = plan(connection, stale, indexes(connection, stale))
        assert len(planned.leftovers) == broken
        article.execute("select embed.cut_over('article')")
        with pytest.raises(psycopg.errors.DuplicateTable):
            build(connection, planned, memory=1 << 26)
    serves = "select indisvalid from pg_index where indexrelid = 'article_embedding_hnsw'::regclass"
    assert one(article, serves) is True


def test_a_dropped_side_is_named_and_the_switch_can_be_ended(
    article: Connection, drain: Drain
) -> None:
    begin(article)
    drain()
    article.execute("drop table article_next_embedding cascade")
    with pytest.raises(psycopg.Error, match="were dropped") as error:
        article.execute("select embed.cut_over('article', force => true)")
    assert error.value.sqlstate == "EW004"
    hint = error.value.diag.message_hint or ""
    assert hint == "Call embed.end_switch('shop.article')."
    article.execute(("select " + hint.removeprefix("Call ").removesuffix(".")).encode())
    assert article.execute("select * from embed.switch_state").fetchall() == []


def test_a_model_that_was_begun_with_by_mistake_is_corrected(article: Connection) -> None:
    """By the hint; the table that answers by another model is left alone."""
    begin(article)
    correct = f"select embed.add_model('{OTHER}', 64, 100, 'query: ', 'passage: ')"
    with pytest.raises(psycopg.errors.DatabaseError, match="would make other vectors") as said:
        article.execute(correct.encode())
    hint = said.value.diag.message_hint or ""
    call = hint.removeprefix("First call ").partition(", which")[0]
    article.execute(f"select {call}".encode())
    article.execute(correct.encode())
    begin(article)


def test_a_name_that_the_cut_needs_is_taken(article: Connection, drain: Drain) -> None:
    """The application made an index with the name that ours gets."""
    begin(article)
    drain()
    article.execute("create index article_embedding_at on article_embedding (embedded_at)")
    article.execute("create index article_next_embedding_at on article (lang)")
    with pytest.raises(psycopg.errors.DatabaseError, match="article_next_embedding_at has") as said:
        article.execute("select embed.cut_over('article')")
    assert said.value.sqlstate == "EW010"
    assert said.value.diag.message_hint == "Rename shop.article_next_embedding_at, or drop it."
    check_sides(article, serving=384)
    article.execute("alter index article_next_embedding_at rename to article_lang")
    article.execute("select embed.cut_over('article')")
    check_sides(article, serving=64)


def test_a_table_of_somebody_elses_stops_no_cut(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    for source in (source_of(article, "article", n) for n in ("article", "article_next")):
        article.execute(f"create table embed_switch_{source.id} (id int)".encode())
    article.execute("select embed.cut_over('article')")
    check_sides(article, serving=64)


def test_prepared_statements_follow_the_cut(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    for _ in range(8):  # prepared on the server after five
        answer(article, "kettle", 384)
    article.execute("select embed.cut_over('article')")
    answer(article, "kettle", 64)


def test_dropping_a_side_ends_the_switch(article: Connection, drain: Drain) -> None:
    begin(article)
    article.execute("select embed.disable('article', drop_vectors => true, name => 'article_next')")
    assert article.execute("select * from embed.switch").fetchall() == []
    drain()
    begin(article)
    article.execute("select embed.disable('article', drop_vectors => true)")
    assert article.execute("select * from embed.switch_state").fetchall() == []


def test_an_administrator_changes_the_model_of_his_own_table_alone(
    server: Cluster, template: str
) -> None:
    logins = {"owner": "embed_admin", "other": "embed_admin", "reader": None}
    with database_with_logins(server, template, logins) as url:
        with psycopg.connect(url, autocommit=True) as boss:
            boss.execute("grant create on schema public to t_owner, t_other")
            boss.execute("select embed.add_model(%s, 64, 8192, 'query: ', 'passage: ')", [OTHER])
        with (
            psycopg.connect(as_login(url, "owner"), autocommit=True) as owner,
            psycopg.connect(as_login(url, "other"), autocommit=True) as other,
            psycopg.connect(as_login(url, "reader"), autocommit=True) as reader,
        ):
            owner.execute("create table note (id int primary key, body text)")
            owner.execute("insert into note values (1, 'a red kettle')")
            owner.execute("select embed.enable('note', '{body}')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                other.execute("select embed.begin_switch('note', %s)", [OTHER])
            owner.execute("select embed.begin_switch('note', %s)", [OTHER])
            drain_url(url)
            for call in ("cut_over", "roll_back", "end_switch"):
                for stranger in (other, reader):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        stranger.execute(f"select embed.{call}('note')".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                other.execute("update embed.switch_state set cut = true")
            # From the first row on, whoever may not read the texts reads no vector either.
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute("select from note_next_embedding")
            owner.execute("select embed.cut_over('note')")
            owner.execute("select embed.roll_back('note')")
            owner.execute("select embed.cut_over('note')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute("select from note_embedding")
            owner.execute("select embed.end_switch('note')")
            assert one(owner, "select embed._model_of('note')") == OTHER


def test_whatever_happens_to_the_table_meanwhile_happens_to_both_sides(
    article: Connection, drain: Drain
) -> None:
    begin(article)
    article.execute("select embed.pause('article')")
    article.execute("update article set title = 'while it was paused' where id = 1")
    article.execute("select embed.resume('article')")
    drain()
    check_sides(article, serving=384)
    article.execute("alter table article rename column title to headline")
    article.execute("update article set headline = 'under another name' where id = 2")
    article.execute("alter table article rename column headline to title")
    drain()
    check_sides(article, serving=384)
    article.execute("truncate article")
    article.execute("insert into article values (7, 'after the truncate')")
    drain()
    check_sides(article, serving=384)
    article.execute("set session_replication_role = replica")
    article.execute("update article set title = 'unseen by any trigger' where id = 7")
    article.execute("set session_replication_role = origin")
    article.execute("select embed.sweep('article')")
    article.execute("select embed.cut_over('article', force => true)")  # its sweep is not over
    drain()
    check_sides(article, serving=64)


def test_a_row_that_the_new_model_refuses_keeps_the_cut(article: Connection, drain: Drain) -> None:
    begin(article)
    drain()
    vectors = one(article, "select embedding from article_next_embedding where id = 1")
    source = source_of(article, "article", "article_next")
    article.execute("delete from article_next_embedding where id = 1")
    article.execute(
        f"insert into embed.queue_{source.id} (k1, seq, due, attempts, error)"
        " values (1, nextval('embed.seq'), 'infinity', 5, 'too odd for this model')".encode()
    )
    with pytest.raises(psycopg.Error, match="it lacks 1 rows") as error:
        article.execute("select embed.cut_over('article')")
    assert "embed.failure" in str(error.value.diag.message_hint)
    assert one(article, "select dead from embed.switch") == 1
    article.execute("select embed.retry('article')")
    drain()
    assert one(article, "select embedding from article_next_embedding where id = 1") == vectors
    article.execute("select embed.cut_over('article')")
