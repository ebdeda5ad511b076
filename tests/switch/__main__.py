"""``python -m tests.switch --writers 16 --rounds 50 --seconds 30``"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.program import new_server

from switch.program import run


def main() -> int:
    """Run on a server of its own; 0 when no question failed and no vector is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.switch", description=__doc__)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25, help="cuts and ways back")
    parser.add_argument("--seconds", type=float, default=20.0, help="of writing in each phase")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="embedworker-switch-") as folder,
        new_server(Path(folder)) as server,
    ):
        outcome = run(
            server,
            Path(folder),
            writers=chosen.writers,
            rounds=chosen.rounds,
            seconds=chosen.seconds,
            seed=chosen.seed,
        )
    print(outcome)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
