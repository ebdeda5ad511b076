"""The page, as an application in this process and as ``embedworker web``.

open_page  ``open_page(url, web_allow_actions=True)`` is a client that has shown its token; names
           are settings
page       such a client on ``database``
start_web  ``start_web(url, "--allow-actions")`` starts the command
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from embedworker.settings import load
from embedworker.state.store import Store
from embedworker.web.access import Access
from embedworker.web.application import application
from embedworker.web.watch import Watch

TOKEN = "made-up-for-the-tests-of-the-page"

OpenPage = Callable[..., TestClient]


@pytest.fixture
def open_page() -> Iterator[OpenPage]:
    with ExitStack() as opened:

        def open_page(url: str, *, token: str | None = TOKEN, **settings: Any) -> TestClient:
            chosen = load(web_token=TOKEN, **settings)
            store = Store(url)
            opened.callback(store.close)
            watch = Watch(store)  # not started: a test looks when it wants to
            site = application(chosen, Access(chosen), store, watch, port=1)
            client = opened.enter_context(TestClient(site, follow_redirects=False))
            client.app_state = {"watch": watch}  # type: ignore[assignment]
            if token is not None:
                base = chosen.web_path.rstrip("/")
                answer = client.get(f"{base}/", params={"token": token})
                assert (answer.status_code, answer.headers["location"]) == (303, f"{base}/")
            return client

        yield open_page


@pytest.fixture
def page(database: str, open_page: OpenPage) -> TestClient:
    return open_page(database)


def watch_of(client: TestClient) -> Watch:
    """The thread behind a page, which was not started."""
    watch = client.app_state["watch"]
    assert isinstance(watch, Watch)
    return watch


class WebProcess:
    """``embedworker web`` as a process; ``url`` is the address that it printed."""

    def __init__(self, log: Path, database: str, *arguments: str, **settings: str) -> None:
        self.log = log
        environment = {f"EMBEDWORKER_{name.upper()}": value for name, value in settings.items()}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embedworker.cli", "web", "--port", "0", *arguments],
                env={**os.environ, "DATABASE_URL": database, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        self.url = ""

    def wait_printed(self) -> None:
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url, self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


StartWeb = Callable[..., WebProcess]


@pytest.fixture
def start_web(tmp_path: Path) -> Iterator[StartWeb]:
    started: list[WebProcess] = []

    def start_web(database: str, *arguments: str, **settings: str) -> WebProcess:
        log = tmp_path / f"web{len(started)}.log"
        started.append(WebProcess(log, database, *arguments, **settings))
        started[-1].wait_printed()
        return started[-1]

    yield start_web
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()
