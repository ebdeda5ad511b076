"""A tiny file in the format of the bundled model (E5S1), made of known numbers."""

import struct
from collections.abc import Mapping

import numpy as np

HIDDEN, LAYERS, HEADS, WIDE, POSITIONS, TYPES = 32, 1, 4, 64, 16, 2
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
PIECES += [("▁", -2.0), ("▁서울", -3.0), ("▁a", -4.0), ("b", -5.0), ("<mask>", 0.0)]
ROWS = len(PIECES) + 1


def shapes() -> dict[str, tuple[int, ...]]:
    names: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TYPES, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    matrices = dict.fromkeys("qkv", (HIDDEN, HIDDEN))
    matrices |= {"ao": (HIDDEN, HIDDEN), "fi": (WIDE, HIDDEN), "fo": (HIDDEN, WIDE)}
    for layer in range(LAYERS):
        for name, shape in matrices.items():
            names[f"l{layer}.{name}.w"] = shape
            names[f"l{layer}.{name}.b"] = shape[:1]
        for name in ("aln", "oln"):
            names[f"l{layer}.{name}.w"] = names[f"l{layer}.{name}.b"] = (HIDDEN,)
    return names


def quantized(name: str) -> bool:
    return name == "emb.word" or (name.startswith("l") and name.endswith(".w") and "ln" not in name)


def weights() -> dict[str, np.ndarray]:
    """Numbers that 4 bits hold exactly: -8 … 7, halved."""
    random = np.random.default_rng(0)
    return {
        name: random.integers(-8, 8, shape).astype(np.float32) / 2
        for name, shape in shapes().items()
    }


def e5_file(arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    arrays = weights() if arrays is None else arrays
    sizes = (HIDDEN, LAYERS, HEADS, WIDE, ROWS, POSITIONS, TYPES)
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, 1e-12, 32)
    head += struct.pack("<5i", len(PIECES), 0, 2, 1, 3)
    texts = [piece.encode() for piece, _ in PIECES]
    offsets = np.cumsum([0, *map(len, texts)])
    head += struct.pack("<Q", int(offsets[-1]))
    head += offsets.astype("<u4").tobytes()
    head += struct.pack(f"<{len(PIECES)}f", *(score for _, score in PIECES))
    head += b"".join(texts)
    head += struct.pack("<iI", 1, 3) + b"abc"  # the normaliser, which nobody reads
    head += struct.pack("<i", len(arrays))
    bodies = {name: _body(name, array) for name, array in arrays.items()}
    at = len(head) + sum(2 + len(name) + struct.calcsize("<BIQQ") for name in arrays)
    table = b""
    for name, array in arrays.items():
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", quantized(name), array.size, at, len(bodies[name]))
        at += len(bodies[name])
    return head + table + b"".join(bodies.values())


def _body(name: str, array: np.ndarray) -> bytes:
    if not quantized(name):
        return array.astype("<f4").tobytes()
    body = b""
    for block in array.reshape(-1, 32):
        nibbles = (block * 2 + 8).astype(np.uint8)
        body += np.float16(0.5).tobytes() + bytes(nibbles[:16] | nibbles[16:] << 4)
    return body
