"""The small interface between the worker and any engine that makes vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from embedworker.model.fingerprint import Fingerprint
from embedworker.normalization import normalized

__all__ = ["DType", "Encoder", "EngineName", "Tokens", "Vectors", "prefixed"]

DType = Literal["auto", "float32", "bfloat16", "float16"]
EngineName = Literal["torch", "openvino"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, ready for the model: prefix and special tokens included, cut to its limit.

    ``total`` is the number of tokens before cutting, so a passage that lost its end is countable.
    """

    ids: tuple[int, ...]
    total: int

    @property
    def truncated(self) -> bool:
        return self.total > len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class Encoder(Protocol):
    """Turns texts into unit vectors. Safe to use from several threads at once."""

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def token_budget(self) -> int:
        """Padded tokens that one batch should have at most on this device."""

    @property
    def notes(self) -> Mapping[str, str | int]:
        """How, not what: ``engine``, ``dtype``, ``device``, ``threads``, and ``times`` if measured.

        Another mapping once the number format was corrected.
        """

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's fast tokeniser, to count tokens; None where a character is a token."""

    @property
    def overhead(self) -> int:
        """Tokens that the passage prefix and the special tokens take of ``max_tokens``."""

    def tokenize_passages(self, texts: Sequence[str]) -> list[Tokens]:
        """Add the passage prefix to each text and tokenise it.

        Raises ModelError when a text is not valid Unicode; the message names its index.
        """

    def tokenize_queries(self, texts: Sequence[str]) -> list[Tokens]:
        """Do the same with the query prefix."""

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        """Run one padded batch through the model once.

        Returns float32 of shape (len(batch), dimensions), each row of length 1.
        Raises ModelError when a row has no direction (zero, infinite or not a number), and
        MemoryError when the batch does not fit; either may succeed for a smaller batch.
        """

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """Encode any number of passages, in batches of similar length; rows in the order given."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Encode questions: the query prefix instead of the passage prefix; rows as given."""


def prefixed(prefix: str, text: str) -> str:
    """NFC of the text behind the prefix, added once.

    A text that already starts with the prefix gets it all the same: what a user typed is text.
    Decomposed Korean (macOS file names) must give the vector of the composed form.
    """
    return prefix + normalized("NFC", text)
