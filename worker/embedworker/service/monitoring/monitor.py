"""What is seen of a worker from outside: its endpoint, and what that needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from embedworker.service.monitoring.access import Access, read_tokens
from embedworker.service.monitoring.backlog import BacklogSampler
from embedworker.service.monitoring.child_metrics import Reports
from embedworker.service.monitoring.endpoint import Endpoint
from embedworker.service.monitoring.metrics import (
    Family,
    Merged,
    Metrics,
    build_info,
    families,
    gauge,
)
from embedworker.service.monitoring.readiness import DATABASE, Readiness
from embedworker.service.worker import Lane, Worker
from embedworker.settings import Settings

__all__ = ["monitored"]


@contextmanager
def monitored(
    url: str,
    settings: Settings,
    worker: Worker,
    metrics: Metrics,
    *,
    lanes: Sequence[Lane],
    reports: Reports | None = None,
) -> Iterator[Readiness]:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` while the worker runs.

    ``lanes`` are those of ``worker``; ``reports`` come from the process that embeds passages, where
    that is another.

    Raises:
        ConfigurationError: the address of the settings is not available, or a token unreadable.
    """
    readiness = Readiness(
        settings,
        {
            **{lane: worker.telemetry(lane).health.state for lane in lanes},
            **({} if reports is None else {"passages": reports.state}),
        },
    )
    observer = BacklogSampler(url, readiness, answer_timeout=settings.answer_timeout)

    def of_all() -> list[Family]:
        return [
            *families(metrics.registry),
            *([] if reports is None else reports.families()),
            *observer.families(),
            _ready(readiness),
            build_info(),
        ]

    endpoint = Endpoint(
        settings.metrics_host,
        settings.metrics_port or 0,
        Merged(of_all),
        readiness.reasons,
        Access(
            read_tokens(
                settings.metrics_token, settings.metrics_token_file, "EMBEDWORKER_METRICS_TOKEN"
            )
        ),
    )
    endpoint.start()
    observer.start()
    try:
        yield readiness
    finally:
        observer.stop()
        endpoint.stop()


def _ready(readiness: Readiness) -> Family:
    bad = {reason.part for reason in readiness.reasons()}
    return gauge(
        "ready",
        "Whether /readyz has nothing to say of this part of the worker.",
        [({"part": part}, part not in bad) for part in (DATABASE, *readiness.lanes)],
    )
