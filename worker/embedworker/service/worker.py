"""A worker's life: connect, register, serve, and come back after whatever happens."""

import asyncio
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TypeVar

from embedworker.errors import ConfigurationError
from embedworker.model.cpu import cpu_quota
from embedworker.service.encoders import Encoders
from embedworker.service.lane import LANES, Lane, LaneRunner
from embedworker.service.models import Models
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.monitoring.metrics import Metrics
from embedworker.service.passage_runner import PassageRunner
from embedworker.service.question_runner import QuestionRunner
from embedworker.service.threads import Thread
from embedworker.settings import Settings, load

__all__ = ["LANES", "Lane", "Worker"]

R = TypeVar("R", bound=LaneRunner)

SIGNAL_LOOK = 0.5  # seconds


class Worker:
    """Keeps the vectors of one database current, and answers its questions, in this process.

        with Worker("postgresql://…"):
            …                   # meanwhile, in threads of its own; also: async with

        worker = Worker("postgresql://…")
        worker.run()            # until worker.stop(), from another thread or a signal

    Without ``url`` it is DATABASE_URL; without ``settings`` they are the environment's. A worker
    runs once. Leaving the block ends it in order: a batch at the model is finished, the rest handed
    back to other workers.

    Each lane has its own thread, connections and model. The command line runs the lanes in two
    processes instead, so that bulk work can be niced and die alone. ``exit_when_hung`` ends the
    process when the model does not come back; otherwise only its rows are given up. Workers of
    other databases in this process may use the same ``encoders``.

    Raises:
        ConfigurationError: no database is named; or, at the end, a setting made work impossible.
    """

    def __init__(
        self,
        url: str | None = None,
        settings: Settings | None = None,
        *,
        lanes: Iterable[Lane] = LANES,
        metrics: Metrics | None = None,
        exit_when_hung: bool = False,
        encoders: Encoders | None = None,
    ) -> None:
        settings = settings or load()
        found = url or settings.database_url
        if found is None:
            raise ConfigurationError("no database is named; give its URL, or set DATABASE_URL")
        self._stopped = threading.Event()
        deaf = threading.Event()
        metrics = metrics or Metrics()

        def make(runner: type[R], threads: int | None) -> R:
            telemetry = Telemetry(runner.lane, metrics)
            return runner(
                found,
                settings,
                Models(settings, threads=threads, telemetry=telemetry, encoders=encoders),
                telemetry,
                stopped=self._stopped,
                deaf=deaf,
                exit_when_hung=exit_when_hung,
            )

        self._passages = make(PassageRunner, settings.threads or cpu_quota())
        self._questions = make(QuestionRunner, settings.query_threads)
        served = [*lanes]
        self._runners = [r for r in (self._passages, self._questions) if r.lane in served]
        self._errors: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        lanes = "+".join(runner.lane for runner in self._runners)
        return f"<Worker {lanes}{' stopped' if self._stopped.is_set() else ''}>"

    @property
    def loading(self) -> bool:
        """Whether a thread still loads a model. Python waits for it when the process ends."""
        return any(runner.models.loading for runner in self._runners)

    def telemetry(self, lane: Lane) -> Telemetry:
        """Return what a lane counts and its state, to be read at any time."""
        return (self._passages if lane == "passages" else self._questions).telemetry

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        await asyncio.to_thread(self._end, error)

    def start(self) -> None:
        """Serve in threads of its own; :meth:`stop` ends them."""
        self._thread = Thread(target=self._serve_all, name="embedworker")
        self._thread.start()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until vectors are kept and questions answered: models are loaded in seconds.

        Returns whether they are, within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for runner in self._runners:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not runner.ready.wait(left):
                return False
        return not self._stopped.is_set()

    def run(self) -> None:
        """Serve until :meth:`stop`; lost connections are made again, a missing schema waited for.

        Raises ConfigurationError when a setting makes it impossible to ever start.
        """
        self._serve_all()
        if self._errors:
            raise self._errors[0]

    def _serve_all(self) -> None:
        threads = [
            Thread(target=self._serve, args=(runner,), name=runner.lane) for runner in self._runners
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # With a time-out: a signal may be delivered to another thread (after SIGCONT it is),
            # and the main one, which is to handle it, would not wake up.
            while thread.is_alive():
                is_main = threading.current_thread() is threading.main_thread()
                thread.join(SIGNAL_LOOK if is_main else None)
        for runner in self._runners:
            runner.ready.set()  # nobody need wait any longer

    @property
    def failure(self) -> BaseException | None:
        """The error that ended it, if one did."""
        return self._errors[0] if self._errors else None

    @property
    def ended(self) -> bool:
        """Whether what :meth:`start` began has ended."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Wait for the end of what :meth:`start` began."""
        if self._thread is not None:
            self._thread.join()

    def _end(self, error: BaseException | None) -> None:
        self.stop()
        self.join()
        if error is None and self._errors:
            raise self._errors[0]

    def run_once(self) -> list[str]:
        """Embed everything that is due now; return what stood in the way, a sentence each.

        Raises EmbedworkerError when the database cannot be used.
        """
        return self._passages.drain()

    def stop(self) -> None:
        """Ask the lanes to end: a batch at the model is finished, the rest handed back."""
        self._stopped.set()
        for runner in self._runners:
            runner.wake.set()

    def _serve(self, runner: LaneRunner) -> None:
        try:
            runner.run()
        except BaseException as error:
            # A setting, or a fault of this program: end loudly rather than live on with one lane.
            self._errors.append(error)
            self.stop()
