"""Measures of a ranking, by ir-measures over pytrec_eval; nothing is computed by a formula of ours.

Ties are broken as trec_eval does, by score and then by id, descending: that is why rankings are
passed with their scores. Only the provider ``pytrec_eval`` is asked: for the same ties, others put
the documents in the order of the ranking (RR@10 of one tied pair: 0.5 here, 1.0 there).
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import ir_measures
from ir_measures import RR, Measure, R, nDCG

__all__ = [
    "DEEP",
    "Difference",
    "PerQuestion",
    "Relevance",
    "Run",
    "compared",
    "means",
    "measured",
    "standard_errors",
]

DEEP = 100  # rows of the longer ranking, for recall
CUTOFFS = (1, 3, 5, 10)

Relevance = Mapping[str, Mapping[str, int]]
"""By question, the grade of each judged document; above 0 is relevant."""

Run = Mapping[str, Mapping[str, float]]
"""By question, the score of each document that was found."""

PerQuestion = dict[str, dict[str, float]]
"""By measure, the value of each judged question; 0 where nothing was found."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of the differences of two settings, question by question, and its standard error."""

    difference: float
    standard_error: float


def measured(relevance: Relevance, run: Run, deep: Run, k: int) -> PerQuestion:
    """Measure the first ``k`` rows of ``run`` and, for recall, the first 100 of ``deep``, if any.

    nDCG is of linear gain and log2 discount, as trec_eval and the Korean leaderboards have it.
    """
    ranked: dict[Measure, str] = {nDCG @ cut: f"nDCG@{cut}" for cut in _cutoffs(k)}
    ranked[R @ k] = f"recall@{k}"
    # Over rankings of k rows the reciprocal rank is the one cut at k.
    ranked[RR] = f"MRR@{k}"
    values = _values(relevance, run, ranked)
    if k < DEEP and deep:
        values |= _values(relevance, deep, {R @ DEEP: f"recall@{DEEP}"})
    return values


def means(values: PerQuestion) -> dict[str, float]:
    """Return the mean of each measure over the questions."""
    return {name: statistics.fmean(each.values()) for name, each in values.items()}


def standard_errors(values: PerQuestion) -> dict[str, float]:
    """Return the standard error of each mean; 0 for one question."""
    return {
        name: statistics.stdev(each.values()) / len(each) ** 0.5 if len(each) > 1 else 0.0
        for name, each in values.items()
    }


def compared(values: PerQuestion, against: PerQuestion) -> dict[str, Difference]:
    """By measure, how much higher ``values`` are than ``against``, over the same questions."""
    found = {}
    for name in values.keys() & against.keys():
        base = against[name]
        differences = [value - base[question] for question, value in values[name].items()]
        found[name] = Difference(
            statistics.fmean(differences),
            statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0,
        )
    return {name: found[name] for name in values if name in found}


def _cutoffs(k: int) -> list[int]:
    return sorted({*(cut for cut in CUTOFFS if cut < k), k})


def _values(relevance: Relevance, run: Run, measures: dict[Measure, str]) -> PerQuestion:
    values: PerQuestion = {name: {} for name in measures.values()}
    evaluator = ir_measures.pytrec_eval.evaluator(list(measures), relevance)
    for metric in evaluator.iter_calc(run):
        values[measures[metric.measure]][metric.query_id] = metric.value
    return values
