"""What smaller vectors cost: quality on sets, and size and recall of indexes over 100,000 vectors.

    python benchmarks/storage.py sets/*/ --json storage.json

Quality: each folder in BEIR's format is encoded once. Its vectors are stored as vector and as
halfvec, each with the index that the worker builds, and embed.search is asked by vector.

Size: mixtures of the last set's vectors (see search.py) are stored as vector and as halfvec, each
with the index that the worker builds. Recall is of the nearest ten by float32. The last index has
one bit for each number, and its nearest --bits rows are ordered by their whole vectors.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from harness import (
    Connection,
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    report,
)
from pgvector import Vector
from search import mixtures

from embedworker.database.connect import connect
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.queue.source import load_sources
from embedworker.search.beir import Collection, read_beir
from embedworker.search.collection import find_source
from embedworker.search.measures import PerQuestion, compared, means, measured
from embedworker.service.indexing import Indexer
from embedworker.service.models import Models
from embedworker.settings import load
from embedworker.settings.worker import index_memory

Floats = npt.NDArray[np.float32]

K = 10
PATHS = {
    "exact": "set enable_indexscan = off; set enable_seqscan = on; set enable_sort = on",
    "hnsw": "set enable_indexscan = on; set enable_seqscan = off; set enable_sort = off",
}
SEARCH = 'select (s."row").id, s.score from embed.search(null::{}, %s::vector, k => %s) s'
INDEX = "select x.index::regclass::text from embed.source s, embed._vector_indexes(s) x"
INDEX += " where s.relation = %s::regclass"
NEAREST = "select array(select id from {table} order by embedding <=> %s limit 10)"
BITS = (
    "select array(select id from (select id, embedding from {table}"
    " order by binary_quantize(embedding)::bit({dimensions})"
    " <~> binary_quantize(%s)::bit({dimensions}) limit {count}) x"
    " order by embedding <=> %s limit 10)"
)


def build(connection: Connection, url: str, relation: str) -> float:
    """Have the index built as a worker builds it; the seconds that it took."""
    oid = fetch_value(connection, "select %s::regclass::oid::bigint", [relation])
    wanted = find_source(connection, oid).id
    source = next(one for one in load_sources(connection) if one.id == wanted)
    begun = time.perf_counter()
    indexer = Indexer(url, after_rows=0, memory=index_memory())
    indexer.build_all(connection, source)
    return time.perf_counter() - begun


def fill(connection: Connection, table: str, storage: str, vectors: Floats) -> None:
    """Enable a table and leave the vectors as a worker would; the key is the place."""
    connection.execute(f"create table {table} (id integer primary key, content text)".encode())
    connection.execute(
        f"insert into {table} select n from generate_series(0, {len(vectors) - 1}) n".encode()
    )
    connection.execute("select embed.enable(%s, array['content'], storage => %s)", [table, storage])
    connection.execute(
        "update embed.source_state set fingerprint = (select max(id) from embed.fingerprint)"
    )
    connection.execute("set session_replication_role = replica")
    columns = "id, passage_start, passage_end, embedding, fingerprint, hash, checksum, seq"
    fingerprint = fetch_value(connection, "select max(id) from embed.fingerprint")
    with connection.cursor().copy(
        f"copy {table}_embedding ({columns}) from stdin".encode()
    ) as copying:
        for key, vector in enumerate(vectors):
            copying.write_row((key, 0, 5, Vector(vector), fingerprint, b"", b"", 0))
    connection.execute("reset session_replication_role")
    connection.execute(f"vacuum analyze {table}".encode())
    connection.execute(f"vacuum analyze {table}_embedding".encode())


def quality(
    connection: Connection, url: str, collection: Collection, passages: Floats, asked: Floats
) -> Iterator[Measure]:
    """Ask a set by both types, and yield nDCG@10 and the difference."""
    documents, questions = list(collection.documents), list(collection.questions)
    found: dict[tuple[str, str], PerQuestion] = {}
    for storage in ("vector", "halfvec"):
        table = f"{storage}_{len(documents)}"
        fill(connection, table, storage, passages)
        build(connection, url, table)
        for path, setting in PATHS.items():
            connection.execute(setting.encode())
            run = {}
            for number, vector in zip(questions, asked, strict=True):
                rows = connection.execute(SEARCH.format(table).encode(), [Vector(vector), K])
                run[number] = {documents[place]: score for place, score in rows}
            found[path, storage] = measured(collection.relevance, run, {}, K)
        connection.execute(b"reset all")
    for path in PATHS:
        before, after = found[path, "vector"], found[path, "halfvec"]
        difference = compared(after, before)["nDCG@10"]
        which = f"{collection.name}, {path}"
        yield Measure(f"{which}, vector", means(before)["nDCG@10"])
        yield Measure(f"{which}, halfvec", means(after)["nDCG@10"])
        yield Measure(f"{which}, difference", difference.difference, "", ">= -0.001")
        yield Measure(f"{which}, its standard error", difference.standard_error)


def recall(
    connection: Connection, statement: str, asked: Floats, expected: list[set[int]], times: int
) -> tuple[float, float]:
    """The share of the nearest ten that is found, and the median time in ms."""
    shares, took = [], []
    for question, wanted in zip(asked, expected, strict=True):
        begun = time.perf_counter()
        found = fetch_value(connection, statement, [Vector(question)] * times)
        took.append(1000 * (time.perf_counter() - begun))
        shares.append(len(wanted & set(found)) / K)
    return statistics.mean(shares), statistics.median(took)


def sizes(
    connection: Connection, url: str, vectors: Floats, asked: Floats, bits: list[int]
) -> Iterator[Measure]:
    """Yield size, time and recall of each form."""
    expected = [set(np.argpartition(-(vectors @ question), K)[:K].tolist()) for question in asked]
    connection.execute("set enable_seqscan = off; set hnsw.ef_search = 200")
    index_bytes = {}
    for storage in ("vector", "halfvec"):
        table = f"by_{storage}"
        fill(connection, table, storage, vectors)
        seconds = build(connection, url, table)
        index = fetch_value(connection, INDEX, [table])
        index_bytes[storage] = fetch_value(connection, "select pg_relation_size(%s)", [index])
        whole = fetch_value(connection, f"select pg_table_size('{table}_embedding')")
        statement = NEAREST.format(table=f"{table}_embedding")
        found, p50 = recall(connection, statement, asked, expected, 1)
        yield Measure(f"{storage}, table", whole / 1e6, "MB")
        yield Measure(f"{storage}, index", index_bytes[storage] / 1e6, "MB")
        yield Measure(f"{storage}, build", seconds, "s")
        yield Measure(f"{storage}, recall@10", found, "", ">= 0.98")
        yield Measure(f"{storage}, p50", p50, "ms")
    yield Measure("index by halfvec : vector", index_bytes["halfvec"] / index_bytes["vector"])
    dimensions = vectors.shape[1]
    begun = time.perf_counter()
    connection.execute(
        "set maintenance_work_mem = '1GB'; create index by_bits on by_vector_embedding using hnsw"
        f" ((binary_quantize(embedding)::bit({dimensions})) bit_hamming_ops)"
        " with (m = 24, ef_construction = 128)".encode()
    )
    yield Measure("bits, build", time.perf_counter() - begun, "s")
    size = fetch_value(connection, "select pg_relation_size('by_bits')")
    yield Measure("bits, index", size / 1e6, "MB")
    for count in bits:
        statement = BITS.format(table="by_vector_embedding", dimensions=dimensions, count=count)
        for path, setting in (("index", "on"), ("all bits compared", "off")):
            connection.execute(
                f"set enable_indexscan = {setting}; set enable_seqscan = on;"
                f" set hnsw.ef_search = {min(count, 1000)}".encode()
            )
            found, p50 = recall(connection, statement, asked, expected, 2)
            yield Measure(f"bits, {count} rescored, {path}, recall@10", found, "", ">= 0.98")
            yield Measure(f"bits, {count} rescored, {path}, p50", p50, "ms")


def main() -> None:
    """Measure every set, then the sizes."""
    parser = options(
        __doc__, vectors=100_000, questions=200, model=BUNDLED_MODEL, seed=3, bits="100,400,1000"
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    given = parser.parse_args()
    started = machine()
    measures: list[Measure] = []
    with cluster(maintenance_work_mem="512MB", shared_buffers="1GB") as server:
        url = database(server, "storage", given.model)
        with connect(url) as connection:
            encoder = Models(load(), threads=None).get(connection, given.model).encoder
            for folder in given.folders:
                collection = read_beir(folder)
                passages = encoder.encode_passages(list(collection.documents.values()))
                asked = encoder.encode_queries(list(collection.questions.values()))
                for measure in quality(connection, url, collection, passages, asked):
                    print(measure.name, f"{measure.value:.5f}", flush=True)
                    measures.append(measure)
            vectors = mixtures(passages, given.vectors, given.seed)
            counts = [int(count) for count in given.bits.split(",")]
            for measure in sizes(connection, url, vectors, asked[: given.questions], counts):
                print(measure.name, measure.shown, flush=True)
                measures.append(measure)
    report("storage", given, started, measures)


if __name__ == "__main__":
    main()
