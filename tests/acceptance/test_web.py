"""``embedworker web`` as a process: what it prints, how it ends; its pages in a real browser."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from fix_browser import Browser
from fix_vectors import VectorWriter
from fix_web import StartWeb, WebProcess
from fix_worker import WorkerProcess, Workers
from waiting import wait_until

SLOW = 60.0  # seconds; a machine that does much else
SCREENS = ("/", "/tables", "/failures", "/search?table=article&q=cold+fridge&compare=1")


@pytest.mark.smoke
def test_the_printed_address_opens_the_page(database: str, start_web: StartWeb) -> None:
    web = start_web(database)
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)\?token=([\w-]{32})", web.url)
    assert found is not None
    address, token = found.groups()
    with httpx.Client(timeout=SLOW) as client:
        assert client.get(address).status_code == 401
        opened = client.get(web.url, follow_redirects=True)
        assert (opened.status_code, str(opened.url)) == (200, address)
        assert "Overview" in opened.text
    assert web.end() == 0
    assert token not in web.output()


def test_a_token_of_ones_own_is_never_printed(database: str, start_web: StartWeb) -> None:
    token = "of-my-own-0123456789"
    web = start_web(database, "--path", "/embed", web_token=token)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/embed/", web.url)
    answer = httpx.post(f"{web.url}login", data={"token": token}, timeout=SLOW)
    assert (answer.status_code, answer.headers["location"]) == (303, "/embed/")
    assert web.end() == 0
    assert token not in web.output()


def test_beside_a_worker(workers: Workers) -> None:
    """``run --web``: the page comes and goes with the worker, also when that is killed."""
    for end in (WorkerProcess.terminate, WorkerProcess.kill):
        worker = workers.start("--web", "0", up=False)
        wait_until(lambda: "/?token=" in worker.output(), SLOW, f"the page of {worker}")  # noqa: B023
        found = re.search(r"http://\S+/\?token=\S+", worker.output())
        assert found is not None
        assert "Overview" in httpx.get(found[0], timeout=SLOW, follow_redirects=True).text
        end(worker)

        def gone() -> bool:
            try:
                httpx.get(found[0], timeout=SLOW)  # noqa: B023
            except httpx.ConnectError:
                return True
            return False

        wait_until(gone, SLOW, "the end of the page")


def test_wrong_use_is_said_at_the_start(bare_database: str, start_web: StartWeb) -> None:
    for database, settings, said in (
        (bare_database, {}, "embedworker migrate"),
        (bare_database, {"web_token": "short"}, "fewer than 16 characters"),
        (bare_database, {"web_path": "no slash"}, "EMBEDWORKER_WEB_PATH is wrong"),
    ):
        with pytest.raises(AssertionError, match=said):
            start_web(database, **settings)


@pytest.fixture
def web(
    database: str, start_web: StartWeb, connection: psycopg.Connection[Any], vectors: VectorWriter
) -> Iterator[WebProcess]:
    """A page about three articles, of which one has failed."""
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    connection.execute(
        "insert into article values (1, 'a cold fridge'), (2, 'a warm oven'), (3, '따뜻한 이불')"
    )
    vectors.embed("article")
    vectors.know("cold fridge")
    long = "an error without a place to break: " + "x" * 400
    vectors.enqueue("article", [3], error=long, due="infinity", attempts=5)
    with vectors.worker():
        yield start_web(database, "--allow-actions")


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.timeout(600)
def test_in_a_browser(
    web: WebProcess, browser: Browser, width: int, height: int, scheme: str
) -> None:
    """Nothing is wider than the screen, everything has a name, and all texts can be read."""
    base = web.url.partition("?")[0].rstrip("/")
    pictures = os.environ.get("PICTURES")  # a folder such as docs/pictures
    browser.size(width, height, scheme)
    browser.open(web.url)
    wait_until(lambda: "dead rows" in browser.text(), SLOW, "what the doctor says")
    number = browser.evaluate(
        "fetch('/tables').then(r => r.text()).then(t => t.match(/tables\\/(\\d+)\">article/)[1])"
    )
    for path in (*SCREENS, f"/tables/{number}"):
        browser.open(base + path)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, path
        assert browser.unnamed() == [], path
        assert browser.faint() == [], path
        assert browser.violations() == [], path
        assert browser.evaluate("document.querySelectorAll('h1').length") == 1, path
        assert browser.blocked() == [], path
        if pictures and path in SCREENS:
            name = urlsplit(path).path.strip("/") or "overview"
            which = "" if (width, scheme) == (1280, "light") else f"-{width}-{scheme}"
            browser.picture(Path(pictures) / f"{name}{which}.png")
    browser.open(base + SCREENS[-1])
    assert browser.evaluate("document.querySelectorAll('.hits').length") == 2


@pytest.mark.timeout(600)
def test_by_keyboard(web: WebProcess, browser: Browser) -> None:
    """From the top: to the content, through the pages, into the box, and a search by Enter."""
    base = web.url.partition("?")[0].rstrip("/")
    browser.open(web.url)
    browser.open(f"{base}/tables")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "skip"
    focused = []
    for _ in range(4):
        browser.press("Tab")
        focused.append(browser.evaluate("document.activeElement.textContent"))
    assert focused == ["Overview", "Tables", "Failures", "Search"]
    browser.press("Enter")
    wait_until(lambda: browser.evaluate("location.pathname") == "/search", SLOW)
    wait_until(lambda: browser.evaluate("document.activeElement?.id") == "q", SLOW)
    browser.write("cold fridge")
    browser.press("Enter")
    wait_until(lambda: "a cold fridge" in browser.text(), SLOW)


@pytest.mark.timeout(600)
def test_the_page_refreshes_itself(
    web: WebProcess, browser: Browser, connection: psycopg.Connection[Any]
) -> None:
    browser.open(web.url)
    assert "Live workers: 1" in browser.text()
    connection.execute("delete from embed.worker_session")
    wait_until(lambda: "Live workers: 0" in browser.text(), SLOW, "a look of its own")
