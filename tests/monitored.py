"""The endpoint of a worker process, found by its log."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from fix_worker import START, WorkerProcess
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

SLOW = 60.0  # seconds; a machine that does much else


class Monitored:
    """What a worker that was started with ``metrics_port="0"`` shows of itself."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker

        def address() -> str | None:
            assert worker.process.poll() is None, worker
            found = re.search(r"readiness on (http://[\w.:\[\]]+)", worker.output())
            return None if found is None else found[1]

        self.url = wait_until(address, START, f"an endpoint of {worker}")
        assert self.url is not None

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Return status, content type and body."""
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=SLOW) as answer:  # noqa: S310
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    def ready(self) -> tuple[bool, str]:
        """Whether it says it is ready, and all its reasons as one text."""
        status, kind, body = self.get("/readyz")
        assert kind == "application/json"
        said: dict[str, Any] = json.loads(body)
        assert (status == 200) == said["ready"] == (not said["reasons"])
        return said["ready"], "; ".join(f"{r['part']}: {r['reason']}" for r in said["reasons"])

    def wait_ready(self, timeout: float = SLOW) -> None:
        wait_until(lambda: self.ready()[0], timeout, f"readiness ({self.ready()})")

    def wait_reason(self, words: str, timeout: float = SLOW) -> None:
        def seen() -> bool:
            return words in self.ready()[1]

        wait_until(seen, timeout, f"{words!r} among the reasons ({self.ready()})")

    def samples(self) -> dict[str, float]:
        """Every sample of a scrape, ``name{label="value",…}``, labels in order of their names."""
        _, _, body = self.get("/metrics")
        return {
            _series(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }

    def wait_sample(self, series: str, is_right: Callable[[float], bool]) -> None:
        def seen() -> bool:
            value = self.samples().get(series)
            return value is not None and is_right(value)

        wait_until(seen, SLOW, f"{series} in a scrape")


def _series(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
