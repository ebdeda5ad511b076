"""The one real model that needs no hub, and a tiny random one."""

from pathlib import Path

import pytest

from embedworker.model import BUNDLED_MODEL, Encoder, open_encoder
from embedworker.model.bundled import bundled_folder


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The folder of the bundled model, in the user's cache so that it is unpacked once ever."""
    return bundled_folder()


@pytest.fixture(scope="session")
def bundled_encoder(bundled_model: Path) -> Encoder:
    assert bundled_model.is_dir()
    return open_encoder(BUNDLED_MODEL, dtype="float32")


def number_format() -> str:
    """What a worker would choose here by timing both, which takes six seconds for each model."""
    from embedworker.model.cpu import has_bfloat16  # imports torch

    return "bfloat16" if has_bfloat16() else "float32"


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A folder of 32 dimensions, 64 tokens, mean pooling."""
    from tiny_models import save_model  # imports torch, which most tests do not need

    return save_model(tmp_path / "tiny")
