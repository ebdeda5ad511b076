"""Words a dense model misses: exact names, numbers, rare terms, as a sparse vector for BM25.

Terms are the character bigrams of lower-cased runs of letters and digits, which needs no dictionary
and suits Korean, where PostgreSQL has no text-search configuration; a run of one character is its
own term. A passage's vector holds what BM25 makes of a term's frequency (Robertson and Zaragoza,
"The Probabilistic Relevance Framework: BM25 and Beyond", 2009; k1 = 1.2, b = 0.75), so that its
inner product with the question's idf weights is the BM25 score.
"""

import re
import zlib
from collections import Counter
from functools import lru_cache
from typing import Final

from pgvector import SparseVector

from worker.normalization import normalized

__all__ = ["DIMENSIONS", "LENGTH", "SCRIPTS", "length", "question_terms", "term_vector"]

K1: Final = 1.2
B: Final = 0.75

# The first places hold the share of each script, see term_vector, and the next the length; terms
# are hashed behind them. With 16 million places, 100,000 distinct bigrams put fewer than one in a
# hundred on a place in use.
SCRIPTS: Final = ("HANGUL", "LATIN")
LENGTH: Final = len(SCRIPTS)
DIMENSIONS: Final = 1 << 24
MOST_TERMS: Final = 15_000  # pgvector stores at most 16,000 values of a sparsevec

_RUN: Final = re.compile(r"[^\W_]+")
_LETTERS: Final = (
    re.compile("[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]+"),
    re.compile("[A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]+"),
)


def length(text: str) -> int:
    """Return the number of terms of a text, repetitions counted."""
    return sum(max(1, len(run) - 1) for run in _runs(text))


def term_vector(text: str, average_length: float) -> SparseVector:
    """Return a passage's vector: sparsevec of ``DIMENSIONS``.

    ``average_length`` is that of the passages of the source, in terms. The first places hold the
    shares of the scripts among the text's letters: a Korean passage shares no bigram with an
    English question, however well it answers it, and search must be able to tell. The place
    ``LENGTH`` holds the number of terms, from which the average is taken anew.
    """
    terms = _terms(text)
    counts = Counter(terms)
    norm = K1 * (1 - B + B * len(terms) / max(average_length, 1.0))
    weights: dict[int, float] = {}
    for term, count in counts.most_common(MOST_TERMS):
        place = _place(term)
        weights[place] = weights.get(place, 0.0) + count * (K1 + 1) / (count + norm)
    return SparseVector({**_shares(text), LENGTH: float(len(terms)), **weights}, DIMENSIONS)


def question_terms(text: str) -> tuple[list[int], list[float]]:
    """Return the places of a question's distinct terms, and the shares of the scripts.

    Places count from 1, as in the text form of a sparsevec; at most 15,000 of them.
    """
    places = sorted({_place(term) + 1 for term in _terms(text)})[:MOST_TERMS]
    shares = _shares(text)
    return places, [shares.get(number, 0.0) for number in range(len(SCRIPTS))]


def _runs(text: str) -> list[str]:
    return _RUN.findall(normalized("NFKC", text).lower())


def _terms(text: str) -> list[str]:
    return [run[at : at + 2] for run in _runs(text) for at in range(max(1, len(run) - 1))]


# A corpus has few distinct bigrams and many of each: looked up, one takes a third of the time.
@lru_cache(maxsize=1 << 17)
def _place(term: str) -> int:
    first = len(SCRIPTS) + 1
    return first + zlib.crc32(term.encode()) % (DIMENSIONS - first)


def _shares(text: str) -> dict[int, float]:
    counts = [sum(map(len, letters.findall(text))) for letters in _LETTERS]
    total = sum(counts)
    return {number: count / total for number, count in enumerate(counts) if count}
