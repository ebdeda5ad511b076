"""The real command line as a process, and a live worker.

cli     the command line on ``database``: ``cli("status", "--json")``; its default model is the
        deterministic encoder of the tests
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from waiting import wait_until

from embedworker.model.catalog import TESTING_MODEL

TIMEOUT = 110  # seconds

Run = subprocess.CompletedProcess[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "embedworker.cli", *arguments]


def embedworker(*arguments: str, timeout: float = TIMEOUT, **environment: str) -> Run:
    """Run ``embedworker ARGUMENTS`` and return its exit code and what it wrote."""
    return subprocess.run(
        command(*arguments),
        env={**os.environ, "COLUMNS": "100", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Cli:
    """The command line on one database, with the encoder of the tests allowed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {
            "EMBEDWORKER_DATABASE_URL": url,
            "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
        }

    def __call__(self, *arguments: str, **environment: str) -> Run:
        return embedworker(*arguments, **{**self.environment, **environment})

    def ok(self, *arguments: str, **environment: str) -> str:
        """What a command printed that must end well."""
        said = self(*arguments, **environment)
        assert said.returncode == 0, said.stderr
        return said.stdout

    def json(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """The JSON document that a command printed."""
        said = self(*arguments, "--json", **environment)
        assert said.returncode == code, said.stderr
        return json.loads(said.stdout)

    def refused(self, *arguments: str, code: int = 1, **environment: str) -> str:
        """The message of a command that must fail, and without a traceback."""
        said = self(*arguments, **environment)
        assert said.returncode == code, (said.returncode, said.stdout, said.stderr)
        assert "Traceback" not in said.stderr
        if code == 1:
            assert said.stderr.startswith("error: "), said.stderr
        return said.stderr

    @contextmanager
    def worker(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A live ``embedworker run``; ready when it answers questions. Ends in order."""
        process = subprocess.Popen(
            command("run"),
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with psycopg.connect(self.url, autocommit=True) as connection:
                wait_until(
                    lambda: (
                        connection.execute(
                            "select count(distinct l) = 2 from embed.worker w, unnest(w.lanes) l"
                        ).fetchone()
                        == (True,)
                    ),
                    timeout=60,
                    what="both lanes of the worker",
                )
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture
def cli(database: str) -> Cli:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "select embed.add_model(%s, 384, 8192, 'query: ', 'passage: ')", [TESTING_MODEL]
        )
        connection.execute("select embed.use_model(%s)", [TESTING_MODEL])
    return Cli(database)
