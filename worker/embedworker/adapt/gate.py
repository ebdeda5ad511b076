"""Whether a candidate may replace the model: by figures alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from embedworker.search.measures import Difference

__all__ = ["ERRORS", "LOSS", "Verdict", "decide"]

ERRORS: Final = 2.0  # standard errors that the gain on held-out questions must be above
LOSS: Final = 0.005  # nDCG@10 that a guard set may lose


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reasons`` is empty where the candidate is accepted."""

    reasons: list[str]

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against the candidate."""
        return not self.reasons


def decide(gain: Difference, guards: Mapping[str, Difference]) -> Verdict:
    """Compare the gain on held-out questions with its error, and each guard set with the limit.

    All differences are of nDCG@10 after rescoring, candidate minus base.
    """
    reasons = []
    if not gain.difference > ERRORS * gain.standard_error or gain.difference <= 0:
        reasons.append(
            f"held-out questions gain {gain.difference:+.4f} nDCG@10, which is not above two "
            f"standard errors ({gain.standard_error:.4f} each)"
        )
    for name, guard in guards.items():
        if not guard.difference >= -LOSS:
            reasons.append(
                f"the guard set {name} loses {-guard.difference:.4f} nDCG@10, more than {LOSS}"
            )
    return Verdict(reasons)
