"""A row's text as the passages that are embedded: one, or several where it is too long."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from semantic_text_splitter import TextSplitter

from embedworker.model.encoder import Encoder, Tokens

__all__ = ["Part", "is_long", "split", "split_by_pieces"]

# Share of a passage repeated in the next, so that a sentence on the border is whole in one of them.
OVERLAP: Final = 0.1
# The splitter's time grows faster than the text: 200,000 characters took 4.8 s whole and 1.4 s in
# pieces of this many, which are cut at line ends, or else between characters.
PIECE: Final = 20_000

LONG: Final = 10 * PIECE  # characters; a text of more is seconds or minutes of work

LONGEST_CHARACTER: Final = 50  # code points; a family of four with skin tones has 11
ZERO_WIDTH_JOINER: Final = "\u200d"
REGIONAL_INDICATORS: Final = "".join(map(chr, range(0x1F1E6, 0x1F200)))
SKIN_TONES: Final = "".join(map(chr, range(0x1F3FB, 0x1F400)))

Part = tuple[int, int, Tokens]


def split(encoder: Encoder, texts: Sequence[str], *, chunk: bool) -> list[list[Part]]:
    """Return for each text its passages: characters [start, end), and their tokens.

    A text that fits the model's window is one passage. A longer one is split by tokens at
    paragraphs, sentences and words, in that order, each passage repeating about a tenth of the one
    before; the passage prefix counts. Without ``chunk`` it stays one passage, cut to the window.
    """
    # What the window cuts off need not be read to its end.
    read = [
        text[:LONG] if not chunk and is_long(encoder, text, chunk=True) else text for text in texts
    ]
    whole: list[list[Part]] = [
        [(0, len(text), tokens)]
        for text, tokens in zip(texts, encoder.tokenize_passages(read), strict=True)
    ]
    if not chunk:
        return whole
    return [
        _passages(encoder, text) if parts[0][2].truncated else parts
        for text, parts in zip(texts, whole, strict=True)
    ]


def is_long(encoder: Encoder, text: str, *, chunk: bool) -> bool:
    """Whether a text should be split by :func:`split_by_pieces`."""
    return chunk and len(text) > LONG and encoder.tokenize_passages([text[:LONG]])[0].truncated


def split_by_pieces(encoder: Encoder, text: str) -> Iterator[list[Part]]:
    """Yield the passages of a text that the window does not hold, about 0.1 s of work each time."""
    splitter = _splitter(encoder, encoder.max_tokens - encoder.overhead)
    for offset, piece in _pieces(text):
        spans = [
            (offset + start, offset + start + len(passage))
            for start, passage in splitter.chunk_indices(piece)
        ]
        tokens = encoder.tokenize_passages([text[start:end] for start, end in spans])
        yield [(start, end, made) for (start, end), made in zip(spans, tokens, strict=True)]


def _passages(encoder: Encoder, text: str) -> list[Part]:
    return [part for parts in split_by_pieces(encoder, text) for part in parts]


def _splitter(encoder: Encoder, capacity: int) -> TextSplitter:
    overlap = int(capacity * OVERLAP)
    if encoder.tokenizer is None:
        return TextSplitter(capacity, overlap)
    return TextSplitter.from_huggingface_tokenizer(encoder.tokenizer, capacity, overlap)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    at = 0
    while at < len(text):
        end = at + PIECE
        if end < len(text):
            line_end = text.rfind("\n", at + PIECE // 2, end)
            end = line_end + 1 if line_end >= 0 else _border(text, end)
        yield at, text[at:end]
        at = end


def _border(text: str, at: int) -> int:
    """Return the nearest place before ``at`` that is not inside what a reader sees as one."""
    for place in range(at, max(at - LONGEST_CHARACTER, 1), -1):
        if not _is_inside(text, place):
            return place
    return at


def _is_inside(text: str, at: int) -> bool:
    before, here = text[at - 1], text[at]
    if before == ZERO_WIDTH_JOINER or here == ZERO_WIDTH_JOINER:
        return True
    if here in REGIONAL_INDICATORS and before in REGIONAL_INDICATORS:  # a flag is two of them
        run = len(text[:at]) - len(text[:at].rstrip(REGIONAL_INDICATORS))
        return run % 2 == 1
    return unicodedata.category(here).startswith("M") or here in SKIN_TONES
