"""A question's vector from inside SQL: alone, while a backfill runs, and asked again.

    python benchmarks/questions.py --json questions.json

The baseline of the overhead is the same question through an encoder in the benchmark's own warm
process, on one thread as in the worker; a block of questions is encoded, then asked, since the two
processes take the processor's cache from each other. Once one after the other, and once at random
times, as people ask: the processor has slept in between, and every process of the way wakes up. An
empty statement says what a round trip costs: a question needs four, its own, the loopback's and
two of the worker's. The baseline of the latency under a backfill is the idle one; that of the bulk
speed is the same backfill while nobody asks, by turns. Bulk speed counts the tokens of the vectors
that were committed in an interval. What it can keep at most is what the questions' own time at the
model leaves of the processors: how much that is depends on how many are asked.
"""

import random
import time
from collections import defaultdict

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
    turns,
    wait_until,
    warm_up,
    worker,
)
from texts import questions, texts

from embedworker.database.connect import connect
from embedworker.model import open_encoder
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.model.cpu import cpu_quota
from embedworker.model.encoder import Encoder

BETWEEN = 0.15  # seconds between two questions, on average
BLOCK = 10  # questions that are encoded, then asked
TIGHT, SPACED = "one after the other", "at random times"
WARM = 5  # times that a question is asked in a row after that
ASK = "select embed.query(%s) is null"  # the vector's way to the client as text is not counted


def pause(kind: str, chance: random.Random) -> None:
    """Wait for the next question."""
    if kind == SPACED:
        time.sleep(chance.expovariate(1 / BETWEEN))


def ask(connection: Connection, question: str) -> float:
    """The milliseconds that a question takes."""
    begun = time.perf_counter()
    fetch_value(connection, ASK, [question])
    return 1000 * (time.perf_counter() - begun)


def encode(encoder: Encoder, question: str) -> float:
    """The milliseconds that the model takes for it."""
    begun = time.perf_counter()
    encoder.encode_queries([question])
    return 1000 * (time.perf_counter() - begun)


def empty(connection: Connection) -> float:
    """The milliseconds that a statement takes that asks for nothing."""
    begun = time.perf_counter()
    fetch_value(connection, "select 1")
    return 1000 * (time.perf_counter() - begun)


def main() -> None:
    """Measure idle, under load and cached, and print the table."""
    given = options(
        __doc__,
        questions=150,
        rounds=3,
        seconds=20.0,
        rows=20000,
        model=BUNDLED_MODEL,
        engine="torch",
        seed=2,
    ).parse_args()
    started = machine()
    chance = random.Random(given.seed)
    stock = iter(questions(1_000_000 if given.rows > 1000 else 5000, given.seed))
    encoder = open_encoder(
        given.model,
        query_prefix="query: ",
        passage_prefix="passage: ",
        engine=given.engine,
        threads=1,
    )
    for question in questions(10, 9):
        encoder.encode_queries([question])
    with cluster() as server:
        url = database(server, "questions", given.model)
        with (
            connect(url) as connection,
            connect(url) as watching,
            worker(url, engine=given.engine) as running,
        ):
            warm_up(connection, running)
            times: defaultdict[str, list[float]] = defaultdict(list)
            for kind in (TIGHT, SPACED):
                asked = [next(stock) for _ in range(given.questions)]
                blocks = [asked[at : at + BLOCK] for at in range(0, len(asked), BLOCK)]
                for number, what in turns(["model", "asked"], len(blocks)):
                    for question in blocks[number]:
                        pause(kind, chance)
                        if what == "model":
                            times[f"model {kind}"].append(encode(encoder, question))
                            pause(kind, chance)
                            times[f"empty {kind}"].append(empty(connection))
                            continue
                        times[f"asked {kind}"].append(ask(connection, question))
                        if kind == SPACED:
                            times["again"].append(ask(connection, question))
                            times["warm"] += [ask(connection, question) for _ in range(WARM)]

            contents = texts(given.rows, given.seed)
            tokens = [len(made) for made in encoder.tokenize_passages(contents)]
            watching.execute("create table article (id integer primary key, content text)")
            with watching.cursor().copy("copy article (id, content) from stdin") as copy:
                for row in enumerate(contents):
                    copy.write_row(row)
            watching.execute("select embed.enable('article', array['content'])")
            wait_until(
                lambda: fetch_value(watching, "select count(*) from article_embedding") > 0,
                check=running.check,
                pause=0.1,
            )
            busy: list[float] = []
            intervals = []
            for _, asking in turns([False, True], given.rounds):
                begun = fetch_value(watching, "select clock_timestamp()")
                until = time.monotonic() + given.seconds
                while time.monotonic() < until:
                    time.sleep(chance.expovariate(1 / BETWEEN))
                    if asking:
                        busy.append(ask(connection, next(stock)))
                intervals.append((asking, begun, fetch_value(watching, "select clock_timestamp()")))
            done = watching.execute("select id, embedded_at from article_embedding").fetchall()
            if len({key for key, _ in done}) == given.rows:
                raise SystemExit("the backfill ended too soon; give more --rows")
    speed: dict[bool, list[float]] = {False: [], True: []}
    for asking, begun, ended in intervals:
        some = sum(tokens[key] for key, at in done if begun <= at < ended)
        speed[asking].append(some / (ended - begun).total_seconds())
    bulk = {asking: sum(rates) / len(rates) for asking, rates in speed.items()}
    times["busy"] = busy
    own = len(busy) * p50_p95(times[f"model {SPACED}"])[0] / 1000
    left = 1 - own / (given.seconds * given.rounds * cpu_quota())
    middle, late = (
        {what: p50_p95(found)[place] for what, found in times.items()} for place in (0, 1)
    )
    measures = []
    for kind in (TIGHT, SPACED):
        pairs = zip(times[f"asked {kind}"], times[f"model {kind}"], strict=True)
        overhead = p50_p95([asked - made for asked, made in pairs])[0]
        measures += [
            Measure(f"the model alone, {kind}, p50", middle[f"model {kind}"], "ms"),
            Measure(f"the model alone, {kind}, p95", late[f"model {kind}"], "ms"),
            Measure(f"an empty statement, {kind}, p50", middle[f"empty {kind}"], "ms"),
            Measure(f"embed.query, {kind}, p50", middle[f"asked {kind}"], "ms"),
            Measure(f"embed.query, {kind}, p95", late[f"asked {kind}"], "ms"),
            Measure(f"beyond the model, {kind}, p50 of the differences", overhead, "ms", "<= 3"),
        ]
    measures += [
        Measure("asked again after the answer, p50", middle["again"], "ms", "<= 0.5"),
        Measure("asked again after the answer, p95", late["again"], "ms"),
        Measure("asked again and again, p50", middle["warm"], "ms", "<= 0.5"),
        Measure("asked again and again, p95", late["warm"], "ms"),
        Measure("embed.query under a backfill, p50", middle["busy"], "ms"),
        Measure("embed.query under a backfill, p95", late["busy"], "ms"),
        Measure("p95 under a backfill : idle", late["busy"] / late[f"asked {SPACED}"], "x", "<= 2"),
        Measure("backfill, nobody asks", bulk[False], "tokens/s"),
        Measure(f"backfill, {len(busy)} questions", bulk[True], "tokens/s"),
        Measure("speed that the backfill keeps", bulk[True] / bulk[False], "x", ">= 0.9"),
        Measure("what the questions' time at the model leaves", left, "x"),
    ]
    report(
        "questions",
        given,
        started,
        measures,
        times=times,
        bulk=[speed[False], speed[True]],
    )


if __name__ == "__main__":
    main()
