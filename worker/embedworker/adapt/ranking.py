"""Rankings of texts in memory, by meaning and words, as ``embed.search`` ranks passages.

A candidate has no vectors in the database. Here its vectors are compared in memory, the best 100
texts are ranked again by their words, and nDCG@10 is measured as ``embedworker eval`` does. What
``embed.search`` does for codes and for texts in another script than the question's is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embedworker.model.lexical import DIMENSIONS, FIRST, WORD, length, question_terms, term_vector
from embedworker.search.measures import PerQuestion, measured

__all__ = ["Encode", "QuestionSet", "evaluated"]

K: Final = 10
LOOKED_AT: Final = 100  # texts nearest in meaning, which words rank again
MOST: Final = 2.2  # of a term in BM25: k1 + 1
PLACE: Final = (1 << 24) - 1

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str], Sequence[str]], tuple[Vectors, Vectors]]
"""From questions and texts, without prefixes, to their vectors of length 1."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions about texts. ``relevance`` has grades by question and number of the text."""

    name: str
    texts: Sequence[str]
    relevance: Mapping[str, Mapping[int, int]]

    @cached_property
    def words(self) -> npt.NDArray[np.float32]:
        """BM25 over its most, float32 of shape (questions, texts); the same for every model."""
        average = float(np.mean([length(text) for text in self.texts]))
        vectors = [term_vector(text, average) for text in self.texts]
        rows = np.repeat(np.arange(len(vectors)), [len(one.indices()) for one in vectors])
        places = np.concatenate([np.array(one.indices(), np.int64) for one in vectors])
        values = np.concatenate([np.array(one.values(), np.float32) for one in vectors])
        terms = places >= FIRST
        matrix = csr_matrix(
            (values[terms], (rows[terms], places[terms])), (len(vectors), DIMENSIONS), np.float32
        ).tocsc()
        found = np.zeros((len(self.relevance), len(vectors)), np.float32)
        for number, question in enumerate(self.relevance):
            asked = [(term & PLACE) - 1 for term in question_terms(question)[0] if term > WORD]
            if not asked:
                continue
            columns = matrix[:, asked]
            frequency = np.diff(columns.indptr)
            idf = np.log1p((len(vectors) - frequency + 0.5) / (frequency + 0.5))
            found[number] = columns @ (idf / (MOST * idf.sum())).astype(np.float32)
        return found


def evaluated(asked: QuestionSet, encode: Encode, weight: float) -> tuple[PerQuestion, PerQuestion]:
    """Return the measures by meaning alone, and those with words of this ``weight`` added."""
    questions, texts = encode(list(asked.relevance), asked.texts)
    cosines = questions @ texts.T
    relevance = {
        question: {str(number): grade for number, grade in grades.items()}
        for question, grades in asked.relevance.items()
    }
    runs: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for row, question in enumerate(asked.relevance):
        best = np.argsort(-cosines[row], kind="stable")[:LOOKED_AT]
        rescored = cosines[row] + weight * asked.words[row]
        for run, scores in zip(runs, (cosines[row], rescored), strict=True):
            order = best[np.argsort(-scores[best], kind="stable")][:K]
            run[question] = {str(number): float(scores[number]) for number in order}
    dense, with_words = (measured(relevance, run, {}, K) for run in runs)
    return dense, with_words
