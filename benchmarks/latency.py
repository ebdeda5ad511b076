"""From INSERT to found by search, one row at a time, beside the time to encode that passage.

    python benchmarks/latency.py --json latency.json

A worker with both lanes is idle, as between two changes of an application. A client inserts a row,
waits until its vector is there, and searches for it with the passage's own vector, made by an
encoder in the client's own warm process; that encoding is the baseline. The clock runs from before
the INSERT until the search has returned the row.
"""

import time

from harness import (
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    p50_p95,
    report,
    turns,
    wait_until,
    warm_up,
    worker,
)
from pgvector import Vector
from texts import texts

from embedworker.database.connect import connect
from embedworker.model import open_encoder
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.model.cpu import cpu_quota

BLOCK = 10  # rows that are encoded, then inserted
QUIET = 0.3  # seconds before each INSERT: the worker is idle again, and so are our own threads
NOTHING_PENDING = "select pending = 0 from embed.status where source = 'article'::regclass"
# Heard, not looked for: looks every half a millisecond kept one of two processors busy.
TELL = """
create function tell() returns trigger language plpgsql as $$
begin
    perform pg_notify('embedded', new.id::text);
    return null;
end
$$;
create trigger tell after insert on article_embedding for each row execute function tell();
listen embedded;
"""
FOUND = 'select (s."row").id from embed.search(null::article, %s::vector, 1) s'


def main() -> None:
    """Insert rows one at a time and print the times."""
    given = options(
        __doc__, rows=100, table_rows=1000, model=BUNDLED_MODEL, engine="torch", seed=1
    ).parse_args()
    started = machine()
    contents = texts(given.rows + given.table_rows, given.seed)
    encode: list[float] = []
    visible: list[float] = []
    found: list[float] = []
    encoder = open_encoder(
        given.model,
        query_prefix="query: ",
        passage_prefix="passage: ",
        engine=given.engine,
        threads=cpu_quota(),
    )
    with cluster() as server:
        url = database(server, "latency", given.model)
        with connect(url) as connection, worker(url, engine=given.engine) as running:
            warm_up(connection, running)
            connection.execute(
                "create table article (id integer generated always as identity, content text,"
                " primary key (id))"
            )
            connection.execute("select embed.enable('article', array['content'])")
            connection.execute(
                "insert into article (content) select unnest(%s::text[])",
                [contents[given.rows :]],
            )
            wait_until(
                lambda: fetch_value(
                    connection,
                    NOTHING_PENDING,
                ),
                check=running.check,
                pause=0.5,
            )
            connection.execute(TELL)
            new = contents[: given.rows]
            # Made before: the client's model would take the processor's cache from the worker's.
            vectors = [Vector(encoder.encode_passages([text])[0]) for text in new]
            pairs = list(zip(new, vectors, strict=True))
            blocks = [pairs[at : at + BLOCK] for at in range(0, given.rows, BLOCK)]
            for number, what in turns(["encode", "insert"], len(blocks)):
                for text, vector in blocks[number]:
                    time.sleep(QUIET)
                    if what == "encode":
                        begun = time.perf_counter()
                        encoder.encode_passages([text])
                        encode.append(time.perf_counter() - begun)
                        continue
                    begun = time.perf_counter()
                    key = fetch_value(
                        connection, "insert into article (content) values (%s) returning id", [text]
                    )
                    heard = [n.payload for n in connection.notifies(timeout=60, stop_after=1)]
                    if heard != [str(key)]:
                        raise SystemExit(f"expected the vector of row {key}, not of {heard}")
                    visible.append(time.perf_counter() - begun)
                    nearest = fetch_value(
                        connection,
                        FOUND,
                        [vector],
                    )
                    found.append(time.perf_counter() - begun)
                    if nearest != key:
                        raise SystemExit(f"row {nearest} was found instead of {key}")
    (e50, e95), (v50, v95), (f50, f95) = (
        p50_p95([1000 * taken for taken in times]) for times in (encode, visible, found)
    )
    measures = [
        Measure("encode the passage, p50", e50, "ms"),
        Measure("encode the passage, p95", e95, "ms"),
        Measure("INSERT to vector, p50", v50, "ms"),
        Measure("INSERT to vector, p95", v95, "ms"),
        Measure("INSERT to found, p50", f50, "ms"),
        Measure("INSERT to found, p95", f95, "ms"),
        Measure("p50 beyond encoding", f50 - e50, "ms", "<= 15"),
        Measure("p95 : p50", f95 / f50, "x", "<= 3"),
    ]
    report("latency", given, started, measures, encode=encode, visible=visible, found=found)


if __name__ == "__main__":
    main()
