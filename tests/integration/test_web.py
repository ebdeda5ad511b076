"""The page: what it shows, who may open it, and that it only reads unless it may act."""

import logging
import re
from html import unescape
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import Connection
from fix_vectors import VectorWriter
from fix_web import TOKEN, OpenPage, watch_of
from starlette.testclient import TestClient

import embedworker.web
from embedworker.search.marking import marked
from embedworker.state.store import FAILURES_READ
from embedworker.web.words import LANGUAGES, words

PAGES = ("/", "/tables", "/failures", "/search")
FIRST_LOAD = 60_000  # bytes
PACKAGE = Path(embedworker.web.__file__).parent
EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def article(connection: psycopg.Connection[Any]) -> int:
    """A table of three articles, enabled; the number of its source."""
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    connection.execute(
        "insert into article values (1, 'a cold fridge'), (2, 'a warm oven'), (3, 'a red bicycle')"
    )
    ((number,),) = connection.execute(
        "select id from embed.source where name = 'article'"
    ).fetchall()
    return int(number)


def csrf(client: TestClient, path: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', client.get(path).text)
    assert found is not None
    return found[1]


def text(document: str) -> str:
    """What a reader sees, as one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", document)).split())


def test_nothing_is_shown_without_the_token(database: str, open_page: OpenPage) -> None:
    stranger = open_page(database, token=None)
    for path in (*PAGES, "/tables/1"):
        answer = stranger.get(path)
        assert answer.status_code == 401
        assert "article" not in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    wrong = stranger.get("/", params={"token": TOKEN + "x"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    stranger.cookies.set("embedworker_1", "0" * 64)
    assert stranger.get("/").status_code == 401
    assert stranger.post("/login", data={"token": "wrong"}).status_code == 401
    entered = stranger.post("/login", data={"token": TOKEN})
    assert entered.status_code == 303
    assert TOKEN not in entered.headers["set-cookie"]
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert stranger.get("/").status_code == 200


def test_every_page_says_what_it_needs_for_a_safe_browser(page: TestClient) -> None:
    for path in PAGES:
        answer = page.get(path)
        assert answer.status_code == 200, answer.text
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", answer.text)


def test_the_first_load_is_small(page: TestClient, vectors: VectorWriter, article: int) -> None:
    """With what a browser fetches for it."""
    vectors.embed("article")
    watch_of(page).examine()
    for path in (*PAGES, f"/tables/{article}"):
        document = page.get(path)
        linked = re.findall(r'(?:href|src)="(/static/[^"]+)"', document.text)
        assert len(linked) == 3
        parts = [page.get(each) for each in linked]
        assert all(part.status_code == 200 for part in parts)
        assert len(document.content) + sum(len(part.content) for part in parts) <= FIRST_LOAD


@pytest.mark.usefixtures("article")
def test_the_overview_shows_how_far_everything_is(
    page: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter
) -> None:
    vectors.embed("article")
    with vectors.worker(("passages", "questions")) as worker:
        watch_of(page).look()
        connection.execute("update embed.worker_session set embedded = 12345")
        watch_of(page).look()
        seen = text(page.get("/").text)
        assert "Coverage 100 %" in seen
        assert "Rows 3" in seen
        assert "12,345 rows embedded, 0 given up." in seen
        assert "Live workers: 1" in seen
    assert worker
    assert "No worker is running" in text(page.get("/").text)


@pytest.mark.usefixtures("article")
def test_what_is_wrong_comes_first_with_the_statement_to_copy(
    page: TestClient, vectors: VectorWriter
) -> None:
    vectors.embed("article")
    with vectors.worker():
        vectors.enqueue("article", [1], error="the text is broken", due="infinity", attempts=5)
        watch_of(page).examine()
        document = page.get("/").text
        assert "incomplete" in text(document)
        assert document.index("What is wrong") < document.index("Coverage")
        assert "<code>select embed.retry(&#39;public.article&#39;)</code>" in document
        vectors.drain("article")
        assert "incomplete" not in text(page.get("/").text)


@pytest.mark.parametrize(
    ("state", "shown"),
    [("none: few rows", "all vectors are compared"), ("failed: x", "could not be built")],
)
def test_the_state_of_an_index_with_its_reason(
    page: TestClient, connection: Connection, article: int, state: str, shown: str
) -> None:
    """A worker writes the reason behind it; each small table has one."""
    connection.execute(
        "update embed.source_state set index_state = %s where source = %s", [state, article]
    )
    answer = page.get(f"/tables/{article}")
    assert answer.status_code == 200
    assert shown in text(answer.text)


def test_the_tables_and_one_of_them(page: TestClient, vectors: VectorWriter, article: int) -> None:
    assert f'<a href="/tables/{article}">article</a>' in page.get("/tables").text
    vectors.embed("article")
    seen = text(page.get(f"/tables/{article}").text)
    assert "Embedded 3" in seen
    assert "Columns title" in seen
    assert "testing" in seen or "multilingual" in seen
    assert "none; all vectors are compared" in seen
    assert re.search(r"Vectors \d+ kB [\d.]+ kB", seen)
    assert page.get("/tables/999999").status_code == 404
    assert page.get("/tables/x").status_code == 404


def test_a_table_that_is_locked_has_no_size(page: TestClient, database: str, article: int) -> None:
    with psycopg.connect(database) as other:
        other.execute("lock table article, article_embedding in access exclusive mode")
        answer = page.get(f"/tables/{article}")
    assert answer.status_code == 200, answer.text
    assert "an open transaction has locked the table" in text(answer.text)
    assert "Table - - Vectors - - Indexes of the vectors - - " in text(answer.text)


def test_a_change_of_the_model_is_shown(
    page: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter, article: int
) -> None:
    assert article
    vectors.embed("article")
    assert "Changes of the model" not in page.get("/tables").text
    connection.execute("select embed.add_model('my/other', 384, 512)")
    connection.execute("select embed.begin_switch('article', 'my/other')")
    seen = text(page.get("/tables").text)
    assert "Changes of the model" in seen
    assert re.search(r"article \S+ my/other filling 0.0 % 3 ", seen), seen


def test_passages_come_back_whole_with_the_words_marked(
    connection: psycopg.Connection[Any],
) -> None:
    passages = ["보일러 오류 E-119", EVIL, "", "no match", "a\nb \u1100\u1161 ß"]
    found = marked(connection, passages, "E119가 떠요, script alert")
    assert ["".join(piece for piece, _ in pieces) for pieces in found] == passages
    assert [piece for piece, is_marked in found[0] if is_marked] == ["E-119"]
    assert found[2:4] == [[], [("no match", False)]]


def test_failures_are_shown_by_reason_with_their_keys(
    page: TestClient, vectors: VectorWriter, article: int
) -> None:
    assert "No row has failed." in text(page.get("/failures").text)
    vectors.drain("article")
    dead = {"due": "infinity", "attempts": 5}
    vectors.enqueue("article", [1], error=f"bad {EVIL}", **dead)
    vectors.enqueue("article", [2], error=f"bad {EVIL}", **dead)
    vectors.enqueue("article", [3], error="once more", attempts=1, priority=11)
    for path in ("/failures", f"/tables/{article}"):
        document = page.get(path).text
        assert EVIL not in document
        seen = text(document)
        assert "Given up: 2" in seen
        assert "bad" in seen
        assert "id=1" in seen
        assert "id=2" in seen
        assert "Tried again later: 1" in seen
        assert "once more" in seen
        assert "<form" not in document  # it only reads


def test_failures_cost_no_more_however_many_there_are(
    page: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter, article: int
) -> None:
    vectors.drain("article")
    connection.execute(
        f"""
        insert into embed.queue_{article} (k1, seq, due, attempts, error)
        select g, nextval('embed.seq'), 'infinity', 5, 'broken' from generate_series(1, 5000) as g
        """.encode()
    )
    assert f"Given up: {FAILURES_READ:,}" in text(page.get("/failures").text)


@pytest.mark.usefixtures("article")
def test_search_finds_and_splits_the_score(page: TestClient, vectors: VectorWriter) -> None:
    vectors.embed("article")
    vectors.know("cold fridge")
    document = page.get("/search", params={"table": "article", "q": "cold fridge"}).text
    hits = re.findall(r"<li>.*?</li>", document, re.S)
    assert "id=1" in hits[0]
    assert "a <mark>cold</mark> <mark>fridge</mark>" in hits[0]
    score, meaning, said_words = (
        float(number) for number in re.findall(r"\b\d\.\d{3}\b", text(hits[0]))
    )
    assert score == pytest.approx(meaning + said_words, abs=0.002)
    assert said_words > 0
    beside = page.get(
        "/search", params={"table": "article", "q": "cold fridge", "compare": "1"}
    ).text
    assert beside.count('<ol class="hits"') == 2
    assert "Meaning alone" in beside


def test_search_goes_on_page_by_page_and_takes_a_condition(
    page: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter
) -> None:
    connection.execute("create table note (id int primary key, lang text, body text)")
    connection.execute("select embed.enable('note', array['body'])")
    connection.execute(
        "insert into note select g, case g % 2 when 0 then 'ko' else 'en' end, 'cold note ' || g"
        " from generate_series(1, 25) as g"
    )
    vectors.embed("note")
    vectors.know("cold")
    path = "/search?table=note&q=cold"
    seen: list[str] = []
    for _ in range(3):
        document = page.get(path).text
        seen += re.findall(r"<code>id=(\d+)</code>", document)
        found = re.search(r'href="([^"]+)" rel="next"', document)
        path = "" if found is None else unescape(found[1])
    assert path == ""
    assert len(seen) == len(set(seen)) == 25
    korean = page.get("/search?table=note&q=cold&where=lang%3Dko").text
    assert [int(key) % 2 for key in re.findall(r"<code>id=(\d+)</code>", korean)] == [0] * 10
    wrong = page.get("/search?table=note&q=cold&where=language").text
    assert "expected COLUMN=VALUE" in wrong
    unknown = page.get("/search?table=note&q=cold&where=tongue%3Dko").text
    assert "tongue" in text(unknown).partition("Search")[2]
    assert 'role="alert"' in unknown


@pytest.mark.usefixtures("article")
def test_without_a_worker_the_words_alone_rank_the_rows(
    page: TestClient, vectors: VectorWriter
) -> None:
    vectors.embed("article")
    vectors.count("article")
    said = page.get("/search", params={"table": "article", "q": "warm oven", "compare": "1"}).text
    assert "The words of the question alone rank these rows." in said
    hits = re.findall(r"<li>.*?</li>", said, re.S)
    assert "id=2" in hits[0]
    assert "meaning" not in text(hits[0])
    assert 'role="alert"' in said  # by meaning alone there is no answer
    assert page.get("/").status_code == 200


@pytest.mark.usefixtures("article")
def test_a_search_that_fails_says_why_and_what_to_do(page: TestClient) -> None:
    said = page.get("/search", params={"table": "article", "q": "anything"})
    assert said.status_code == 200
    assert 'role="alert"' in said.text
    assert "no worker has embedded public.article yet. No worker is connected" in said.text
    assert "Start a worker: embedworker run" in said.text
    other = page.get("/search", params={"table": "pg_authid", "q": "anything"})
    assert "pg_authid is not enabled, or this login may not read it." in text(other.text)


def test_names_and_texts_are_never_markup(
    page: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter
) -> None:
    name = '"' + EVIL.replace('"', '""') + '"'
    connection.execute(f"create table {name} (id int primary key, body text)".encode())
    shown = f"'{name.replace(chr(39), chr(39) * 2)}'"
    connection.execute(f"select embed.enable({shown}, array['body'])".encode())
    connection.execute(f"insert into {name} values (1, %s)".encode(), [EVIL])
    vectors.embed(name)
    vectors.know(EVIL)
    vectors.enqueue(name, [1], error=EVIL, due="infinity", attempts=5)
    watch_of(page).examine()
    ((number,),) = connection.execute("select max(id) from embed.source").fetchall()
    search = page.get("/search", params={"table": name, "q": EVIL})
    plain = re.sub("</?mark>", "", search.text)
    assert text(plain).count("alert(1)") >= 2  # table and passage
    for answer in (search, *(page.get(each) for each in (*PAGES, f"/tables/{number}"))):
        assert answer.status_code == 200
        assert "<script>" not in answer.text
        assert "alert(1)" in answer.text


def test_the_page_only_reads(page: TestClient, article: int) -> None:
    """It has no forms, and refuses those that somebody makes up."""
    document = page.get(f"/tables/{article}").text
    assert 'method="post"' not in document
    form = {"csrf": "x"}
    assert page.post(f"/tables/{article}/pause", data=form).status_code == 403
    assert page.get(f"/tables/{article}/pause").status_code == 405


@pytest.fixture
def acting(database: str, open_page: OpenPage) -> TestClient:
    return open_page(database, web_allow_actions=True)


def test_actions_do_what_they_say_and_are_logged(
    acting: TestClient,
    connection: psycopg.Connection[Any],
    vectors: VectorWriter,
    article: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "embedworker.web")
    where = f"/tables/{article}"

    def act(action: str, **fields: str) -> str:
        form = {"csrf": csrf(acting, where), **fields}
        answer = acting.post(f"{where}/{action}", data=form)
        assert answer.status_code == 303, answer.text
        line = caplog.messages[-1]
        assert line.startswith(f"action={action} source=article")
        assert re.search(r"login=\w+ token=[0-9a-f]{8} address=\S+$", line)
        assert TOKEN not in line
        return text(acting.get(answer.headers["location"]).text)

    def paused() -> bool:
        ((value,),) = connection.execute("select paused from embed.source where id = %s", [article])
        return bool(value)

    assert "The table is paused." in act("pause")
    assert paused()
    assert "The table is worked on again." in act("resume")
    assert not paused()
    vectors.drain("article")
    assert "A worker will compare every row" in act("sweep")
    asked = connection.execute("select from embed.sweep_request where source = %s", [article])
    assert asked.rowcount == 1
    dead = {"due": "infinity", "attempts": 5}
    for key, error in ((1, "bad"), (2, "bad"), (3, "worse")):
        vectors.enqueue("article", [key], error=error, **dead)
    ((number,),) = connection.execute(
        f"select seq from embed.queue_{article} where k1 = 3".encode()
    ).fetchall()
    assert "The rows are tried again (1)." in act("retry", row=str(number))
    assert vectors.inbox("article") == [(3, 0)]
    assert "The rows are tried again (2)." in act("retry", alike="1", error="bad")
    assert vectors.inbox("article") == [(1, 0), (2, 0), (3, 0)]
    assert "The rows are tried again" in act("retry")


def test_a_change_of_the_model_is_carried_through(
    acting: TestClient, connection: psycopg.Connection[Any], vectors: VectorWriter, article: int
) -> None:
    assert article
    vectors.embed("article")
    connection.execute("select embed.add_model('my/other', 384, 512)")
    connection.execute("select embed.begin_switch('article', 'my/other')")

    def act(action: str, status: int = 303) -> str:
        page = acting.get("/tables").text
        (number,) = set(re.findall(r'action="/tables/(\d+)/end-switch"', page))
        form = {"csrf": csrf(acting, "/tables"), "back": "tables"}
        answer = acting.post(f"/tables/{number}/{action}", data=form)
        assert answer.status_code == status, answer.text
        return text(acting.get(answer.headers["location"]).text if status == 303 else answer.text)

    def phase() -> Any:
        return connection.execute("select phase from embed.switch").fetchall()

    assert "Cut over to the new model" not in text(acting.get("/tables").text)
    refused = act("cut-over", 409)
    assert "Refused" in refused
    assert "force => true" in refused
    connection.execute("select embed.cut_over('article', force => true)")
    assert "The old model answers again." in act("roll-back")
    assert phase() == [("filling",)]
    assert "The change of the model has ended." in act("end-switch")
    assert phase() == []


def test_a_form_of_another_site_does_nothing(
    acting: TestClient, connection: psycopg.Connection[Any], article: int
) -> None:
    for form in ({"a": "b"}, {"csrf": ""}, {"csrf": "0" * 64}):
        assert acting.post(f"/tables/{article}/pause", data=form).status_code == 403
    good = {"csrf": csrf(acting, f"/tables/{article}")}
    assert acting.post(f"/tables/{article}/drop", data=good).status_code == 404
    assert acting.post(f"/tables/{article}/pause", json=good).status_code == 415
    long = {**good, "error": "x" * 20_000}
    assert acting.post(f"/tables/{article}/retry", data=long).status_code == 413
    assert connection.execute("select name from embed.source where paused").fetchall() == []


@pytest.mark.usefixtures("article")
def test_behind_a_proxy_all_addresses_begin_with_the_path(
    database: str, open_page: OpenPage
) -> None:
    behind = open_page(database, web_path="/tools/embed/", web_allow_actions=True)
    for path in ("/tools/embed/tables", "/tables"):  # handed on with the path, or without
        document = behind.get(path, headers={"cookie": _cookie(behind)}).text
        found = re.findall(r'(?:href|src|action)="([^"#]+)"', document)
        assert len(found) >= 8
        assert all(each.startswith("/tools/embed/") for each in found), found
    assert behind.get("/tools/embed/static/style.css").status_code == 200


def _cookie(client: TestClient) -> str:
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)


def test_korean_and_english(page: TestClient, article: int) -> None:
    korean = page.get("/", headers={"accept-language": "ko-KR,ko;q=0.9,en;q=0.8"}).text
    assert '<html lang="ko">' in korean
    assert "개요" in korean
    assert '<html lang="en">' in page.get("/", headers={"accept-language": "fr"}).text
    chosen = page.get("/search", params={"lang": "ko", "q": "a b", "table": "article"})
    assert chosen.headers["location"] == "/search?q=a+b&table=article"
    assert '<html lang="ko">' in page.get("/", headers={"accept-language": "en"}).text
    for path in (*PAGES, f"/tables/{article}"):
        assert page.get(path).status_code == 200


def test_every_text_of_the_page_is_in_both_languages_and_used() -> None:
    templates = "".join(file.read_text() for file in (PACKAGE / "templates").iterdir())
    computed = (
        "state_",
        "done_",
        "index_",
        "by_",
        "error_",
        "phase_",
    )  # and what a value ends them with
    used = set(re.findall(r"\bt\('(\w+)'", templates)) - set(computed)
    assert len(used) > 50
    assert used <= set(words())
    literal = set(re.findall(r"'(\w+)'", templates))
    unused = set(words()) - used - literal
    assert [key for key in unused if not key.startswith(computed)] == []
    for key, said in words().items():
        assert set(said) == set(LANGUAGES), key
        assert all(said.values()), key
        filled_in = [sorted(re.findall(r"{\w+}", each)) for each in said.values()]
        assert filled_in[0] == filled_in[1], key


def test_a_database_that_is_not_set_up_says_what_to_run(
    bare_database: str, open_page: OpenPage
) -> None:
    with psycopg.connect(bare_database, autocommit=True) as connection:
        connection.execute("create extension vector")
    answer = open_page(bare_database).get("/")
    assert answer.status_code == 503
    assert "run `embedworker migrate`" in answer.text


def test_the_page_goes_on_after_the_server_has_ended_its_connections(
    page: TestClient, connection: psycopg.Connection[Any]
) -> None:
    assert page.get("/").status_code == 200
    connection.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where application_name = 'embedworker web' and datname = current_database()"
    )
    assert page.get("/").status_code == 200
