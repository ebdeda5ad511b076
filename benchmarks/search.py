"""Search among 100,000 vectors: recall of the HNSW index against comparing all, and the time.

    python benchmarks/search.py --json search.json

To encode 100,000 passages takes an hour here, so most vectors are made of a few thousand real ones:
two of them are mixed, one more than the other, with a little noise, and brought to length 1. They
lie as crowded as real ones do (cosines from 0.7 up), which is what makes recall hard. Questions are
real. The index is the one that the worker builds, search is embed.search by vector; for the exact
answer the planner may not use the index. Then pages of the plain expression are asked for, with the
settings of ``migrate``: under conditions of 10, 1 and 0.1 %, and behind 60 rows.
"""

import statistics
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from harness import Connection, Measure, cluster, database, fetch_value, machine, options, report
from pgvector import Vector
from texts import questions, texts

from embedworker.database.connect import connect
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.queue.source import load_sources
from embedworker.service.indexing import Indexer
from embedworker.service.models import Models
from embedworker.settings import load
from embedworker.settings.worker import index_memory

SHARE = (0.15, 0.5)  # of the second vector in a mixture
NOISE = 0.1  # length of the noise
LONGEST = 150  # characters of a passage that is encoded
K = 10
# Pages of the plain expression: one row in so many passes the condition; rows to skip, rows wanted.
PAGES = ((1, 0, 10), (10, 0, 10), (100, 0, 10), (1000, 0, 10), (1, 60, 20), (10, 60, 20))
PAGE = """
    select coalesce(array_agg(id), '{{}}') from (
        select id from article join article_embedding using (id)
        where part < {bound} order by embedding <=> %s limit {wanted} offset {skipped}
    ) page
"""
# The same pages by the function: one row in ten has this value.
SKIPPED = """
    select coalesce(array_agg((s."row").id), '{}') from embed.search(
        null::article, %s::vector, k => 20, skip => 60, matching => %s
    ) s
"""
ALL_OR_TENTH = {"all": None, "1 row in 10": '{"tenth": 3}'}
SEARCH = 'select array_agg((s."row").id) from embed.search(null::article, %s::vector, %s) s'
INDEXES = (
    "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m"
    " on m.oid = c.relam where m.amname = 'hnsw' and i.indisvalid"
    " and i.indrelid = 'article_embedding'::regclass"
)
SCANS = (
    "select coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_indexes"
    " where relname = 'article_embedding' and indexrelname like '%%hnsw'"
)
PATHS = {
    "hnsw": "set enable_indexscan = on; set enable_seqscan = off; set enable_sort = off",
    "exact": "set enable_indexscan = off; set enable_seqscan = on; set enable_sort = on",
    "planner": "reset enable_indexscan; reset enable_seqscan; reset enable_sort",
}


def mixtures(base: npt.NDArray[np.float32], count: int, seed: int) -> npt.NDArray[np.float32]:
    """Float32 of shape (count, dimensions), the first of them the base itself."""
    chance = np.random.default_rng(seed)
    first, second = chance.integers(0, len(base), (2, count))
    share = chance.uniform(*SHARE, (count, 1)).astype(np.float32)
    noise = chance.normal(0, NOISE / np.sqrt(base.shape[1]), (count, base.shape[1]))
    made = (1 - share) * base[first] + share * base[second] + noise.astype(np.float32)
    made[: len(base)] = base[:count]
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def load_vectors(
    connection: Connection, vectors: npt.NDArray[np.float32], fingerprint: int
) -> None:
    """A row for each vector, without its triggers, and the vectors as a worker would leave them."""
    connection.execute("set session_replication_role = replica")
    connection.execute(
        "insert into article select n, 'row ' || n, n * 7919::bigint %% %s, n * 7919::bigint %% 10"
        " from generate_series(0, %s) n",
        [len(vectors), len(vectors) - 1],
    )
    columns = "id, chunk, passage_start, passage_end, truncated, embedding, fingerprint, hash"
    with connection.cursor().copy(
        f"copy article_embedding ({columns}, checksum, seq) from stdin"
    ) as copying:
        for key, vector in enumerate(vectors):
            copying.write_row((key, 0, 0, 5, False, Vector(vector), fingerprint, b"", b"", 0))
    connection.execute("reset session_replication_role")
    connection.execute("vacuum analyze article")
    connection.execute("vacuum analyze article_embedding")


def pages(connection: Connection, asked: npt.NDArray[np.float32], rows: int) -> Iterator[Measure]:
    """Compare the plan that the planner chooses with comparing all, in both orders of a scan."""
    for share, skipped, limit in PAGES:
        wanted = min(limit, rows // share - skipped)
        if wanted <= 0:
            continue
        page = PAGE.format(bound=rows // share, skipped=skipped, wanted=wanted)
        found: dict[str, list[list[int]]] = {}
        for order in ("strict_order", "relaxed_order", "exact"):
            connection.execute(PATHS["exact" if order == "exact" else "planner"])
            if order != "exact":
                connection.execute(f"set hnsw.iterative_scan = {order}")
            found[order] = [fetch_value(connection, page, [Vector(vector)]) for vector in asked]
        for order in ("strict_order", "relaxed_order"):
            name = f"1 row in {share:,}, rows {skipped + 1} to {skipped + wanted}, {order}"
            shared = [
                len(set(near) & set(exact)) / wanted
                for near, exact in zip(found[order], found["exact"], strict=True)
            ]
            full = statistics.mean(len(near) == wanted for near in found[order])
            yield Measure(f"{name}: pages with all {wanted} rows", full, "", ">= 1")
            yield Measure(f"{name}: recall", statistics.mean(shared), "", ">= 0.95")


def skipped(connection: Connection, asked: npt.NDArray[np.float32]) -> Iterator[Measure]:
    """Compare rows 61 to 80 of the function with those that it finds without the index."""
    for rows, matching in ALL_OR_TENTH.items():
        found: dict[str, list[list[int]]] = {}
        for path in ("hnsw", "exact"):
            connection.execute(PATHS[path])
            found[path] = [
                fetch_value(connection, SKIPPED, [Vector(vector), matching]) for vector in asked
            ]
        shared = [
            len(set(near) & set(exact)) / max(len(exact), 1)
            for near, exact in zip(found["hnsw"], found["exact"], strict=True)
        ]
        recall = statistics.mean(shared)
        yield Measure(f"embed.search, {rows}, rows 61 to 80: recall", recall, "", ">= 0.95")


def main() -> None:
    """Build, search both ways and print recall and times."""
    given = options(
        __doc__, vectors=100_000, base=3000, questions=200, model=BUNDLED_MODEL, seed=3
    ).parse_args()
    started = machine()
    settings = load()
    with cluster(maintenance_work_mem="512MB", shared_buffers="1GB") as server:
        url = database(server, "search", given.model)
        with connect(url) as connection:
            loaded = Models(settings, threads=None).get(connection, given.model)
            base = loaded.encoder.encode_passages(
                [text[:LONGEST] for text in texts(given.base, given.seed)]
            )
            asked = loaded.encoder.encode_queries(questions(given.questions, given.seed))
            connection.execute(
                "create table article"
                " (id integer primary key, content text, part integer, tenth integer)"
            )
            connection.execute("select embed.enable('article', array['content'])")
            (source,) = (s for s in load_sources(connection) if s.name == "article")
            connection.execute(
                "update embed.source_state set fingerprint = %s where source = %s",
                [loaded.fingerprint, source.id],
            )
            load_vectors(connection, mixtures(base, given.vectors, given.seed), loaded.fingerprint)
            begun = time.perf_counter()
            indexer = Indexer(url, after_rows=0, memory=index_memory())
            indexer.build_all(connection, source)
            build = time.perf_counter() - begun
            if fetch_value(connection, INDEXES) != 1:
                raise SystemExit("no index was built: there is nothing to compare")
            scans = fetch_value(connection, SCANS)
            found: dict[str, list[list[int]]] = {}
            times: dict[str, list[float]] = {}
            for path, setting in PATHS.items():
                connection.execute(setting)
                found[path], times[path] = [], []
                for vector in asked:
                    begun = time.perf_counter()
                    found[path].append(fetch_value(connection, SEARCH, [Vector(vector), K]))
                    times[path].append(1000 * (time.perf_counter() - begun))
                if path == "hnsw":
                    connection.execute("select pg_stat_force_next_flush()")
                    if fetch_value(connection, SCANS) - scans < given.questions:
                        raise SystemExit("the index was there and was not used")
            plain = [*pages(connection, asked, given.vectors), *skipped(connection, asked)]
    shared = [
        len(set(near) & set(exact)) / K
        for near, exact in zip(found["hnsw"], found["exact"], strict=True)
    ]
    p50 = {path: statistics.median(taken) for path, taken in times.items()}
    measures = [
        Measure("vectors", given.vectors),
        Measure("build of the index", build, "s"),
        Measure(f"recall@{K}, HNSW", statistics.mean(shared), "", ">= 0.98"),
        Measure("search by HNSW, p50", p50["hnsw"], "ms"),
        Measure("search by comparing all, p50", p50["exact"], "ms"),
        Measure("search as the planner chooses, p50", p50["planner"], "ms"),
        *plain,
    ]
    report("search", given, started, measures, recall=shared, times=times)


if __name__ == "__main__":
    main()
