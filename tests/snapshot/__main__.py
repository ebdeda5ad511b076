"""``python -m tests.snapshot --minutes 10 --rate 300``"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from snapshot.program import new_server, run


def main() -> int:
    """Run on a server of its own; 0 when everything stayed bounded and recovered."""
    parser = argparse.ArgumentParser(prog="python -m tests.snapshot", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="the transaction stays open")
    parser.add_argument("--rate", type=float, default=300.0, help="rows changed a second")
    parser.add_argument("--rows", type=int, default=50_000, help="of the table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--look", type=float, default=10.0, help="seconds between looks")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="embedworker-snapshot-") as folder,
        new_server(Path(folder)) as server,
    ):
        outcome = run(
            server,
            Path(folder),
            held=60 * chosen.minutes,
            rate=chosen.rate,
            workers=chosen.workers,
            look=chosen.look,
            rows=chosen.rows,
        )
    print(outcome)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
