"""Texts and questions from which a tiny model learns in seconds."""

import random

__all__ = ["PROGRAM", "pairs", "shuffled"]

LETTERS = "abcdefghijkl"
# A tiny random model learns nothing at the rate that is right for a real one.
PROGRAM = """
from functools import partial
from embedworker.adapt import training
training.Recipe = partial(training.Recipe, rate=1e-2, batch=128, tokens=32)
from embedworker.cli.app import main
main()
"""


def pairs(texts: int, each: int) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Texts in capitals, and questions that are the same in small letters and a number."""
    drawn = random.Random(0)
    words = ["".join(drawn.sample(LETTERS, 6)) for _ in range(texts)]
    questions = [(f"{word} {n}", str(at)) for at, word in enumerate(words) for n in range(each)]
    return {str(at): word.upper() for at, word in enumerate(words)}, {
        question: {key: 1} for question, key in questions
    }


def shuffled(relevance: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    grades = list(relevance.values())
    random.Random(1).shuffle(grades)
    return dict(zip(relevance, grades, strict=True))
