"""``python -m tests.chaos --seconds 60 --workers 3 --writers 4 --seed 7``"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.program import new_server, run


def main() -> int:
    """Run on a server of its own; 0 when nothing was lost, wrong or left over."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--restarts", type=float, default=20.0, help="seconds between restarts of the server"
    )
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="embedworker-chaos-") as folder,
        new_server(Path(folder)) as server,
    ):
        outcome = run(
            server,
            Path(folder),
            seconds=chosen.seconds,
            workers=chosen.workers,
            writers=chosen.writers,
            seed=chosen.seed,
            restart_every=chosen.restarts,
        )
    print(outcome)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
