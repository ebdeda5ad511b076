"""Ray, as the command uses it: start or find a cluster, place the workers, ask and end them."""

import logging
import os
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

# Ray reads it as it is imported; the person may have set it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayActorError, RayError

from embedworker.errors import ConfigurationError, EmbedworkerError
from embedworker.fleet.actors import FleetWorker, RateLimiter, Report
from embedworker.settings import Settings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["Fleet", "Size"]

ANSWER = 5.0  # seconds for the port of an address to answer
NOT_REACHED = (
    "Ray was not reached at {!r}: {}. Give --ray local, or the address that `ray start` has printed"
)
LOOK = 1.0  # seconds for the answers of the workers
ENDING = 60.0  # seconds until a worker that was asked to end is ended


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers, the processors and GPUs of each, and the rows a second of all together."""

    workers: int
    cpus: float
    gpus: float
    rate: float | None


class Fleet:
    """The workers of a fleet, while the block lasts.

    Ray starts a worker that died again, on another machine if it has to. The workers die with this
    process. Leaving the block ends them in order.

    Raises:
        ConfigurationError: this machine cannot hold the fleet, or the cluster not reach the server.
        EmbedworkerError: Ray could not be started or reached.
    """

    def __init__(
        self, address: str, url: str, settings: Settings, sources: frozenset[int], size: Size
    ) -> None:
        self._address = address
        self._url = url
        self._settings = settings
        self._sources = sources
        self._size = size
        self._workers: list[ActorHandle[FleetWorker]] = []
        self._asked: dict[int, ray.ObjectRef[Report]] = {}
        self._rows: dict[str, int] = {}
        self._reports: dict[int, Report] = {}

    @property
    def done(self) -> int:
        """Rows that the workers have done, those that died since too."""
        return sum(self._rows.values())

    @property
    def restarts(self) -> int:
        """How often a worker came back, as far as it had time to report."""
        return max(0, len(self._rows) - len(self._workers))

    def __enter__(self) -> Self:
        _start(self._address)
        try:
            self._check_room()
            self._place()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Those that are not placed yet, or are being started again, hold nothing.
            ending: list[Any] = [self._workers[place].stop.remote() for place in self._reports]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=ENDING)
            self._asked.clear()  # what was asked before may be from before the last rows
            self._look(LOOK)
        finally:
            ray.shutdown()

    def look(self) -> list[Report]:
        """Return the reports of the workers that answer within a second.

        Raises EmbedworkerError when a worker cannot work at all.
        """
        self._look(LOOK)
        for report in self._reports.values():
            if report.fault is not None:
                raise EmbedworkerError(f"a worker on {report.host} ended: {report.fault}")
        return list(self._reports.values())

    def room(self) -> str:
        """Return what the cluster has and what a worker needs, for one that is not placed."""
        have, size = ray.cluster_resources(), self._size
        return (
            f"the cluster has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs, and a "
            f"worker needs {size.cpus:g} and {size.gpus:g}"
        )

    def _look(self, seconds: float) -> None:
        for place, worker in enumerate(self._workers):
            if place not in self._asked:
                self._asked[place] = worker.report.remote()
        places = {ref: place for place, ref in self._asked.items()}
        done, _ = ray.wait(list(places), num_returns=len(places), timeout=seconds)
        self._reports = {}
        for ref in done:
            place = places[ref]
            del self._asked[place]
            try:
                report = ray.get(ref)
            except RayActorError as error:
                # One whose constructor failed is not started again.
                if getattr(error, "actor_init_failed", False):
                    raise EmbedworkerError(f"a worker did not start: {_last_line(error)}") from None
                continue
            self._reports[place] = report
            self._rows[report.life] = report.done

    def _check_room(self) -> None:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        size, have = self._size, ray.cluster_resources()
        for what, flag, each in (("CPU", "cpus", size.cpus), ("GPU", "gpus", size.gpus)):
            needed, found = size.workers * each, have.get(what, 0.0)
            if self._address == "local" and needed > found:
                raise ConfigurationError(
                    f"--workers {size.workers} needs {what}s: {needed:g}, and this machine has "
                    f"{found:g}; give smaller --workers or --{flag}"
                )
        if len({node["NodeManagerAddress"] for node in nodes}) > 1 and _is_of_this_machine(
            self._url
        ):
            raise ConfigurationError(
                "the database URL names this machine only, and the cluster has other machines; "
                "give an address that they can reach"
            )

    def _place(self) -> None:
        size = self._size
        limiter: ActorHandle[RateLimiter] | None = None
        if size.rate is not None:
            kept: Any = ray.remote(RateLimiter).options(num_cpus=0, max_restarts=-1)
            limiter = kept.remote(size.rate)
        # Two calls at once: it reports while it is asked to stop.
        placed: Any = ray.remote(FleetWorker).options(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            max_restarts=-1,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )
        given = self._settings.model_dump(exclude_unset=True)
        self._workers = [
            placed.remote(self._url, given, self._sources, size.cpus, limiter)
            for _ in range(size.workers)
        ]


def _start(address: str) -> None:
    """Find the cluster, or start one on this machine.

    Raises EmbedworkerError.
    """
    where: dict[str, Any] = {} if address == "auto" else {"address": address}
    _check(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            **where,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="embedworker",
        )
    except (ConnectionError, ImportError, OSError, RayError, RuntimeError, ValueError) as error:
        raise EmbedworkerError(NOT_REACHED.format(address, _last_line(error))) from error


def _check(address: str) -> None:
    """Connect to the port of an address once, because Ray tries for half a minute.

    Raises EmbedworkerError.
    """
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if not found or not port.isdecimal():
        return  # a word, such as local; Ray refuses those that it does not know at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise EmbedworkerError(NOT_REACHED.format(address, error)) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _is_of_this_machine(url: str) -> bool:
    from psycopg.conninfo import conninfo_to_dict

    from embedworker.database.connect import dsn

    parts = conninfo_to_dict(dsn(url))
    if parts.get("service"):
        return False  # the file that names its host is on this machine alone
    host = str(parts.get("hostaddr") or parts.get("host") or "")
    return host in ("", "localhost", "::1") or host.startswith(("/", "127."))
