"""Every model of the catalogue from embed.enable to embed.search, with its prefixes and pooling.

The weights are random and small, in the architecture, width and window of the published model, and
lie where a downloaded model lies. What must come out is what sentence-transformers makes of them.
"""

import json
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fix_cli import embedworker
from fix_database import Connection
from fix_database import _new_database as new_database
from psycopg import sql
from sentence_transformers import SentenceTransformer
from tiny_models import COMMIT, save_model, save_reranker
from waiting import wait_until

from embedworker import settings
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import ModelCard, catalog
from embedworker.service.worker import Worker


class Published(NamedTuple):
    """What the model's own card says of it."""

    architecture: str
    dimensions: int
    window: int
    query: str
    passage: str
    pooling: str


E5 = ("query: ", "passage: ", "mean")
PLAIN = ("", "")
MODELS = {
    "dragonkue/multilingual-e5-small-ko-v2": Published("bert", 384, 512, *E5),
    "dragonkue/multilingual-e5-small-ko": Published("bert", 384, 512, *E5),
    "intfloat/multilingual-e5-small": Published("bert", 384, 512, *E5),
    "exp-models/dragonkue-KoEn-E5-Tiny": Published("bert", 384, 512, *E5),
    "intfloat/multilingual-e5-base": Published("xlm-roberta", 768, 512, *E5),
    "intfloat/multilingual-e5-large": Published("xlm-roberta", 1024, 512, *E5),
    "BAAI/bge-m3": Published("xlm-roberta", 1024, 8192, *PLAIN, "cls"),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Published(
        "xlm-roberta", 1024, 8192, "query: ", "", "cls"
    ),
    "ibm-granite/granite-embedding-278m-multilingual": Published(
        "xlm-roberta", 768, 512, *PLAIN, "cls"
    ),
    "ibm-granite/granite-embedding-107m-multilingual": Published(
        "xlm-roberta", 384, 512, *PLAIN, "cls"
    ),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Published(
        "bert", 384, 128, *PLAIN, "mean"
    ),
}
RERANKERS = ("dragonkue/bge-reranker-v2-m3-ko", "BAAI/bge-reranker-v2-m3")
QUESTION = "김치는 어떻게 보관하나요?"
LONG = " ".join(f"{number}번째 문장은 앞 문장과 다른 이야기입니다." for number in range(1, 13))
TEXTS = [
    "김치는 김치냉장고에 보관합니다.",
    "The last bus leaves at eleven.",
    "등산화 고르는 법",
    LONG,
]
EMBEDDED = 100.0  # seconds for eleven models to load and embed four texts each
# The largest 1 - cosine to a float32 run of the same network: with random weights bfloat16 costs up
# to 3.5e-3, a wrong prefix 6e-3 and more (see worker/embedworker/model/load.py).
SAME = {"float32": 1e-5, "bfloat16": 5e-3}


def table(model: str) -> sql.Identifier:
    return sql.Identifier(f"article {list(MODELS).index(model)}")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each model; models of one shape share their weights."""
    folder = tmp_path_factory.mktemp("published")

    @cache
    def saved(architecture: str, dimensions: int, window: int, pooling: str) -> Path:
        return save_model(
            folder / f"{architecture}-{dimensions}-{window}-{pooling}",
            architecture=architecture,
            dimensions=dimensions,
            max_tokens=window,
            pooling=pooling,
        )

    return {
        name: saved(model.architecture, model.dimensions, model.window, model.pooling)
        for name, model in MODELS.items()
    }


@pytest.fixture(scope="module")
def cache_folder(published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds all of them, and the rerankers, as if they had been downloaded."""
    folder = tmp_path_factory.mktemp("cache")
    reranker = save_reranker(tmp_path_factory.mktemp("reranker"))
    for name, weights in (published | dict.fromkeys(RERANKERS, reranker)).items():
        repository = folder / "hub" / f"models--{name.replace('/', '--')}"
        for inside in ("snapshots", "refs"):
            (repository / inside).mkdir(parents=True)
        (repository / "snapshots" / COMMIT).symlink_to(weights)
        (repository / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.fixture(
    scope="module",
    params=[
        ("torch", "float32"),
        pytest.param(("torch", "bfloat16"), marks=pytest.mark.slow),
        pytest.param(("openvino", "float32"), marks=pytest.mark.slow),
        pytest.param(("openvino", "bfloat16"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The engine and its number format. OpenVINO takes float32 where bfloat16 is not native."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def same(engine: tuple[str, str]) -> float:
    """The largest 1 - cosine that the worker's number format may cost."""
    return SAME[engine[1]]


@pytest.fixture(scope="module")
def embedded(
    engine: tuple[str, str], server: Cluster, template: str, cache_folder: Path
) -> Iterator[Connection]:
    """A table for each model, embedded by a worker that goes on answering questions."""
    chosen = settings.load(
        cache_dir=cache_folder,
        engine=engine[0],
        dtype=engine[1],
        device="cpu",
        threads=1,
        poll_max=0.2,
        index_after_rows=10**9,
    )
    with new_database(server, template) as url, connect(url) as connection:
        set_up_loopback(connection)
        for name in MODELS:
            connection.execute(
                sql.SQL("create table {} (id int primary key, body text)").format(table(name))
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    sql.SQL("insert into {} values (%s, %s)").format(table(name)),
                    list(enumerate(TEXTS)),
                )
            connection.execute(
                sql.SQL("select embed.enable({}, array['body'], model => {})").format(
                    sql.Literal(table(name).as_string()), sql.Literal(name)
                )
            )
        worker = Worker(url, chosen)
        running = threading.Thread(target=worker.run)
        running.start()
        try:
            wait_until(lambda: all_embedded(connection), EMBEDDED, "the vectors of every model")
            connection.execute("set embed.query_timeout = '1min'")
            yield connection
        finally:
            worker.stop()
            running.join(30)
        assert not running.is_alive()


def all_embedded(connection: Connection) -> bool:
    rows = connection.execute(
        "select source::text, embedded, error from embed.status where name <> 'document'"
    ).fetchall()
    assert [row for row in rows if row[2] is not None] == []
    return len(rows) == len(MODELS) and all(count == len(TEXTS) for _, count, _ in rows)


@cache
def plain(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@cache
def by_hand(folder: Path, model: Published, text: str) -> np.ndarray[Any, Any]:
    """The unit vector of a text, pooled here from what the last layer gives each token."""
    tokens = plain(folder).encode(text, output_value="token_embeddings", show_progress_bar=False)
    states = tokens.float().cpu().numpy()
    vector = states[0] if model.pooling == "cls" else states.mean(axis=0)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def passages(connection: Connection, name: str) -> list[tuple[int, str, np.ndarray[Any, Any]]]:
    """(id, text, vector) of each passage as it is stored."""
    vectors = sql.Identifier(f"{table(name)._obj[0]}_embedding")
    rows = connection.execute(
        sql.SQL(
            "select id, substr(s.body, v.passage_start + 1, v.passage_end - v.passage_start),"
            " v.embedding from {} v join {} s using (id) order by id, chunk"
        ).format(vectors, table(name))
    ).fetchall()
    return [(number, text, vector.to_numpy()) for number, text, vector in rows]


def test_these_are_the_models_of_the_catalogue() -> None:
    expected = {
        name: ModelCard(name, m.dimensions, m.window, m.query, m.passage, m.pooling)
        for name, m in MODELS.items()
    }
    known = {
        name: card
        for name, card in catalog().items()
        if card.kind == "embedding" and not name.startswith("bundled:")
    }
    assert known == expected
    others = {name: card for name, card in catalog().items() if card.kind == "reranker"}
    assert others == {name: ModelCard(name, max_tokens=512, kind="reranker") for name in RERANKERS}


@pytest.mark.parametrize("name", MODELS)
def test_rows_have_the_vectors_of_the_model(
    embedded: Connection, published: dict[str, Path], same: float, name: str
) -> None:
    model = MODELS[name]
    made = embedded.execute(
        "select f.model, f.dimensions, f.max_tokens, f.query_prefix, f.passage_prefix, f.pooling,"
        " f.revision from embed.source s join embed.source_state t on t.source = s.id"
        " join embed.fingerprint f on f.id = t.fingerprint where s.model = %s",
        [name],
    ).fetchall()
    assert made == [
        (name, model.dimensions, model.window, model.query, model.passage, model.pooling, COMMIT)
    ]
    stored = passages(embedded, name)
    for number, text, vector in stored:
        assert vector.shape == (model.dimensions,)
        expected = by_hand(published[name], model, model.passage + text)
        assert vector @ expected == pytest.approx(1, abs=same)
        if number < len(TEXTS) - 1:
            assert text == TEXTS[number]


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_split_where_the_window_ends(
    embedded: Connection, published: dict[str, Path], name: str
) -> None:
    model = MODELS[name]
    tokenizer = plain(published[name]).tokenizer
    parts = [text for number, text, _ in passages(embedded, name) if TEXTS[number] == LONG]
    sizes = [len(tokenizer(model.passage + part)["input_ids"]) for part in parts]
    assert max(sizes) <= model.window
    assert (len(parts) > 1) == (len(tokenizer(model.passage + LONG)["input_ids"]) > model.window)


@pytest.mark.parametrize("name", MODELS)
def test_a_question_has_its_prefix_and_finds_what_is_nearest(
    embedded: Connection, published: dict[str, Path], same: float, name: str
) -> None:
    model = MODELS[name]
    expected = by_hand(published[name], model, model.query + QUESTION)
    asked = embedded.execute("select embed.query(%s, %s)", [QUESTION, name]).fetchone()
    assert asked is not None
    assert asked[0].to_numpy() @ expected == pytest.approx(1, abs=same)
    best: dict[int, float] = {}
    for number, text, _ in passages(embedded, name):
        cosine = float(by_hand(published[name], model, model.passage + text) @ expected)
        best[number] = max(cosine, best.get(number, -1.0))
    found = embedded.execute(
        sql.SQL(
            'select (s."row").id, s.similarity from embed.search(null::{}, %s, lexical => 0) s'
        ).format(table(name)),
        [QUESTION],
    ).fetchall()
    assert [similarity for _, similarity in found] == sorted(dict(found).values(), reverse=True)
    assert dict(found) == pytest.approx(best, abs=2 * same)


def test_the_command_lists_them_and_says_what_is_here(cache_folder: Path, tmp_path: Path) -> None:
    def available(folder: Path) -> dict[str, str]:
        said = embedworker(
            "models",
            "--json",
            EMBEDWORKER_CACHE_DIR=str(folder),
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE="1",
        )
        assert said.returncode == 0, said.stderr
        return {row["name"]: row["available"] for row in json.loads(said.stdout)}

    with_all, with_none = available(cache_folder), available(tmp_path / "empty")
    assert with_all.keys() == with_none.keys() == catalog().keys()
    assert {with_all[name] for name in (*MODELS, *RERANKERS)} == {"cached"}
    assert {with_none[name] for name in (*MODELS, *RERANKERS)} == {"hub"}
