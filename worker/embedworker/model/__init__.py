"""Embedding models: which are known, how one is loaded, how texts become vectors.

The catalogue needs no extra. What encodes is imported when it is first named, because it needs
numpy; :func:`open_encoder` imports torch.
"""

from typing import TYPE_CHECKING, Any

from embedworker.model.catalog import (
    BUNDLED_MODEL,
    DEFAULT_MODEL,
    TESTING_MODEL,
    ModelCard,
    catalog,
)
from embedworker.model.fingerprint import Fingerprint

if TYPE_CHECKING:
    from embedworker.model.encoder import Encoder, Tokens, Vectors
    from embedworker.model.factory import open_encoder

__all__ = [
    "BUNDLED_MODEL",
    "DEFAULT_MODEL",
    "TESTING_MODEL",
    "Encoder",
    "Fingerprint",
    "ModelCard",
    "Tokens",
    "Vectors",
    "catalog",
    "open_encoder",
]

_PLACES = {
    "Encoder": "embedworker.model.encoder",
    "Tokens": "embedworker.model.encoder",
    "Vectors": "embedworker.model.encoder",
    "open_encoder": "embedworker.model.factory",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
