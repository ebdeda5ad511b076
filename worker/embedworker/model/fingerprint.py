"""What makes two vectors comparable."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

__all__ = ["Fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """Everything that decides which vector a text gets; vectors of two fingerprints never mix.

    Engine and number format are left out on purpose: float32 and bfloat16 vectors of one model
    differ by 3e-5 in cosine, which changes no measurable ranking.

    ``revision`` is the hub's commit hash, or ``sha256:…`` of the weights of a local folder.
    """

    model: str
    revision: str
    query_prefix: str
    passage_prefix: str
    pooling: str
    dimensions: int
    max_tokens: int

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits, the same on every machine and in every run."""
        fields = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(fields.encode("ascii")).hexdigest()
