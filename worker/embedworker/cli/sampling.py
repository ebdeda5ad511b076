"""What a model makes of some texts of a table: tokens, and texts a second on this machine."""

import time
from typing import TYPE_CHECKING, NamedTuple

from embedworker.cli.database import Connection
from embedworker.database.statements import statement
from embedworker.errors import SourceError
from embedworker.queue.source import Source

if TYPE_CHECKING:
    from embedworker.settings import Settings

__all__ = ["Sample", "sample"]

CHARACTERS = 10_000  # of a text, at most


class Sample(NamedTuple):
    """``tokens`` are those of a text, on average, and ``rate`` the texts a second."""

    texts: int
    tokens: float
    rate: float
    dimensions: int


def sample(
    connection: Connection, source: Source, model: str, settings: "Settings", most: int
) -> Sample:
    """Put at most so many texts of a source through a model.

    Raises:
        SourceError: the database does not know the model.
        ModelError: the model cannot be loaded here.
    """
    from embedworker.service.models import Card, open_card

    card = connection.execute(statement("model_card"), {"name": model}).fetchone()
    if card is None:
        raise SourceError(f"the database does not know the model {model!r}; see embed.add_model")
    texts = [
        text
        for (text,) in connection.execute(
            source.render("switch_texts"), {"characters": CHARACTERS, "most": most}
        )
    ]
    encoder = open_card(Card(*card), settings)
    tokens = [min(one.total, encoder.max_tokens) for one in encoder.tokenize_passages(texts)]
    started = time.perf_counter()
    encoder.encode_passages(texts)
    rate = len(texts) / max(time.perf_counter() - started, 1e-9)
    return Sample(len(texts), sum(tokens) / max(len(tokens), 1), rate, encoder.dimensions)
