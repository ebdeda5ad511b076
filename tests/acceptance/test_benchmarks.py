"""Every benchmark runs, in miniature: that they measure is what is tested, not what they find."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from psycopg import connect

from embedworker.database.embedded.cluster import Cluster
from embedworker.model.catalog import TESTING_MODEL

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(
    monkeypatch: pytest.MonkeyPatch, server: Cluster, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Run one by its name, in this process and on the server of the tests; return its report."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")

    def run(name: str, *folders: Path, on: Cluster = server, **given: object) -> dict[str, Any]:
        @contextmanager
        def cluster(**_: str) -> Iterator[Cluster]:
            yield on

        module: ModuleType = importlib.import_module(name)
        monkeypatch.setattr(module, "cluster", cluster)
        # A name of its own for the database, so that a run after a failed one finds none.
        with connect(on.url("postgres"), autocommit=True) as connection:
            connection.execute(f"drop database if exists {name} with (force)")
        report = tmp_path / f"{name}.json"
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        monkeypatch.setattr(sys, "argv", [name, f"--json={report}", *flags, *map(str, folders)])
        module.main()
        found: dict[str, Any] = json.loads(report.read_text())
        assert found["benchmark"] == name
        assert found["machine"]["processors"] >= 1
        assert "psycopg" in found["versions"]
        with connect(on.url("postgres"), autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")
        return {m["name"]: m["value"] for m in found["measures"]}

    return run


@pytest.mark.slow
@pytest.mark.timeout(300)  # 56 s on an idle machine; four processes load a model
def test_backfill(benchmark: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from tiny_models import save_model

    model = save_model(tmp_path / "tiny", dimensions=384, max_tokens=512)
    found = benchmark("backfill", rows=20, rounds=2, model=model)
    assert found["worker : bare engine"] > 0
    assert found["worker : naive script"] > 0


def test_latency(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("latency", rows=3, table_rows=5, model=TESTING_MODEL)
    assert found["INSERT to found, p50"] > found["encode the passage, p50"]


def test_questions(
    benchmark: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDWORKER_TESTING_DELAY", "0.02")
    monkeypatch.setenv("EMBEDWORKER_BATCH_TOKENS", "500")
    found = benchmark("questions", questions=3, rounds=1, seconds=2, rows=1200, model=TESTING_MODEL)
    assert found["asked again after the answer, p50"] < found["embed.query, at random times, p50"]
    assert found["backfill, nobody asks"] > 0


def test_writes(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("writes", seconds=1, rounds=1, writers="4", rows=200)
    assert found["4 writers, enabled"] > 0
    assert found["COPY, enabled : plain"] > 0


def test_claim(benchmark: Callable[..., dict[str, Any]]) -> None:
    assert benchmark("claim", small=400, large=800, repeats=1)["ratio"] > 0


def test_search(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("search", vectors=500, base=50, questions=5, model=TESTING_MODEL)
    assert 0 < found["recall@10, HNSW"] <= 1


@pytest.mark.slow
def test_large_table(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("large_table", rows=600, questions=5)
    assert found["search, role under a policy, p50"] > 0
    assert found["matching 1 in 100, answers with 6 rows"] == 1


@pytest.mark.slow
def test_truncate(benchmark: Callable[..., dict[str, Any]]) -> None:
    assert benchmark("truncate", rows=3000)["rows that were queued"] > 1500


def test_memory(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("memory", minutes=0.001, longest=1000, model=TESTING_MODEL)
    assert found["passages, highest"] >= found["passages, loaded"] > 0


def test_idle(
    benchmark: Callable[..., dict[str, Any]], new_cluster: Callable[..., Cluster]
) -> None:
    watched = new_cluster(shared_preload_libraries="pg_stat_statements")
    watched.start()
    found = benchmark("idle", on=watched, seconds=3, settle=1, rows=30, model=TESTING_MODEL)
    assert found["polls of the passage lane"] > 0


def _fruit(parent: Path) -> Path:
    """A set of three documents."""
    folder = parent / "fruit"
    folder.mkdir()
    for name, texts in (
        ("corpus", ["사과 나무", "배 나무", "바다 물고기"]),
        ("queries", ["사과가 좋아", "물고기는 어디"]),
    ):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
        )
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0\t1\n1\t2\t1\n")
    return folder


def test_words_alone(benchmark: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = _fruit(tmp_path)
    assert benchmark("words_alone", folder)["fruit, nDCG@10"] == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_storage(benchmark: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    folder = _fruit(tmp_path)
    found = benchmark("storage", folder, model=TESTING_MODEL, vectors=300, questions=2, bits=40)
    assert found["fruit, exact, vector"] == found["fruit, hnsw, halfvec"]
    assert found["halfvec, recall@10"] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(300)  # Ray is started twice
def test_fleet(benchmark: Callable[..., dict[str, Any]]) -> None:
    found = benchmark("ray_workers", rows=600, rounds=1)  # a worker says every 5 s what it did
    assert found["two workers : one worker"] > 0
