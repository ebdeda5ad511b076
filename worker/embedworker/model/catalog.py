"""The models this package knows, read from ``catalog.toml``."""

import functools
import tomllib
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from struct import unpack
from types import MappingProxyType
from typing import Final, Literal

__all__ = [
    "BUNDLED_MODEL",
    "DEFAULT_MODEL",
    "DEFAULT_RERANKER",
    "SHARE",
    "SMALL_MODEL",
    "TESTING_MODEL",
    "TESTING_MODELS",
    "WORDS_MODEL",
    "ModelCard",
    "ModelKind",
    "catalog",
    "korean_questions",
]

ModelKind = Literal["embedding", "reranker"]

DEFAULT_MODEL: Final = "dragonkue/multilingual-e5-small-ko-v2"
DEFAULT_RERANKER: Final = "dragonkue/bge-reranker-v2-m3-ko"
BUNDLED_MODEL: Final = "bundled:multilingual-e5-small"
TESTING_MODEL: Final = "testing:hash"
WORDS_MODEL: Final = "testing:words"
SMALL_MODEL: Final = "testing:small"
SHARE: Final = 0.2  # of the mean of questions; measured in sql/functions/018_models.sql
TESTING_MODELS: Final = (TESTING_MODEL, WORDS_MODEL, SMALL_MODEL)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What must be known of a model to get the vectors it was trained to give.

    ``None`` for ``dimensions``, ``max_tokens`` or ``pooling`` means "as the model's own files say"
    and is not checked; the prefixes have no such value because no file says them reliably.
    """

    name: str
    dimensions: int | None = None
    max_tokens: int | None = None
    query_prefix: str = ""
    passage_prefix: str = ""
    pooling: str | None = None
    kind: ModelKind = "embedding"
    korean_mean: str | None = None
    """mean vector of ``korean_questions``: little-endian float16 in Base64; None: not measured"""

    @property
    def question_offset(self) -> list[float] | None:
        """What ``embed.search`` subtracts from a Korean question: ``SHARE`` of the mean."""
        if self.korean_mean is None:
            return None
        mean = b64decode(self.korean_mean)
        return [SHARE * value for value in unpack(f"<{len(mean) // 2}e", mean)]


def korean_questions() -> list[str]:
    """Return questions of many subjects, whose vectors show what a model's questions share."""
    return files(__package__).joinpath("korean_questions.txt").read_text("utf-8").splitlines()


@functools.cache
def catalog() -> Mapping[str, ModelCard]:
    """All known models by name, in the order of the file."""
    rows = tomllib.loads(files(__package__).joinpath("catalog.toml").read_text("utf-8"))["model"]
    return MappingProxyType({row["name"]: ModelCard(**row) for row in rows})
