"""Texts and questions from which a tiny model learns in seconds."""

import random

__all__ = ["pairs", "shuffled"]

LETTERS = "abcdefghijkl"


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
