"""What runs on the machines of the cluster: the workers, and the rate limit of all of them."""

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from embedworker.errors import EmbedworkerError
from embedworker.fleet.token_bucket import TokenBucket
from embedworker.service.logs import redacted, set_up_logs
from embedworker.service.models import Models
from embedworker.service.monitoring.health import Telemetry
from embedworker.service.passage_runner import PassageRunner
from embedworker.service.share import Share
from embedworker.settings import load

__all__ = ["FleetWorker", "RateLimiter", "Report"]

log = logging.getLogger("embedworker.fleet")

LONGEST_WAIT = 0.2  # seconds without tokens until the lane looks for changes of the application
ANSWER = 2.0  # seconds for an answer of the bucket; it may be starting again


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker of a fleet says of itself. ``life`` is another one after each restart."""

    life: str
    host: str
    done: int
    """rows since the start of this life"""
    ready: bool
    trouble: str | None
    """what keeps it from working"""
    fault: str | None
    """why its lane ended by itself"""


class RateLimiter:
    """The token bucket that all workers of a fleet take from."""

    def __init__(self, rate: float) -> None:
        self._bucket = TokenBucket(rate, time.monotonic())

    def take(self, wanted: int, unused: int) -> tuple[int, float]:
        """Do :meth:`TokenBucket.take` now."""
        return self._bucket.take(wanted, unused, time.monotonic())


class FleetWorker:
    """The passage lane of one worker, in threads of this process."""

    def __init__(
        self,
        url: str,
        given: dict[str, Any],
        sources: frozenset[int],
        cpus: float,
        limiter: "ray.actor.ActorHandle[RateLimiter] | None",
    ) -> None:
        """``given`` are the settings that the command was given; the rest are this machine's."""
        settings = load(**given)
        os.nice(settings.nice)
        set_up_logs(settings)
        self._life = uuid4().hex
        self._fault: str | None = None
        self._stopped = threading.Event()
        self._telemetry = Telemetry("passages")
        threads = settings.threads or max(1, int(cpus))
        limit = None if limiter is None else _SharedLimit(limiter, self._stopped)
        self._runner = PassageRunner(
            url,
            settings,
            Models(settings, threads=threads, telemetry=self._telemetry),
            self._telemetry,
            stopped=self._stopped,
            deaf=threading.Event(),
            exit_when_hung=True,
            share=Share(sources, limit),
        )
        self._thread = threading.Thread(target=self._run, name="passages")
        self._thread.start()

    def report(self) -> Report:
        """Say how it fares."""
        state = self._telemetry.health.state()
        troubles = [
            *([state.obstacle] if state.obstacle else []),
            *(f"the model {model}: {why}" for model, why in state.unloadable),
            *(f"{trouble.label}: {trouble.reason}" for trouble in state.troubles),
        ]
        return Report(
            self._life,
            socket.gethostname(),
            state.done,
            state.connected and self._runner.ready.is_set(),
            troubles[0] if troubles else None,
            self._fault,
        )

    def stop(self) -> None:
        """Finish the batch at the model, hand back the rest, and return when that is done."""
        self._stopped.set()
        self._runner.wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._runner.run()
        except EmbedworkerError as error:
            self._fault = str(error)
        except BaseException as error:
            log.critical("the worker ends by a fault of its own; please report it", exc_info=True)
            self._fault = redacted(error)


class _SharedLimit:
    """Asks the bucket, wherever it is."""

    def __init__(
        self, limiter: "ray.actor.ActorHandle[RateLimiter]", stopped: threading.Event
    ) -> None:
        self._limiter = limiter
        self._stopped = stopped
        self._unused = 0

    def take(self, wanted: int) -> int:
        unused, self._unused = self._unused, 0
        try:
            # Where the answer is lost its tokens are, too: never more than the limit.
            answer: Any = ray.get(self._limiter.take.remote(wanted, unused), timeout=ANSWER)
        except (GetTimeoutError, RayActorError):
            answer = (0, LONGEST_WAIT)
        allowed, pause = int(answer[0]), float(answer[1])
        if not allowed:
            self._stopped.wait(min(pause, LONGEST_WAIT))
        return allowed

    def give_back(self, unused: int) -> None:
        self._unused += unused
