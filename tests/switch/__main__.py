"""``python -m tests.switch --writers 16 --rounds 50 --seconds 30``"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_run import main

from switch.program import run

FLAGS = {
    "writers": (16, "threads"),
    "rounds": (25, "cuts and ways back"),
    "seconds": (20.0, "of writing in each phase"),
    "seed": (7, "of the writes"),
}

if __name__ == "__main__":
    sys.exit(main(run, __doc__, FLAGS))
