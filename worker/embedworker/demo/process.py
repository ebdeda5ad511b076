"""The worker of the demonstration: a process of its own, as an operator would start it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from embedworker.service.parent import PARENT

__all__ = ["WorkerProcess"]

STOP_TIMEOUT = 30.0  # seconds until a worker that does not end is killed
_TAIL = 2000  # bytes of the log that are shown when it ends by itself


class WorkerProcess:
    """``embedworker run`` in the background, its log in a file.

    It has a session of its own, so that Ctrl-C reaches the demonstration alone, which then ends it
    in order. Unless ``keep``, it also ends when the demonstration is killed.
    """

    def __init__(self, log: Path, environment: Mapping[str, str], *, keep: bool) -> None:
        self.log = log
        self.keep = keep
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "embedworker.cli", "run"],
                stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    # A folder named worker where the person stands is not ours.
                    "PYTHONSAFEPATH": "1",
                    **environment,
                    **({} if keep else {PARENT: "1"}),
                },
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str | None:
        """Return the last lines of its log if it has ended, None while it runs."""
        if self._process.poll() is None:
            return None
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """End it in order, and wait until it has."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
