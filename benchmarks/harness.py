"""What the benchmarks of speed share: a throwaway server, real workers, and one form of report.

A benchmark measures something and its baseline in one run, by turns, and prints a table of measures
with their targets; ``--json FILE`` keeps the same with the machine and the versions.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psycopg

from embedworker.database.connect import connect
from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.embedded.installation import unpack
from embedworker.database.migrate import migrate
from embedworker.model.bundled import bundled_folder
from embedworker.model.catalog import BUNDLED_MODEL, TESTING_MODEL, catalog
from embedworker.model.cpu import cpu_quota

__all__ = [
    "Connection",
    "Measure",
    "Process",
    "cluster",
    "database",
    "fetch_value",
    "machine",
    "model_folder",
    "options",
    "p50_p95",
    "processor_seconds",
    "report",
    "turns",
    "wait_until",
    "warm_up",
    "worker",
]

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

LONGEST = 600.0  # seconds until a benchmark gives up waiting
PACKAGES = (
    "torch",
    "openvino",
    "transformers",
    "sentence-transformers",
    "numpy",
    "psycopg",
    "pgvector",
)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Measure:
    """One line of a report. ``target`` is "<= 15" or ">= 0.95", or empty where there is none."""

    name: str
    value: float
    unit: str = ""
    target: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value, as shown, is within the target; None without one."""
        if not self.target:
            return None
        relation, bound = self.target.split()
        value = float(self.shown)
        return value <= float(bound) if relation == "<=" else value >= float(bound)

    @property
    def shown(self) -> str:
        """The value with three digits that mean something."""
        if self.value == 0 or abs(self.value) >= 100:
            return f"{self.value:.0f}"
        return f"{self.value:.3g}"


def options(documentation: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with ``--json`` and one flag for each default, of the default's type."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"default {default}",
        )
    return parser


def report(
    name: str,
    given: argparse.Namespace,
    started: dict[str, Any],
    measures: Sequence[Measure],
    **details: Any,
) -> None:
    """Print the table; with ``--json`` write it, what was given, the machine and ``details``."""
    ended = load_average()
    print(f"\n{name}: {started['cpu']}, {started['processors']} processors, {started['flags']}")
    print(f"load before {started['load']:.1f}, after {ended:.1f}; {started['at']}\n")
    print("| measure | value | unit | target | reached |\n|---|---|---|---|---|")
    for m in measures:
        reached = {None: "", True: "yes", False: "no"}[m.reached]
        print(f"| {m.name} | {m.shown} | {m.unit} | {m.target} | {reached} |")
    if given.json is not None:
        whole = {
            "benchmark": name,
            "options": {k: str(v) for k, v in vars(given).items()},
            "machine": {**started, "load_after": ended},
            "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            "measures": [{**asdict(m), "reached": m.reached} for m in measures],
            **details,
        }
        given.json.write_text(json.dumps(whole, ensure_ascii=False, indent=2))


def machine() -> dict[str, Any]:
    """What this runs on, and how busy it is with other things."""
    facts = Path("/proc/cpuinfo").read_text()
    field = dict(
        (part.strip() for part in line.split(":", 1)) for line in facts.splitlines() if ":" in line
    )
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": field.get("model name", platform.processor()),
        "processors": cpu_quota(),
        "flags": " ".join(flag for flag in FLAGS if flag in field.get("flags", "").split()),
        "kernel": platform.release(),
        "load": load_average(),
    }


def load_average() -> float:
    """Processes that ran or wanted to, on average over the last minute."""
    return os.getloadavg()[0]


# The database


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """A server of its own that waits for its disk as one in production does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    folder = Path(tempfile.mkdtemp(prefix="embedworker-benchmark-"))
    folder.chmod(0o711)
    made = Cluster(
        folder,
        unpack(folder, Account.unprivileged()),
        options={"max_wal_size": "8GB", "autovacuum_naptime": "10s", **settings},
    )
    try:
        made.start()
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def database(server: Cluster, name: str, model: str) -> str:
    """Make a database whose default model is this one, and return its URL."""
    with connect(server.url("postgres"), vectors=False) as connection:
        connection.execute(f"create database {name}")
    url = server.url(name)
    known = model in catalog() or model == TESTING_MODEL
    for remark in migrate(url, model=model if known else None):
        raise SystemExit(remark)
    if not known:
        with connect(url) as connection:
            connection.execute(
                "select embed.add_model(%s, 384, 512, 'query: ', 'passage: ')", [model]
            )
            connection.execute("select embed.use_model(%s)", [model])
    return url


def model_folder(model: str) -> str:
    """What sentence-transformers loads to have the same model."""
    return str(bundled_folder()) if model == BUNDLED_MODEL else model


# Workers


class Process:
    """A running worker: ``embedworker run`` with the process of the passages below it."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self.log = log

    def check(self) -> None:
        """Fail with its last words if it has ended."""
        if self._popen.poll() is not None:
            raise SystemExit(f"the worker ended:\n{self.log.read_text()[-3000:]}")

    def pids(self) -> dict[str, int]:
        """The processes by what they do: questions, passages."""
        named = {}
        for pid in [self._popen.pid, *_children(self._popen.pid)]:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            named["passages" if b"--only-passages" in words else "questions"] = pid
        return named

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time used so far, by process."""
        return {name: processor_seconds(pid) for name, pid in self.pids().items()}

    def memory(self, field: str = "VmRSS") -> dict[str, float]:
        """MB in memory now (``VmRSS``) or at most so far (``VmHWM``), by process."""
        sizes = {}
        for name, pid in self.pids().items():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    sizes[name] = int(line.split()[1]) / 1024
        return sizes


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used so far."""
    return sum(map(int, _stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def worker(url: str, *arguments: str, **settings: str) -> Iterator[Process]:
    """Run a worker; ``nice="0"`` is EMBEDWORKER_NICE=0."""
    folder = Path(tempfile.mkdtemp(prefix="embedworker-benchmark-worker-"))
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "embedworker.cli", "run", *arguments],
            env={
                **os.environ,
                "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
                "HF_HUB_OFFLINE": "1",
                "EMBEDWORKER_DATABASE_URL": url,
                **{f"EMBEDWORKER_{name.upper()}": value for name, value in settings.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Process(popen, folder / "log")
    finally:
        popen.terminate()
        try:
            popen.wait(30)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        shutil.rmtree(folder, ignore_errors=True)


def warm_up(connection: Connection, running: Process) -> None:
    """Wait until the worker has loaded its model and used it, in the lanes that it has."""
    connection.execute("create table warm_up (id integer primary key, content text)")
    connection.execute("select embed.enable('warm_up', array['content'])")
    connection.execute(
        "insert into warm_up select n, 'text number ' || n from generate_series(1, 20) n"
    )
    wait_until(
        lambda: fetch_value(connection, "select count(*) from warm_up_embedding") == 20,
        check=running.check,
        pause=0.1,
    )
    if "questions" in running.pids():
        connection.execute("set embed.query_timeout = '60s'; set embed.worker_grace = '60s'")
        for number in range(20):
            connection.execute("select embed.query(%s)", [f"question number {number}"])


def fetch_value(connection: Connection, query: str, parameters: Sequence[Any] = ()) -> Any:
    """The one value that a query returns."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def wait_until(
    condition: Callable[[], T],
    *,
    check: Callable[[], object] = bool,
    pause: float = 0.0,
    timeout: float = LONGEST,
) -> T:
    """Call until true, with a pause between; raises TimeoutError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (seen := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s; last: {seen!r}")
        check()
        time.sleep(pause)
    return seen


# Numbers


def p50_p95(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    middle, high = np.percentile(values, [50, 95])
    return float(middle), float(high)


def turns(things: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Each thing once a round, in another order each round, so that a slow minute hits all."""
    for number in range(rounds):
        shift = number % len(things)
        for thing in [*things[shift:], *things[:shift]]:
            yield number, thing


def _stat(pid: int) -> list[str]:
    # After the name, which may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int(_stat(int(folder.name))[1])
            except FileNotFoundError:
                continue
            if parent == pid:
                found.append(int(folder.name))
    return found
