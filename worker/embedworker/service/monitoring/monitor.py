"""What is seen of a worker from outside: its endpoint, and what that needs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from embedworker.service.monitoring.access import Access, read_tokens
from embedworker.service.monitoring.backlog import BacklogSampler
from embedworker.service.monitoring.child_metrics import Reports
from embedworker.service.monitoring.endpoint import Endpoint
from embedworker.service.monitoring.health import LaneState, Telemetry
from embedworker.service.monitoring.metrics import (
    PROCESS_ENDS,
    Family,
    Merged,
    Metrics,
    build_info,
    families,
    gauge,
    labelled,
)
from embedworker.service.monitoring.readiness import DATABASE, Readiness, Reason
from embedworker.settings import Settings

__all__ = ["Monitor", "monitored"]


class Monitor:
    """The readiness, backlog and counts of one database, from :meth:`start` to :meth:`stop`.

    ``database`` is its name where the worker has several, which is then a label of each sample.
    ``telemetry`` is that of a lane of this process; ``reports`` come from the process that embeds
    passages, where that is another.
    """

    def __init__(
        self,
        url: str,
        telemetry: Telemetry,
        database: str = "",
        *,
        settings: Settings,
        reports: Reports | None = None,
    ) -> None:
        self._database = database
        self._telemetry = telemetry
        self._reports = reports
        lanes: dict[str, Callable[[], LaneState | str]] = {telemetry.lane: telemetry.health.state}
        if reports is not None:
            lanes["passages"] = lambda: reports.state(database)
        self.readiness = Readiness(settings, lanes)
        self._sampler = BacklogSampler(url, self.readiness, answer_timeout=settings.answer_timeout)

    @property
    def alone(self) -> bool:
        """Whether it is that of the only database."""
        return not self._database

    def start(self) -> None:
        """Ask the database what waits, from now on."""
        self._sampler.start()

    def stop(self) -> None:
        """End the thread at its next look."""
        self._sampler.stop()

    def families(self) -> list[Family]:
        """Return what is counted of this database."""
        counted = [
            *families(self._telemetry.metrics.registry),
            *([] if self._reports is None else self._reports.families(self._database)),
            *self._sampler.families(),
            _ready(self.readiness),
        ]
        if not self._database:
            return counted
        own = [family for family in counted if family["name"] != PROCESS_ENDS]
        return [labelled(family, "database", self._database) for family in own]

    def reasons(self) -> list[Reason]:
        """Return why its lanes are not ready."""
        reasons = self.readiness.reasons()
        if not self._database:
            return reasons
        return [Reason(part, f"{self._database}: {reason}") for part, reason in reasons]


@contextmanager
def monitored(
    settings: Settings, monitors: Callable[[], Sequence[Monitor]], common: Metrics
) -> Iterator[None]:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` for the databases that are monitored.

    ``common`` counts what belongs to none of several databases. The only one has it, too.

    Raises:
        ConfigurationError: the address of the settings is not available, or a token unreadable.
    """

    def of_all() -> list[Family]:
        watched = monitors()
        ends = [family for family in families(common.registry) if family["name"] == PROCESS_ENDS]
        return [
            *([] if any(monitor.alone for monitor in watched) else ends),
            *(family for monitor in watched for family in monitor.families()),
            build_info(),
        ]

    endpoint = Endpoint(
        settings.metrics_host,
        settings.metrics_port or 0,
        Merged(of_all),
        lambda: [reason for monitor in monitors() for reason in monitor.reasons()],
        Access(
            read_tokens(
                settings.metrics_token, settings.metrics_token_file, "EMBEDWORKER_METRICS_TOKEN"
            )
        ),
    )
    endpoint.start()
    try:
        yield
    finally:
        endpoint.stop()


def _ready(readiness: Readiness) -> Family:
    bad = {reason.part for reason in readiness.reasons()}
    return gauge(
        "ready",
        "Whether /readyz has nothing to say of this part of the worker.",
        [({"part": part}, part not in bad) for part in (DATABASE, *readiness.lanes)],
    )
