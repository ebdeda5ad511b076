"""The weighted mean of two models of one architecture.

Averaging a tuned model with its base keeps what the base knew (Xiao et al., "LM-Cocktail: Resilient
Tuning of Language Models via Model Merging", 2023).
"""

from collections.abc import Mapping
from typing import Final

import torch

__all__ = ["WEIGHTS", "soup"]

WEIGHTS: Final = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Weights of the tuned model to choose from; 0.6 is the 6:4 of multilingual-e5-small-ko-v2."""

State = Mapping[str, torch.Tensor]


def soup(base: State, tuned: State, weight: float) -> dict[str, torch.Tensor]:
    """Return base + weight × (tuned - base), computed in float32. Whole numbers stay the base's."""
    return {
        name: (
            torch.lerp(value.float(), tuned[name].float().to(value.device), weight)
            if value.is_floating_point()
            else value
        )
        for name, value in base.items()
    }
