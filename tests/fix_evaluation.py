"""The retrieval sets of EMBEDWORKER_EVAL_DATA, folders in BEIR's format; not in this repository."""

import os
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("EMBEDWORKER_EVAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def data_set(name: str) -> Any:
    """A parameter of a test: the folder; loudly skipped where it is not there."""
    return _parameter(DATA / name)


def data_sets() -> list[Any]:
    """All the folders there are; without any, one that is skipped loudly."""
    folders = sorted(file.parent for file in DATA.glob("*/corpus.jsonl"))
    return [_parameter(folder) for folder in folders or [DATA]]


def _parameter(folder: Path) -> Any:
    missing = pytest.mark.skipif(
        not (folder / "corpus.jsonl").is_file(),
        reason="THE RETRIEVAL SETS ARE NOT HERE, SO QUALITY IS NOT TESTED: expected a folder in "
        f"BEIR's format in {folder}; name another place in EMBEDWORKER_EVAL_DATA",
    )
    return pytest.param(folder, id=folder.name, marks=missing)
