"""A short run; a long one by hand: ``python -m tests.fleet --rows 100000``."""

from pathlib import Path

import pytest
from long_run import new_server

from fleet.program import run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_run(server_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    folder = server_folder / "fleet"
    folder.mkdir()
    with new_server(folder) as server:
        outcome = run(server, tmp_path, rows=12_000, workers=3, machines=2, kills=4, seed=7)
    print(outcome)
    assert outcome.good, str(outcome)
    assert set(outcome.kills) == {"worker", "machine", "command"}
