"""One worker for several databases: a lane for each in this process, which share the models."""

import logging
import threading
from collections.abc import Callable, Mapping

from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.service import idle
from embedworker.service.encoders import Encoders
from embedworker.service.lane import Lane
from embedworker.service.logs import of_database, redacted
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.monitoring.metrics import Metrics
from embedworker.service.monitoring.monitor import Monitor
from embedworker.service.worker import SIGNAL_LOOK, Worker
from embedworker.settings import Settings

__all__ = ["Databases"]

log = logging.getLogger("embedworker.databases")


class Databases:
    """Workers by database, each with threads, connections and retries of its own.

    What goes wrong with one database stops no other. Their batches and questions go through a model
    in the order they come. ``read`` returns the URLs by name, at the start and after each
    :meth:`reload`; the name of an only database may be empty. That database counts in ``metrics``,
    each of several has its own. ``monitor`` makes the monitor of a database.
    """

    def __init__(
        self,
        settings: Settings,
        lane: Lane,
        read: Callable[[], Mapping[str, str]],
        *,
        metrics: Metrics,
        monitor: Callable[[str, Telemetry, str], Monitor] | None = None,
        is_child: bool = False,
    ) -> None:
        self._settings = settings
        self._lane: Lane = lane
        self._read = read
        self._metrics = metrics
        self._monitor = monitor
        self._is_child = is_child
        self._encoders: Encoders | None = None
        self._urls: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        self._monitors: dict[str, Monitor] = {}
        self._ended: list[Worker] = []
        self._stopped = threading.Event()
        self._changed = threading.Event()

    def __repr__(self) -> str:
        return f"<Databases {self._lane}: {len(self._workers)}>"

    @property
    def loading(self) -> bool:
        """Whether a thread still loads a model. Python waits for it when the process ends."""
        return any(worker.loading for worker in self._ended)

    def telemetries(self) -> dict[str, Telemetry]:
        """Return what is counted of each database, and its state, to be read at any time."""
        return {name: w.telemetry(self._lane) for name, w in self._workers.copy().items()}

    def monitors(self) -> list[Monitor]:
        """Return the monitors of the databases, if they have some."""
        return list(self._monitors.copy().values())

    def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises ConfigurationError where the first list cannot be read, or no database can ever be
        served.
        """
        self._follow(self._read())
        while not self._stopped.is_set():
            self._changed.wait(SIGNAL_LOOK)  # with a time-out, see Worker
            if self._changed.is_set() and not self._stopped.is_set():
                self._changed.clear()
                self._follow_again()
            self._note_ends()
            self._ended = [w for w in self._ended if w.loading or not w.ended]
        last = list(self._workers.values())
        self._end(list(self._workers))
        for worker in self._ended:
            worker.join()
        for worker in last:
            if worker.failure is not None:
                raise worker.failure

    def reload(self) -> None:
        """Have the list of databases read again, after a signal."""
        self._changed.set()

    def stop(self) -> None:
        """End the workers in order, after a signal."""
        for monitor in self.monitors():
            monitor.readiness.ending = True
        for worker in self._workers.copy().values():
            worker.stop()
        self._stopped.set()
        self._changed.set()

    def _follow_again(self) -> None:
        try:
            wanted = self._read()
        except ConfigurationError as error:
            if not self._is_child:  # its parent logs it
                log.error("%s. The worker goes on with the databases that it has", error)
            return
        before = set(self._workers)
        self._follow(wanted)
        if self._is_child:
            return
        log.info(
            "the databases were read again: %s, of which %s are new; %s ended",
            len(wanted),
            len(self._workers.keys() - before),
            len(before - self._workers.keys()),
        )

    def _follow(self, wanted: Mapping[str, str]) -> None:
        if "" not in wanted:
            self._encoders = self._encoders or Encoders(shared=True)
            if self._settings.listen_url is not None:
                raise ConfigurationError(
                    "EMBEDWORKER_LISTEN_URL names one database; expected none for a worker of "
                    "several: unset it"
                )
        # One whose worker ended by itself begins again.
        gone = [
            n for n, url in self._urls.items() if wanted.get(n) != url or n not in self._workers
        ]
        self._end(gone)
        idle.serve(len(wanted))
        for name, url in wanted.items():
            if name not in self._workers:
                self._start(name, url)

    def _start(self, name: str, url: str) -> None:
        worker = Worker(
            url,
            self._settings,
            lanes=[self._lane],
            metrics=Metrics() if name else self._metrics,
            exit_when_hung=True,
            encoders=self._encoders,
        )
        self._urls[name], self._workers[name] = url, worker
        with of_database(name):
            worker.start()
            if self._monitor is not None:
                self._monitors[name] = self._monitor(url, worker.telemetry(self._lane), name)
                self._monitors[name].start()

    def _end(self, names: list[str]) -> None:
        # Not joined: the server of one may not answer for half a minute, and the others go on.
        for name in names:
            if name in self._workers:
                self._ended.append(self._workers.pop(name))
                self._ended[-1].stop()
            if name in self._monitors:
                self._monitors.pop(name).stop()
            self._urls.pop(name, None)

    def _note_ends(self) -> None:
        """Log workers that ended by themselves: a setting makes it impossible to serve them."""
        for name, worker in list(self._workers.items()):
            if worker.failure is None or self._stopped.is_set():
                continue
            self._ended.append(self._workers.pop(name))
            if not self._workers:
                raise worker.failure
            log.error(
                "%s is not served: %s. The other databases are; to try again, restart the worker",
                name,
                redacted(worker.failure),
                exc_info=None if isinstance(worker.failure, EmbedworkerError) else worker.failure,
            )
