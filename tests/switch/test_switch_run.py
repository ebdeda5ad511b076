"""A short run; a long one by hand: ``python -m tests.switch --seconds 60 --rounds 50``."""

from pathlib import Path

import pytest
from long_run import new_server

from switch.program import run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run(server_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
    folder = server_folder / "switch"
    folder.mkdir()
    with new_server(folder) as server:
        outcome = run(server, tmp_path, writers=4, rounds=5, seconds=3, seed=7)
    print(outcome)
    assert outcome.good, str(outcome)
    assert outcome.questions > 20
