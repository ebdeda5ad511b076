"""A short run; a long one by hand: ``python -m tests.snapshot --minutes 10``."""

from pathlib import Path

import pytest
from long_run import new_server

from snapshot.program import OPTIONS, run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run(server_folder: Path, tmp_path: Path) -> None:
    folder = server_folder / "snapshot"
    folder.mkdir()
    with new_server(folder, **OPTIONS) as server:
        outcome = run(server, tmp_path, minutes=0.25, rate=1000, workers=2, look=2.5)
    print(outcome)
    assert outcome.good, str(outcome)
