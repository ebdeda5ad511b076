"""What a worker counts, for Prometheus. Times are in seconds; counters start at 0 with the process.

| metric | type | labels | meaning |
|---|---|---|---|
| `embedworker_rows_embedded_total` | counter | source, name | rows whose vectors were written |
| `embedworker_rows_skipped_total` | counter | source, name | rows done without the model |
| `embedworker_failures_total` | counter | source, name, outcome | failed attempts: retry, dead |
| `embedworker_batches_total` | counter | lane | batches that went through the model |
| `embedworker_passages_total` | counter | lane | texts in them |
| `embedworker_tokens_total` | counter | lane | tokens in them, without padding (passages only) |
| `embedworker_phase_seconds` | histogram | phase | one claim, read, tokenize, encode or complete |
| `embedworker_questions_total` | counter | outcome | questions answered, failed; see below |
| `embedworker_question_seconds` | histogram | | from asking to the written answer |
| `embedworker_model_load_seconds` | gauge | lane, model | what the last load took |
| `embedworker_index_builds_total` | counter | outcome | HNSW indexes: built, failed |
| `embedworker_index_build_ratio` | gauge | source, name | how much of the table a build has read |
| `embedworker_passage_process_ends_total` | counter | | times that process ended by itself |
| `embedworker_queue_rows` | gauge | source, name | rows that wait; beyond 10,000 an estimate |
| `embedworker_queue_dead_rows` | gauge | source, name | rows that were given up |
| `embedworker_queue_oldest_seconds` | gauge | source, name | wait of the oldest of them |
| `embedworker_questions_waiting` | gauge | | questions without an answer yet |
| `embedworker_question_cache_vectors` | gauge | | cached vectors of recent questions |
| `embedworker_question_cache_hits_total` | counter | | questions answered from the cache |
| `embedworker_degraded_searches_total` | counter | | searches without a worker, by words alone |
| `embedworker_ready` | gauge | part | 1 if `/readyz` has no reason against the part |
| `embedworker_build_info` | gauge | version | 1 |

Where a worker has several databases, each sample has a label `database`, such as `db1/shop`;
`embedworker_passage_process_ends_total` and `embedworker_build_info` have none.

`source` is the table. `name` distinguishes several sources of one table. The gauges of queue and
questions, the hits and the degraded searches are the same at every worker of a database. So take
their maximum, not their sum. They are missing while the database does not answer.

A question that is found in the cache reaches no worker. So the hits are the server's count of rows
that were found by the primary key of the cache. The count comes up to ten seconds after the
question, or at the end of its transaction. It restarts when the statistics are reset, and does not
include replicas. It also rises when two workers answer the same question at the same moment.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

__all__ = [
    "PHASES",
    "PROCESS_ENDS",
    "Family",
    "Merged",
    "Metrics",
    "add",
    "build_info",
    "counter",
    "families",
    "gauge",
    "labelled",
]

PROCESS_ENDS = "embedworker_passage_process_ends"
PHASES = ("claim", "read", "tokenize", "encode", "complete")
PHASE_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
QUESTION_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

Series = tuple[str, tuple[tuple[str, str], ...]]  # name and labels


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of_source = ("source", "name")
        self.embedded = self._counter(
            "rows_embedded", "Rows whose vectors were written.", of_source
        )
        self.skipped = self._counter(
            "rows_skipped", "Rows done without the model: deleted, emptied, unchanged.", of_source
        )
        self.failures = self._counter(
            "failures", "Attempts at a row that failed.", (*of_source, "outcome")
        )
        self.batches = self._counter("batches", "Batches through the model.", ("lane",))
        self.passages = self._counter("passages", "Texts through the model.", ("lane",))
        self.tokens = self._counter("tokens", "Tokens through the model, unpadded.", ("lane",))
        self.questions = self._counter("questions", "Questions by outcome.", ("outcome",))
        self.ends = self._counter(
            "passage_process_ends", "Unasked ends of the process that embeds passages."
        )
        self.phase = Histogram(
            "embedworker_phase_seconds",
            "Time of one step of the queue's protocol.",
            ("phase",),
            buckets=PHASE_BUCKETS,
            registry=self.registry,
        )
        self.question_seconds = Histogram(
            "embedworker_question_seconds",
            "From asking a question to its written answer.",
            buckets=QUESTION_BUCKETS,
            registry=self.registry,
        )
        self.model_load = Gauge(
            "embedworker_model_load_seconds",
            "What the last load of a model took.",
            ("lane", "model"),
            registry=self.registry,
        )
        self.index_builds = self._counter(
            "index_builds", "HNSW indexes by outcome of the build.", ("outcome",)
        )
        self.index_ratio = Gauge(
            "embedworker_index_build_ratio",
            "Share of the table that the build of its HNSW index has read.",
            of_source,
            registry=self.registry,
        )
        for phase in PHASES:  # so that a rate can be taken from the first one on
            self.phase.labels(phase)
        for outcome in ("answered", "failed"):
            self.questions.labels(outcome)
        for outcome in ("built", "failed"):
            self.index_builds.labels(outcome)

    def __repr__(self) -> str:
        return f"<Metrics {len(families(self.registry))} families>"

    def _counter(self, name: str, documentation: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"embedworker_{name}", documentation, labels, registry=self.registry)


class Family(TypedDict):
    """A family of samples that can travel as JSON: (name, labels, value) each."""

    name: str
    type: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


def families(registry: Collector) -> list[Family]:
    """Everything in a registry, without the times at which series were created."""
    return [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "samples": [
                (sample.name, dict(sample.labels), sample.value)
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ],
        }
        for metric in registry.collect()
    ]


class Merged(Collector):
    """Several processes' families as one: equal series are added up.

    ``families`` is called at each scrape.
    """

    def __init__(self, families: Callable[[], Iterable[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Yield one family a name, with the samples in the order they came."""
        merged: dict[str, tuple[Family, dict[Series, float]]] = {}
        for family in self._families():
            _, sums = merged.setdefault(family["name"], (family, {}))
            add(sums, family)
        for family, sums in merged.values():
            metric = Metric(family["name"], family["help"], family["type"])
            for (name, labels), value in sums.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def add(sums: dict[Series, float], family: Family) -> None:
    """Add a family's samples to sums by series."""
    for name, labels, value in family["samples"]:
        series = name, tuple(sorted(labels.items()))
        sums[series] = sums.get(series, 0.0) + value


def gauge(name: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Family:  # noqa: A002  (its name in the format)
    """Return a family of gauges with these samples."""
    full = f"embedworker_{name}"
    listed = [(full, dict(labels), float(value)) for labels, value in samples]
    return {"name": full, "type": "gauge", "help": help, "samples": listed}


def counter(name: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Family:  # noqa: A002  (its name in the format)
    """Return a family of counters that the server keeps."""
    family = gauge(name, help, samples)
    counted = [(f"{full}_total", labels, value) for full, labels, value in family["samples"]]
    return {**family, "type": "counter", "samples": counted}


def labelled(family: Family, label: str, value: str) -> Family:
    """Return the family with one more label at each sample."""
    samples = [(name, {**labels, label: value}, of) for name, labels, of in family["samples"]]
    return {**family, "samples": samples}


def build_info() -> Family:
    """Return the family that has the version."""
    return gauge(
        "build_info", "The version that runs.", [({"version": version("embedworker")}, 1.0)]
    )
