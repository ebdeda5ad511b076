"""What ``embedworker adapt`` gains, on questions that it never saw, and what other sets lose.

    python benchmarks/adapt.py sets/ko-strategyqa-facts sets/ko-strategyqa-pairs/pairs.jsonl \\
        --guards sets/belebele-ko-ko sets/gnome-help-ko --seeds 1 2 3

The documents of the first folder become a table. The file's questions become judgements. The
command trains with each seed. Then the folder's own questions, none of which is in the file, are
asked of the base and of the accepted model, in float32. All folders are in BEIR's format.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness import Measure, cluster, database, machine, options, report
from sentence_transformers import SentenceTransformer

from embedworker.adapt.material import read_beir_set
from embedworker.adapt.ranking import QuestionSet, Vectors, evaluated
from embedworker.database.connect import connect
from embedworker.model.bundled import bundled_folder
from embedworker.model.catalog import BUNDLED_MODEL
from embedworker.search.beir import read_beir
from embedworker.search.measures import PerQuestion, compared, means

TABLE = "document"
LEXICAL = 0.2  # the default weight of words
MEASURE = "nDCG@10"
MINUTES = 15


def fill(url: str, folder: Path, pairs: Path) -> None:
    """Make the table of the folder's documents; import the file's questions as judgements."""
    with connect(url) as connection:
        connection.execute(f"create table {TABLE} (id text primary key, body text)".encode())
        connection.execute("select embed.enable(%s, array['body'], chunk => false)", [TABLE])
        with connection.cursor().copy(f"copy {TABLE} from stdin".encode()) as copying:
            for row in read_beir(folder).documents.items():
                copying.write_row(row)
    for needed in (["run", "--once"], ["judgements", "import", TABLE, str(pairs)]):
        command(url, *needed)


def command(url: str, *arguments: str, **environment: str) -> bool:
    """Run embedworker; return whether it ended well. A refused model is no fault, but False."""
    program = [str(Path(sys.executable).with_name("embedworker")), *arguments]
    environment = {**os.environ, "DATABASE_URL": url, **environment}
    done = subprocess.run(program, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    print(done.stderr, file=sys.stderr)
    if done.returncode and "refused: " not in done.stderr:
        raise SystemExit(f"embedworker {arguments[0]} failed, see above")
    return done.returncode == 0


def ask(folder: Path, sets: Sequence[QuestionSet]) -> dict[str, tuple[PerQuestion, PerQuestion]]:
    """Return the measures of each set by this model: by meaning alone, and with words."""
    model = SentenceTransformer(
        str(folder), local_files_only=True, model_kwargs={"dtype": torch.float32}
    )

    def encode(questions: Sequence[str], texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        def vectors(prefix: str, some: Sequence[str]) -> Vectors:
            found = model.encode(
                [prefix + text for text in some], batch_size=16, normalize_embeddings=True
            )
            return np.asarray(found, np.float32)

        return vectors("query: ", questions), vectors("passage: ", texts)

    model.default_prompt_name = None
    return {one.name: evaluated(one, encode, LEXICAL) for one in sets}


def main() -> None:
    """Train with every seed and measure what was accepted."""
    parser = options(__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("pairs", type=Path, metavar="FILE")
    parser.add_argument("--guards", nargs="*", type=Path, default=[], metavar="DIR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N")
    given = parser.parse_args()
    started = machine()
    sets = [read_beir_set(folder) for folder in (given.folder, *given.guards)]
    base = ask(bundled_folder(), sets)
    measures = [
        Measure(f"{name}, base, {way}", means(values)[MEASURE])
        for name, found in base.items()
        for way, values in zip(("dense", "with words"), found, strict=True)
    ]
    with cluster() as server:
        url = database(server, "adapt", BUNDLED_MODEL)
        fill(url, given.folder, given.pairs)
        for seed in given.seeds:
            made = server.folder / f"model-{seed}"
            guards = [word for folder in given.guards for word in ("--guard", str(folder))]
            trained = ["adapt", TABLE, "--seed", str(seed), "--output", str(made), *guards]
            cache = str(server.folder / "cache")  # so that no earlier run is gone on with
            begun = time.perf_counter()
            accepted = command(url, *trained, EMBEDWORKER_CACHE_DIR=cache)
            minutes = (time.perf_counter() - begun) / 60
            measures.append(Measure(f"seed {seed}, accepted", float(accepted)))
            measures.append(Measure(f"seed {seed}, time", minutes, "min", f"<= {MINUTES}"))
            if not accepted:
                continue
            for name, found in ask(made, sets).items():
                for way, after, before in zip(
                    ("dense", "with words"), found, base[name], strict=True
                ):
                    gain = compared(after, before)[MEASURE]
                    measures.append(
                        Measure(
                            f"seed {seed}, {name}, {way} (± {gain.standard_error:.4f})",
                            gain.difference,
                        )
                    )
    report("adapt", given, started, measures)


if __name__ == "__main__":
    main()
