"""A search of a large table: its time beside the vector of the question, with its words.

    python benchmarks/large_table.py --rows 100000 --json large.json

A worker embeds a table without words, and then the same rows in one with words. It builds both
indexes. Each question is asked once before it counts, so its vector comes from the cache. The owner
asks, and a role whose policy shows half of the rows. ``matching`` then asks for one of 100, 1,000
and 10,000 values; each row that exists must be found. By default the testing encoder makes the
vectors: they mean nothing, so HNSW is at its worst, and the worker at its quickest.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness import (
    Connection,
    Measure,
    Process,
    cluster,
    database,
    fetch_value,
    machine,
    options,
    p50_p95,
    report,
    wait_until,
    warm_up,
    worker,
)
from psycopg.conninfo import make_conninfo
from texts import questions, texts

from embedworker.database.connect import connect
from embedworker.model.catalog import TESTING_MODEL

K = 10
LONGEST = 150  # characters of a row, for bytes a row
DIFFERENT = 5000  # texts of the templates; each row also has a number of its own
SHARES = {"hundredth": 100, "thousandth": 1000, "myriadth": 10_000}
WORKER = {"nice": "0", "index_after_rows": "100", "words_index_after_rows": "100"}
INDEX_LONGEST = 7200.0  # seconds for both indexes
MADE = """
    create table {0} (id integer primary key, hundredth integer, thousandth integer,
        myriadth integer, content text);
    create index on {0} (hundredth); create index on {0} (thousandth);
    create index on {0} (myriadth)
"""
EMBEDDED = "select embedded >= %s and pending = 0 from embed.status where name = %s"
INDEXED = """
    select exists (select from embed._vector_indexes(s) x where x.valid)
        and exists (select from embed._words_indexes(s) x where x.valid)
    from embed.source s where s.name = 'worded'
"""
WORDS = """
    select (select sum(pg_column_size(v.terms)) from worded_embedding v)
        + (select sum(pg_relation_size(x.index)) from embed._words_indexes(s) x)
    from embed.source s where s.name = 'worded'
"""
SEARCH = 'select (s."row").id, s.similarity from embed.search(null::worded, %s, k => 10) s'
MATCHING = (
    'select (s."row").{0} from embed.search(null::worded, %s, k => 10,'
    " matching => jsonb_build_object('{0}', %s::integer)) s"
)


def fill(connection: Connection, running: Process, table: str, rows: int, *, words: bool) -> float:
    """Enable a table of these rows; return how many the worker embedded in a second."""
    different = [text[:LONGEST] for text in texts(DIFFERENT, 5)]
    connection.execute(MADE.format(table).encode())
    with connection.cursor().copy(f"copy {table} from stdin".encode()) as copying:
        for n in range(rows):
            text = f"{n} {different[n % DIFFERENT]}"[:LONGEST]
            copying.write_row((n, *(n * 7 % share for share in SHARES.values()), text))
    connection.execute(f"vacuum analyze {table}".encode())
    connection.execute("select embed.enable(%s, array['content'], words => %s)", [table, words])
    begun = time.perf_counter()
    wait_until(
        lambda: fetch_value(connection, EMBEDDED, [rows, table]),
        check=running.check,
        pause=0.2,
        timeout=INDEX_LONGEST,
    )
    return rows / (time.perf_counter() - begun)


def times(connection: Connection, asked: list[str]) -> list[float]:
    """Milliseconds of each question."""
    taken = []
    for question in asked:
        begun = time.perf_counter()
        found = connection.execute(SEARCH.encode(), [question]).fetchall()
        taken.append(1000 * (time.perf_counter() - begun))
        if len(found) != K or any(similarity is None for _, similarity in found):
            raise SystemExit(f"expected {K} rows with a similarity, found {found}")
    return taken


def matched(connection: Connection, asked: list[str], rows: int) -> Iterator[Measure]:
    """Ask for one value of each column in turn."""
    for column, share in SHARES.items():
        if share > rows:
            continue
        taken, complete = [], 0
        wanted = min(K, rows // share)
        for number, question in enumerate(asked):
            begun = time.perf_counter()
            found = connection.execute(
                MATCHING.format(column).encode(), [question, number % share]
            ).fetchall()
            taken.append(1000 * (time.perf_counter() - begun))
            complete += found == [(number % share,)] * wanted
        p50, p95 = p50_p95(taken)
        name = f"matching 1 in {share:,}"
        yield Measure(f"{name}, answers with {wanted} rows", complete / len(asked), "", ">= 1")
        yield Measure(f"{name}, p50", p50, "ms")
        yield Measure(f"{name}, p95", p95, "ms", "<= 50")


@contextmanager
def reader(connection: Connection, url: str) -> Iterator[str]:
    """Make a role that sees half of the rows, and give its URL."""
    connection.execute("create role half login password 'half' in role embed_search")
    connection.execute("grant select on worded to half")
    connection.execute("alter table worded enable row level security")
    connection.execute("create policy half on worded for select to half using (hundredth < 50)")
    yield make_conninfo(url, user="half", password="half")  # noqa: S106
    connection.execute("drop policy half on worded")
    connection.execute("drop owned by half; drop role half")


def measure(connection: Connection, url: str, rows: int, count: int) -> Iterator[Measure]:
    """The owner's times, those with ``matching``, and those of a role under a policy."""
    asked = questions(count, 5)
    for question in asked:
        connection.execute("select embed.query(%s, of => 'worded')", [question])
    with reader(connection, url) as restricted:
        for who, place in (("owner", url), ("role under a policy", restricted)):
            with connect(place) as session:
                times(session, asked[:20])
                p50, p95 = p50_p95(times(session, asked))
            yield Measure(f"search, {who}, p50", p50, "ms", "<= 10")
            yield Measure(f"search, {who}, p95", p95, "ms", "<= 20")
    yield from matched(connection, asked, rows)


def main() -> None:
    """Fill both tables, wait for the indexes, ask, and print the table."""
    given = options(__doc__, rows=100_000, questions=200, model=TESTING_MODEL).parse_args()
    started = machine()
    memory = {"maintenance_work_mem": "512MB", "shared_buffers": "2GB"}
    with cluster(**memory) as server:
        url = database(server, "large_table", given.model)
        with connect(url) as connection, worker(url, **WORKER) as running:
            warm_up(connection, running)
            plain = fill(connection, running, "plain", given.rows, words=False)
            connection.execute("drop table plain cascade")
            worded = fill(connection, running, "worded", given.rows, words=True)
            begun = time.perf_counter()
            wait_until(
                lambda: fetch_value(connection, INDEXED),
                check=running.check,
                pause=1.0,
                timeout=INDEX_LONGEST,
            )
            built = time.perf_counter() - begun
            connection.execute("vacuum analyze worded_embedding")
            words = float(fetch_value(connection, WORDS)) / given.rows
            # A model takes longer than the words; the testing encoder takes no time.
            target = "" if given.model == TESTING_MODEL else ">= 0.9"
            measures = [
                Measure("rows", given.rows),
                Measure("rows/s without words", plain, "1/s"),
                Measure("rows/s with words : without", worded / plain, "", target),
                Measure("until both indexes were built", built, "s"),
                Measure("bytes of words a row", words, "B", "<= 600"),
                *measure(connection, url, given.rows, given.questions),
            ]
    report("large_table", given, started, measures)


if __name__ == "__main__":
    main()
