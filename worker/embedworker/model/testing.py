"""A deterministic encoder without a model, for tests of the queue.

Refused unless ``EMBEDWORKER_ALLOW_TESTING_MODEL=1``: its vectors carry no meaning. A marker inside
a text makes it misbehave on purpose:

    <<fail>>    ModelError
    <<nan>>     a vector of NaN for it
    <<oom>>     MemoryError while the batch holds more than one text
    <<crash>>   the process ends at once with code 137, as by ``kill -9``
    <<hang>>    waits until the file named by ``EMBEDWORKER_TESTING_GATE`` exists

``EMBEDWORKER_TESTING_DELAY`` is the time one batch takes, in seconds. ``EMBEDWORKER_TESTING_RATE``
is how many texts it takes a second, as a device would: the interpreter is free meanwhile.
"""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from embedworker.errors import ConfigurationError, ModelError
from embedworker.model.batches import CPU_TOKEN_BUDGET, token_batches
from embedworker.model.catalog import SMALL_MODEL, TESTING_MODEL
from embedworker.model.encoder import Tokens, Vectors, prefixed
from embedworker.model.fingerprint import Fingerprint

__all__ = ["HashEncoder", "SmallEncoder", "hash_vector"]

DIMENSIONS: Final = 384
MAX_TOKENS: Final = 8192  # one character is one token
GATE_POLL_SECONDS: Final = 0.01


def hash_vector(text: str, dimensions: int = DIMENSIONS) -> Vectors:
    """Return the unit vector of a text, prefix included: float32 of shape (dimensions,)."""
    digest = hashlib.shake_256(text.encode("utf-8")).digest(2 * dimensions)
    vector = np.frombuffer(digest, dtype="<i2").astype(np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class HashEncoder:
    """The interface of :class:`embedworker.model.Encoder` over :func:`hash_vector`."""

    dimensions: int = DIMENSIONS
    max_tokens: Final = MAX_TOKENS
    token_budget: Final = CPU_TOKEN_BUDGET
    tokenizer: Final = None
    name: str = TESTING_MODEL
    meaning: str = "makes vectors without meaning and is for tests only"

    def __init__(self, query_prefix: str = "query: ", passage_prefix: str = "passage: ") -> None:
        if os.environ.get("EMBEDWORKER_ALLOW_TESTING_MODEL") != "1":
            raise ConfigurationError(
                f"the model {self.name!r} {self.meaning};"
                " name a real model, or set EMBEDWORKER_ALLOW_TESTING_MODEL=1 in a test"
            )
        self.fingerprint = Fingerprint(
            model=self.name,
            revision="1",
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            pooling="none",
            dimensions=self.dimensions,
            max_tokens=MAX_TOKENS,
        )
        self.notes: Mapping[str, str | int] = {
            "engine": "hash",
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.fingerprint.digest[:12]}>"

    @property
    def overhead(self) -> int:
        return len(self.fingerprint.passage_prefix)

    def tokenize_passages(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.passage_prefix, texts)

    def tokenize_queries(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.query_prefix, texts)

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        texts = ["".join(map(chr, tokens.ids)) for tokens in batch]
        _misbehave(texts)
        vectors = np.array([hash_vector(t, self.dimensions) for t in texts], np.float32)
        vectors = vectors.reshape(-1, self.dimensions)
        vectors[["<<nan>>" in text for text in texts]] = np.nan
        return vectors

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_passages(texts))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_queries(texts))

    def _tokenize(self, prefix: str, texts: Sequence[str]) -> list[Tokens]:
        whole = [prefixed(prefix, text) for text in texts]
        return [Tokens(tuple(map(ord, text[:MAX_TOKENS])), len(text)) for text in whole]

    def _encode(self, tokens: Sequence[Tokens]) -> Vectors:
        vectors = np.empty((len(tokens), self.dimensions), np.float32)
        for batch in token_batches([len(t) for t in tokens], self.token_budget):
            vectors[batch] = self.encode_tokens([tokens[i] for i in batch])
        return vectors


class SmallEncoder(HashEncoder):
    """Another space, of 64 dimensions."""

    name = SMALL_MODEL
    dimensions = 64


def _misbehave(texts: Sequence[str]) -> None:
    rate = float(os.environ.get("EMBEDWORKER_TESTING_RATE", "inf"))
    time.sleep(float(os.environ.get("EMBEDWORKER_TESTING_DELAY", "0")) + len(texts) / rate)
    for index, text in enumerate(texts):
        if "<<crash>>" in text:
            os._exit(137)
        if "<<hang>>" in text:
            _wait_for_gate()
        if "<<fail>>" in text:
            raise ModelError(f"the text at index {index} of the batch holds the marker <<fail>>")
        if "<<oom>>" in text and len(texts) > 1:
            raise MemoryError(f"a batch of {len(texts)} texts holds the marker <<oom>>")


def _wait_for_gate() -> None:
    if "EMBEDWORKER_TESTING_GATE" not in os.environ:
        raise ConfigurationError("<<hang>> needs EMBEDWORKER_TESTING_GATE, the name of a file")
    gate = Path(os.environ["EMBEDWORKER_TESTING_GATE"])
    while not gate.exists():
        time.sleep(GATE_POLL_SECONDS)
