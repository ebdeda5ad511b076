"""An encoder for the tests of an application: two texts are alike as far as they share words.

It needs no model and no download. The vector of a text is the sum of the unit vectors of its
different words, normalised. So the cosine of two texts is near n / sqrt(a * b), where n of the
a and b words are shared; the vectors of different words have a cosine of 0 ± 0.05.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import numpy as np

from embedworker.errors import ConfigurationError
from embedworker.model.catalog import WORDS_MODEL
from embedworker.model.encoder import Tokens, Vectors
from embedworker.model.testing import DIMENSIONS, HashEncoder, hash_vector

__all__ = ["WordsEncoder", "alike", "words_vector"]

_WORD: Final = re.compile(r"\w+")
_alike: dict[str, str] = {}


def alike(*phrases: str) -> None:
    """Declare that phrases mean the same, in this process: ``alike("refund", "money back")``.

    Declare it before the texts are written: vectors that exist already do not change.

    Raises:
        ConfigurationError: fewer than two phrases, or one without a word.
    """
    words = [" ".join(_split(phrase)) for phrase in phrases]
    if len(words) < 2 or "" in words:
        raise ConfigurationError(
            f"alike takes two phrases or more, each with a word; it was given {phrases!r}"
        )
    # One token stands for all of them. Those declared earlier keep theirs.
    token = next((_alike[phrase] for phrase in words if phrase in _alike), f"={words[0]}")
    former = {_alike[phrase] for phrase in words if phrase in _alike}
    for phrase in [*words, *(known for known, its in _alike.items() if its in former)]:
        _alike[phrase] = token


def words_vector(text: str) -> Vectors:
    """Return the unit vector of a text without its prefix: float32 of shape (384,).

    A text without a word has the vector of the empty word, because a vector of zeros has no cosine.
    """
    vectors = np.stack([_word_vector(word) for word in sorted(_tokens(text))])
    total = vectors.sum(axis=0, dtype=np.float64)
    return np.asarray(total / np.linalg.norm(total), np.float32)


class WordsEncoder(HashEncoder):
    """The interface of :class:`embedworker.model.Encoder` over :func:`words_vector`."""

    name = WORDS_MODEL
    meaning = "compares words and is for tests only"

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        texts = [self._without_prefix("".join(map(chr, tokens.ids))) for tokens in batch]
        return np.array([words_vector(t) for t in texts], np.float32).reshape(-1, DIMENSIONS)

    def _without_prefix(self, text: str) -> str:
        for prefix in (self.fingerprint.query_prefix, self.fingerprint.passage_prefix):
            if prefix and text.startswith(prefix):
                return text.removeprefix(prefix)
        return text


@functools.lru_cache(maxsize=10_000)
def _word_vector(word: str) -> Vectors:
    return hash_vector(word)


def _split(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def _tokens(text: str) -> set[str]:
    said = f" {' '.join(_split(text))} "
    for phrase, token in sorted(_alike.items(), key=lambda pair: -len(pair[0])):
        said = said.replace(f" {phrase} ", f" {token.replace(' ', '_')} ")
    return set(said.split()) or {""}
