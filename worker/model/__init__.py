"""Embedding models: which are known, how one is loaded, how texts become vectors.

Importing this package does not import torch; :func:`open_encoder` does.
"""

from worker.model.catalog import (
    BUNDLED_MODEL,
    DEFAULT_MODEL,
    TESTING_MODEL,
    ModelCard,
    catalog,
)
from worker.model.encoder import Encoder, Tokens, Vectors
from worker.model.factory import open_encoder
from worker.model.fingerprint import Fingerprint

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
