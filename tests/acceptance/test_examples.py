"""The programs of examples/, each run as its first lines say."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from fastapi.testclient import TestClient
from fix_database import _new_database as new_database
from waiting import wait_until

from embedworker import Worker
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import Installation, free_port
from embedworker.database.loopback import set_up_loopback
from embedworker.testing import wait_until_embedded

EXAMPLES = Path(__file__).parents[2] / "examples"
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
PATIENT = "-c embed.query_timeout=60s -c embed.worker_grace=60s"
LONGEST = 60.0  # seconds on a machine that does much else


@pytest.fixture(scope="module")
def url(server: Cluster, hash_template: str) -> Iterator[str]:
    """A database whose model knows nothing of meaning: what is found is checked elsewhere."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as made:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        patch.setenv("EMBEDWORKER_POLL_MAX", "0.2")
        patch.setenv("DATABASE_URL", made)
        with connect(made) as connection:
            set_up_loopback(connection)
        yield made


@pytest.fixture(scope="module")
def worker(url: str) -> Iterator[Worker]:
    with Worker(url) as running:
        assert running.wait_ready(LONGEST)
        yield running


@pytest.mark.usefixtures("worker")
@pytest.mark.smoke
def test_psql(url: str, installation: Installation) -> None:
    script = EXAMPLES / "search.sql"
    for _ in range(2):
        said = subprocess.run(
            [installation.program("psql"), url, "-X", "-f", script],
            env={**os.environ, "PGOPTIONS": PATIENT},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert "(2 rows)" in said.stdout
        assert "세탁기" in said.stdout
        assert said.stdout.rstrip().endswith("(1 row)")


def test_psql_without_a_worker_says_what_to_start(
    hash_database: str, installation: Installation
) -> None:
    said = subprocess.run(
        [installation.program("psql"), hash_database, "-X", "-f", EXAMPLES / "search.sql"],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert said.returncode != 0
    assert "rows of manual wait: no worker" in said.stderr
    assert "`embedworker run`" in said.stderr


@pytest.mark.usefixtures("worker")
def test_psycopg(url: str) -> None:
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, EXAMPLES / "psycopg_search.py", "the drain hose of the", "machine"],
            env={**os.environ, "DATABASE_URL": url, "PGOPTIONS": PATIENT},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert len(said.stdout.splitlines()) == 2
        assert all(": " in line for line in said.stdout.splitlines())


def test_the_tests_of_psycopg_search() -> None:
    """As its first lines say: with the pytest plugin, and without a model."""
    said = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "embedworker.testing",
            ),
            EXAMPLES / "test_psycopg_search.py",
        ],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "2 passed" in said.stdout, said.stdout + said.stderr


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("file", "package"),
    [("langchain_search", "langchain_core"), ("llamaindex_search", "llama_index.core")],
)
def test_retrievers(url: str, file: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{file}.py needs {package}, which is not installed")
    with connect(url) as connection:
        connection.execute("create table tale (id integer primary key, body text)")
        connection.execute("select embed.enable('tale', array['body'])")
        connection.execute("insert into tale values (1, 'once'), (2, 'upon a time'), (3, 'x')")
        wait_until_embedded(url, "tale", LONGEST)
        said = subprocess.run(
            [sys.executable, EXAMPLES / f"{file}.py", "tale", "upon", "a", "time"],
            env={**os.environ, "DATABASE_URL": url, "EMBEDWORKER_QUERY_TIMEOUT": "60"},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        connection.execute("drop table tale, tale_embedding")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("  upon a time")


def test_fastapi(url: str) -> None:
    """In a database in which the tutorial was followed first."""
    module = import_module("fastapi_search")
    (table,) = re.findall(r"create table .*?\);", TUTORIAL.read_text(), re.S)
    with connect(url) as connection:
        connection.execute(table)
    with TestClient(module.app) as client, connect(url) as connection:
        for title in ("Kimchi stew", "Apple <pie>"):
            recipe = {"title": title, "steps": "Cut, boil and serve."}
            assert client.post("/recipes", json=recipe).status_code == 201
        wait_until(
            lambda: connection.execute(
                "select from embed.status where name = 'web_recipe' and embedded = 2"
            ).fetchall(),
            LONGEST,
        )
        found = client.get("/search", params={"q": "something sweet"})
        assert found.status_code == 200
        assert sorted(hit["title"] for hit in found.json()) == ["Apple <pie>", "Kimchi stew"]
        page = client.get("/", params={"q": 'a "quoted" <question>'})
        assert page.text.count("<li>") == 2
        assert "<b>Apple &lt;pie&gt;</b>" in page.text
        assert "<question>" not in page.text
        for blank in ("", " ", "\u200b", "\u3164"):
            page = client.get("/", params={"q": blank})
            assert (page.status_code, page.text.count("<li>")) == (200, 0)


@pytest.fixture
def site(url: str) -> Iterator[str]:
    """The address of the web application, started as its first lines say."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "fastapi_search:app"),
            *("--port", str(port), "--log-level", "warning"),
        ],
        env={**os.environ, "DATABASE_URL": url},
    )

    def answers() -> bool:
        assert process.poll() is None, "it has ended"
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        return False

    try:
        wait_until(answers, LONGEST, "the page")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(LONGEST) in (0, -signal.SIGTERM)


def test_the_page_in_a_browser(url: str, site: str, chromium: Callable[[str], str]) -> None:
    """What stands on the screen: the question in its field, and the recipe that was found."""
    question = '"따뜻한" <것>'
    recipe = {"title": "호박 & <i>죽</i>", "steps": "호박을 삶아 으깨고 쌀가루를 넣어 끓입니다."}
    assert httpx.post(f"{site}/recipes", json=recipe, timeout=LONGEST).status_code == 201
    with connect(url) as connection:
        wait_until(
            lambda: connection.execute(
                "select from web_recipe join web_recipe_embedding using (id)"
                " where title like '호박%'"
            ).fetchall(),
            LONGEST,
        )
        connection.execute("set embed.query_timeout = '1min'; set embed.worker_grace = '1min'")
        connection.execute("select embed.query(%s)", [question])  # it may still be starting
    empty = Seen(chromium(f"{site}/"))
    assert (empty.title, empty.field, empty.found) == ("Recipes", "", [])
    # What the browser asks for when the form is sent.
    seen = Seen(chromium(f"{site}/?{urlencode({'q': question})}"))
    assert seen.field == question
    assert "호박 & <i>죽</i>" in seen.found


class Seen(HTMLParser):
    """The parts of the page that a reader sees."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.title = ""
        self.field = ""
        self.found: list[str] = []
        self._inside: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "input":
            self.field = dict(attributes).get("value") or ""
        elif tag not in ("meta", "link"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, "a browser closes what it has opened"

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["title"]:
            self.title = data
        elif self._inside[-2:] == ["li", "b"]:
            self.found.append(data)


@pytest.mark.smoke
def test_each_fits_on_two_screens() -> None:
    programs = [file for file in EXAMPLES.iterdir() if file.suffix in (".py", ".sql")]
    assert len(programs) == 8
    for file in programs:
        assert len(file.read_text().splitlines()) < 100
        assert file.name in (EXAMPLES / "README.md").read_text()
