"""``python -m tests.fleet --rows 100000 --workers 3 --seed 7``"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_run import main

from fleet.program import run

FLAGS = {
    "rows": (100_000, "of the backfill"),
    "workers": (3, "placed by Ray"),
    "machines": (3, "raylets on this machine, beside the head"),
    "kills": (15, "at random, at least one of each kind"),
    "seed": (7, "of the kills"),
}

if __name__ == "__main__":
    sys.exit(main(run, __doc__, FLAGS))
