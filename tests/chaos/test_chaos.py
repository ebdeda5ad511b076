"""A short run; a long one by hand: ``python -m tests.chaos --seconds 600``."""

from pathlib import Path

import pytest
from long_run import new_server

from chaos.program import run


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run(server_folder: Path, tmp_path: Path) -> None:
    folder = server_folder / "chaos"
    folder.mkdir()
    with new_server(folder) as server:
        outcome = run(server, tmp_path, seconds=25, workers=3, writers=4, seed=7, restarts=8)
    print(outcome)
    assert outcome.good, str(outcome)
    assert outcome.blows["server restarts"] >= 1
