"""One line and the metrics of each request, without a word of what was sent."""

import logging

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import Request

__all__ = ["OTHER", "RequestLog"]

log = logging.getLogger("embedworker.serve")

REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OTHER = "other"  # a path or method that is not there: what a client calls it goes into no log
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
QUIET = ("/metrics", "/healthz", "/readyz")  # asked every few seconds


class RequestLog:
    """Counts requests by path and status, and logs each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "embedworker_http_requests",
            "Requests by path and status.",
            ("path", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "embedworker_http_request_seconds",
            "From a request's first byte to its answer.",
            ("path",),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )

    def note(self, request: Request, path: str, status: int, took: float) -> None:
        """Count and log a request that took so many seconds."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(took)
        fields = {
            "method": request.method if request.method in METHODS else OTHER,
            "path": path,
            "status": status,
            **getattr(request.state, "fields", {}),
            "milliseconds": round(1000 * took),
        }
        log.log(
            logging.DEBUG if path in QUIET else logging.INFO,
            "%s",
            " ".join(f"{name}={value}" for name, value in fields.items()),
            extra={"fields": fields},
        )
