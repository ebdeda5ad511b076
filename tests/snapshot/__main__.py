"""``python -m tests.snapshot --minutes 10 --rate 300``"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_run import main

from snapshot.program import OPTIONS, run

FLAGS = {
    "minutes": (10.0, "the transaction stays open"),
    "rate": (300.0, "rows changed a second"),
    "rows": (50_000, "of the table"),
    "workers": (2, "processes"),
    "look": (10.0, "seconds between looks"),
}

if __name__ == "__main__":
    sys.exit(main(run, __doc__, FLAGS, **OPTIONS))
