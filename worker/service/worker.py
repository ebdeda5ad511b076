"""A worker's life: connect, register, serve, and come back after whatever happens."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import Literal, Self

import psycopg

from worker.database.connection import keeps_session
from worker.errors import ConfigurationError, EmbedworkerError, ModelError
from worker.model.cpu import cpu_quota
from worker.queue.source import load_sources
from worker.service.health import Telemetry
from worker.service.indexing import Indexer
from worker.service.logs import sayable
from worker.service.metrics import Metrics
from worker.service.models import Models
from worker.service.passages import PassageLane
from worker.service.patience import Patience, connections_to
from worker.service.questions import PUT_BACK, QuestionLane
from worker.service.registry import Registry
from worker.service.reranking import CHANNEL, Rerankers, reranking
from worker.service.session import Session, session
from worker.settings import Settings, load

__all__ = ["LANES", "Lane", "Worker"]

log = logging.getLogger("embedworker.worker")

Lane = Literal["passages", "questions"]
LANES: tuple[Lane, ...] = ("passages", "questions")

CHANNELS: dict[Lane, str] = {"passages": "embed", "questions": "embed_question"}
SIGNAL_LOOK = 0.5  # seconds
QUESTION_POLL = 2.0  # seconds; a NOTIFY comes first
QUESTION_POLL_DEAF = 0.02  # seconds, where notifications do not arrive


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
    process when the model does not come back; otherwise only its rows are given up.

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
    ) -> None:
        settings = settings or load()
        found = url or settings.database_url
        if found is None:
            raise ConfigurationError("no database is named; give its URL, or set DATABASE_URL")
        self._url = found
        self._settings = settings
        self._exit_when_hung = exit_when_hung
        self._lanes = tuple(lanes)
        self._stopped = threading.Event()
        self._wakes: dict[Lane, threading.Event] = {lane: threading.Event() for lane in LANES}
        metrics = metrics or Metrics()
        self._telemetry = {lane: Telemetry(lane, metrics) for lane in LANES}
        threads = {
            "questions": settings.query_threads,
            "passages": settings.threads or cpu_quota(),
        }
        self._models: dict[Lane, Models] = {
            lane: Models(settings, threads=threads[lane], telemetry=self._telemetry[lane])
            for lane in LANES
        }
        self._rerankers = Rerankers(settings)
        self._rerank_wake = threading.Event()
        self._deaf = threading.Event()
        self._ready: dict[Lane, threading.Event] = {lane: threading.Event() for lane in self._lanes}
        self._errors: list[BaseException] = []
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Worker {'+'.join(self._lanes)}{' stopped' if self._stopped.is_set() else ''}>"

    def telemetry(self, lane: Lane) -> Telemetry:
        """What a lane counts and how it fares, to be read at any time."""
        return self._telemetry[lane]

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
        self._thread = threading.Thread(target=self._serve_all, name="embedworker")
        self._thread.start()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until vectors are kept and questions answered: models are loaded in seconds.

        Returns whether they are, within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for ready in self._ready.values():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not ready.wait(left):
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
            threading.Thread(target=self._serve, args=(lane,), name=lane) for lane in self._lanes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # With a time-out: a signal may be delivered to another thread (after SIGCONT it is),
            # and this one, which is to handle it, would not wake up.
            while thread.is_alive():
                thread.join(SIGNAL_LOOK)
        for ready in self._ready.values():
            ready.set()  # nobody need wait any longer

    def _end(self, error: BaseException | None) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()
        if error is None and self._errors:
            raise self._errors[0]

    def run_once(self) -> list[str]:
        """Embed everything that is due now; return what stood in the way, a sentence each.

        Raises EmbedworkerError when the database cannot be used.
        """
        with self._session("passages") as current:
            # One model after the other: nothing is to be left for later.
            registry, indexer, lane = self._passage_lane(current, wake=None)
            idle = 0
            with _handing_back(lane):
                # Twice idle: what a look finds changed in a table is swept at the next.
                while not self._stopped.is_set() and idle < 2:
                    if lane.step():
                        idle = 0
                    elif lane.drained or registry.troubles():
                        idle += 1
                        # One index at a time: other sources may need one, too.
                        if idle == 2 and indexer.wait():
                            idle = 0
                    else:
                        current.wake.wait(self._settings.poll_min)
            indexer.wait()
            return registry.troubles()

    def stop(self) -> None:
        """Ask the lanes to end: a batch at the model is finished, the rest handed back."""
        self._stopped.set()
        for wake in self._wakes.values():
            wake.set()

    def _serve(self, lane: Lane) -> None:
        patience = Patience(log, f"the {lane} lane", troubles=connections_to(self._url))
        health = self._telemetry[lane].health
        serve = self._serve_passages if lane == "passages" else self._serve_questions
        while not self._stopped.is_set():
            try:
                with self._session(lane) as current:
                    log.info("worker %s is up", current.worker)
                    health.found()
                    with self._beside(lane, current):
                        serve(current, patience)
            except ConfigurationError as error:
                self._errors.append(error)
                self.stop()
            except (psycopg.Error, EmbedworkerError) as error:
                health.lost(sayable(error))
                if not self._stopped.is_set():
                    patience.wait(error, self._stopped)
            except BaseException as error:
                # A fault of ours: end the process loudly rather than live on with one lane.
                self._errors.append(error)
                self.stop()

    def _serve_passages(self, current: Session, patience: Patience) -> None:
        registry, _, lane = self._passage_lane(current, wake=current.wake)
        shortest, longest = self._settings.poll_min, self._settings.poll_max
        pause = shortest
        prepared = False
        with _handing_back(lane):
            while not self._stopped.is_set():
                worked = lane.step()
                if not (worked and prepared):
                    lane.prepare()
                    prepared = True
                if not registry.awaits:
                    self._ready["passages"].set()  # models of what is enabled are loaded by then
                current.progress.telemetry.health.seen()
                current.progress.telemetry.health.in_trouble(registry.stopped())
                current.progress.model = registry.model
                patience.success()
                if worked:
                    pause = shortest
                    continue
                # After a wake-up the pauses start over: rows of transactions that did not get to
                # notify are found within poll_min.
                woken = current.wake.wait(pause)
                pause = shortest if woken else min(pause * 2, longest)

    def _serve_questions(self, current: Session, patience: Patience) -> None:
        models = self._models["questions"]
        # Loaded before the first question, whose time-out is shorter than a load. Without any of
        # them no question is taken: another worker may have its model. Those of one that is there
        # are answered while others are still loaded.
        names = {source.model for source in load_sources(current.connection)}
        missing = names
        lane = QuestionLane(models.ready, current.progress.telemetry)
        if keeps_session(current.connection):
            current.connection.prepare_threshold = 0  # ever the same few statements: parsed once
        while not self._stopped.is_set():
            current.progress.telemetry.health.seen()
            current.wake.clear()
            missing = {name for name in missing if not self._tried(current, name)}
            if not missing:
                self._ready["questions"].set()
            answered = 0
            if not names or missing != names:
                answered = lane.answer_once(current.connection, current.worker.id)
                current.progress.embedded += answered - lane.put_back
            patience.success()
            if not answered and not self._stopped.is_set():
                heard = current.listener.notified.is_set()
                pause = PUT_BACK if missing or models.loading else QUESTION_POLL
                current.wake.wait(pause if heard else QUESTION_POLL_DEAF)

    def _tried(self, current: Session, name: str) -> bool:
        """Whether a model of the questions is loaded, or cannot be."""
        try:
            found = self._models["questions"].ready(current.connection, name)
        except (ModelError, ConfigurationError):
            return True  # models has said it, and tries again
        if found is not None:
            current.progress.model = name
        return found is not None

    def _beside(self, lane: Lane, current: Session) -> AbstractContextManager[None]:
        if lane != "questions":
            return nullcontext()
        return reranking(
            self._url,
            self._settings,
            self._rerankers,
            current.worker.id,
            self._rerank_wake,
            current.listener.notified,
        )

    def _passage_lane(
        self, current: Session, *, wake: threading.Event | None
    ) -> tuple[Registry, Indexer, PassageLane]:
        models = self._models["passages"]
        registry = Registry(current.connection, current.worker, models, wake=wake)
        indexer = Indexer(
            self._url,
            after_rows=self._settings.index_after_rows,
            application_name=f"embedworker index {current.worker.id}",
            answer_timeout=self._settings.answer_timeout,
        )
        lane = PassageLane(
            current.connection,
            current.worker,
            registry,
            current.progress,
            self._settings,
            indexer,
            current.wake,
        )
        return registry, indexer, lane

    def _session(self, lane: Lane):  # type: ignore[no-untyped-def]
        # What a fingerprint is called may be another number in a database that was set up anew.
        self._models[lane].renew()
        return session(
            self._url,
            self._settings,
            lane=lane,
            channel=CHANNELS[lane],
            wake=self._wakes[lane],
            others={CHANNEL: self._rerank_wake} if lane == "questions" else {},
            deaf=self._deaf,
            telemetry=self._telemetry[lane],
            exit_when_hung=self._exit_when_hung,
        )


@contextmanager
def _handing_back(lane: PassageLane) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):  # the lost connection may be why we are here
            lane.hand_back()
        raise
    lane.hand_back()
