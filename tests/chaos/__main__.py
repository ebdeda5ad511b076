"""``python -m tests.chaos --seconds 60 --workers 3 --writers 4 --seed 7``"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from long_run import main

from chaos.program import run

FLAGS = {
    "seconds": (60.0, "of blows"),
    "workers": (3, "processes"),
    "writers": (4, "threads"),
    "seed": (7, "of the blows and the writes"),
    "restarts": (20.0, "seconds between restarts of the server"),
}

if __name__ == "__main__":
    sys.exit(main(run, __doc__, FLAGS))
