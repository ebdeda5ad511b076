"""Two processes for the two lanes: questions here, passages in a niced child that may die alone.

A question never waits for bulk work then: on two cores, with passages at full speed, its 95th
percentile was 10 ms at 99 % of the bulk speed, against 229 ms behind a common lock. Each process
holds a model of its own, on purpose: memory for latency.
"""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from embedworker.service.monitoring.child_metrics import PIPE, Reports
from embedworker.service.parent import PARENT
from embedworker.service.retry import Backoff

__all__ = ["Child"]

log = logging.getLogger("embedworker.supervisor")

STEADY = 60.0  # seconds after which a child's end is a new trouble, not the old one again
READ = 5.0  # seconds until what a child that ended has said is read


class Child(threading.Thread):
    """Keeps one child process running until stopped."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        what: str = "the passage process",
        reports: Reports | None = None,
    ) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._what = what
        self._command = command
        self._environment = {**environment, PARENT: "1"}
        self._reports = reports
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._asked: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        backoff = Backoff(log, self._what)
        while not self._stopped.is_set():
            with self._starting:
                if self._stopped.is_set():
                    return
                started = time.monotonic()
                self._process, reader = self._start()
            code = self._process.wait()
            if reader is not None:
                reader.join(READ)
            if self._reports is not None and not self._stopped.is_set():
                self._reports.ended(code)
            if time.monotonic() - started > STEADY:
                backoff = Backoff(log, self._what)
            if not self._stopped.is_set():
                backoff.wait(f"it ended with code {code}", self._stopped)

    def ask_to_end(self) -> None:
        """Ask the child to end in order; for a signal, so it waits for nothing."""
        self._stopped.set()
        if (process := self._process) is not None:
            self._asked = process
            process.terminate()

    def signal(self, number: int) -> None:
        """Send the child a signal if it runs; for a signal, so it waits for nothing."""
        if (process := self._process) is not None:
            process.send_signal(number)

    def _start(self) -> tuple[subprocess.Popen[bytes], threading.Thread | None]:
        if self._reports is None:
            # Its stdin is a pipe that ends when we do, however that happens.
            process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._environment)
            return process, None
        read, write = os.pipe()
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                env={**self._environment, PIPE: str(write)},
                pass_fds=[write],
            )
        finally:
            os.close(write)
        reader = threading.Thread(
            target=self._read, args=(read, self._reports), name="reports", daemon=True
        )
        reader.start()
        return process, reader

    @staticmethod
    def _read(descriptor: int, reports: Reports) -> None:
        with os.fdopen(descriptor, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # what is cut off by its end says nothing
                    reports.receive(line)

    def stop(self) -> None:
        """Ask the child to end in order, and wait until it has."""
        self._stopped.set()
        with self._starting:
            process = self._process
        if process is not None:
            # Not a second time: it would end at once.
            if process is not self._asked:
                process.terminate()
            process.wait()
        self.join()
