"""``embedworker serve`` as a real process, with the encoder of the tests.

serving            ``with serving(serve_waiting="1") as server:`` runs one; names are settings
embeddings_server  one for a whole module, without a token
"""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from embedworker.model.catalog import TESTING_MODEL

SLOW = 60.0  # seconds; a machine that does much else
START = 300.0  # seconds; importing torch alone takes long there


class ServerProcess:
    """``port`` is any that was free."""

    def __init__(self, log: Path, *arguments: str, **settings: str) -> None:
        self.log = log
        self.url = ""
        environment = {f"EMBEDWORKER_{name.upper()}": value for name, value in settings.items()}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "embedworker.cli", "serve", *arguments],
                env={
                    **os.environ,
                    "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
                    "EMBEDWORKER_MODEL": TESTING_MODEL,
                    "EMBEDWORKER_SERVE_PORT": "0",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def __repr__(self) -> str:
        return f"<ServerProcess {self.process.poll()}>\n{self.output()[-2000:]}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self
            found = re.search(r"listening on (http://[\w.:\[\]]+)", self.output())
            if found is None:
                return False
            self.url = found[1]
            return self.get("/readyz")[0] == 200

        wait_until(ready, START, f"a server that is ready: {self}")

    def get(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Return status and body; a POST of JSON, unless headers say otherwise, with ``body``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named = {"Content-Type": "application/json", **named}
        request = urllib.request.Request(f"{self.url}{path}", body, named)  # noqa: S310  (ours)
        try:
            with urllib.request.urlopen(request, timeout=SLOW) as answer:  # noqa: S310  (ours)
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SLOW)


Serving = Callable[..., AbstractContextManager[ServerProcess]]


@contextmanager
def serving_in(folder: Path, *arguments: str, **settings: str) -> Iterator[ServerProcess]:
    server = ServerProcess(
        folder / f"serve{len(list(folder.iterdir()))}.log", *arguments, **settings
    )
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    def serving(*arguments: str, **settings: str) -> AbstractContextManager[ServerProcess]:
        return serving_in(tmp_path, *arguments, **settings)

    return serving


@pytest.fixture(scope="module")
def embeddings_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving_in(tmp_path_factory.mktemp("serve")) as running:
        yield running
