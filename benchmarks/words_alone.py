"""Quality of embed.search while no worker answers: the words alone rank the rows.

    python benchmarks/words_alone.py sets/belebele-ko-ko sets/gnome-help-ko

For each folder in BEIR's format, a worker embeds the documents and counts their words. Then it
ends, and every question is asked. The testing encoder makes the vectors, which nothing compares.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from harness import (
    Connection,
    Measure,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    p50_p95,
    report,
    wait_until,
    worker,
)

from embedworker.database.connect import connect
from embedworker.model.catalog import TESTING_MODEL
from embedworker.search.beir import Collection, read_beir
from embedworker.search.measures import means, measured

K = 10
SEARCH = 'select (s."row").number, s.score from embed.search(null::{}, %s, k => %s) s'
COUNTED = """
    select exists (
        select from embed.lexical_state t join embed.source s on s.id = t.source
        where s.name = %s and t.passages = (select count(*) from {}_embedding)
    )
"""


def fill(connection: Connection, url: str, table: str, collection: Collection) -> None:
    """Make a table of the documents, and wait until a worker has counted the words of all."""
    connection.execute(f"create table {table} (number text primary key, body text)".encode())
    connection.execute("select embed.enable(%s, array['body'], chunk => false)", [table])
    with connection.cursor().copy(f"copy {table} from stdin".encode()) as copying:
        for row in collection.documents.items():
            copying.write_row(row)
    with worker(url, "--only-passages") as running:
        wait_until(
            lambda: fetch_value(connection, COUNTED.format(table), [table]),
            check=running.check,
            pause=0.5,
        )


def measure(connection: Connection, table: str, collection: Collection) -> Iterator[Measure]:
    """Ask every question; they differ, so none is answered from the cache."""
    run, times = {}, []
    for number, question in collection.questions.items():
        begun = time.perf_counter()
        rows = connection.execute(SEARCH.format(table).encode(), [question, K]).fetchall()
        times.append(1000 * (time.perf_counter() - begun))
        run[number] = dict(rows)
    quality = means(measured(collection.relevance, run, {}, K))
    p50, p95 = p50_p95(times)
    yield Measure(f"{collection.name}, nDCG@10", quality["nDCG@10"])
    yield Measure(f"{collection.name}, p50", p50, "ms")
    yield Measure(f"{collection.name}, p95", p95, "ms")


def main() -> None:
    """Measure every folder."""
    parser = options(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    given = parser.parse_args()
    started = machine()
    measures = []
    with cluster() as server:
        url = database(server, "words_alone", TESTING_MODEL)
        with connect(url) as connection:
            for place, folder in enumerate(given.folders):
                collection = read_beir(folder)
                fill(connection, url, f"set_{place}", collection)
                measures += list(measure(connection, f"set_{place}", collection))
    report("words_alone", given, started, measures)


if __name__ == "__main__":
    main()
