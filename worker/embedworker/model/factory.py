"""From a model's name to an encoder."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from embedworker.errors import ConfigurationError, DimensionMismatch
from embedworker.model.catalog import (
    DEFAULT_MODEL,
    TESTING_MODELS,
    ModelCard,
    catalog,
)
from embedworker.model.encoder import DType, Encoder, EngineName
from embedworker.model.testing import HashEncoder, SmallEncoder
from embedworker.model.testing_words import WordsEncoder

__all__ = ["card_for", "open_encoder"]


def card_for(
    name: str, *, query_prefix: str | None = None, passage_prefix: str | None = None
) -> ModelCard:
    """Return a model's card from the catalogue; given prefixes replace those of the catalogue.

    Raises ConfigurationError for a reranker, and for a name that is not in the catalogue when
    either prefix is missing (an empty one is a valid answer).
    """
    card = catalog().get(name)
    if card is None:
        if query_prefix is None or passage_prefix is None:
            raise ConfigurationError(
                f"the prefixes of the model {name!r} are not known; say both, as its model card"
                " does (an empty text where it has none): EMBEDWORKER_QUERY_PREFIX and"
                " EMBEDWORKER_PASSAGE_PREFIX, or name one of: " + ", ".join(_embedding_models())
            )
        card = ModelCard(name)
    if card.kind != "embedding":
        raise ConfigurationError(
            f"{name!r} is a reranker and makes no vectors; name an embedding model: "
            + ", ".join(_embedding_models())
        )
    if query_prefix is not None:
        card = replace(card, query_prefix=query_prefix)
    if passage_prefix is not None:
        card = replace(card, passage_prefix=passage_prefix)
    return card


def open_encoder(
    name: str = DEFAULT_MODEL,
    *,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    dimensions: int | None = None,
    cache_folder: Path | None = None,
    engine: EngineName = "torch",
    device: str = "auto",
    dtype: DType = "auto",
    threads: int | None = None,
    token_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Encoder:
    """Load a model by hub name, folder, or the bundled name, and check it with a probe.

    ``dimensions`` is what the column holds, when known. ``cache_folder`` is the user's cache
    folder when not given; models that are already in the hub's own cache are used from there.
    ``engine="openvino"`` runs the network of the model by OpenVINO, on the processor; it is an
    extra to install, and the model is converted as it is loaded.
    ``device`` is torch's name of one. ``dtype="auto"`` is float32, and half precision where the
    hardware has it and gains by it. ``threads`` is set for the calling thread, by default what
    the container allows. ``token_budget`` is the padded tokens of one batch, by default what
    suits the device. ``progress(done, total)`` counts the steps of unpacking the bundled model,
    and is not called when there is nothing to unpack.

    Raises ConfigurationError, ModelNotFound, ModelRefused or DimensionMismatch.
    """
    encoder: Encoder
    if name in TESTING_MODELS:
        encoder = _TESTING[name](
            "query: " if query_prefix is None else query_prefix,
            "passage: " if passage_prefix is None else passage_prefix,
        )
    else:
        card = card_for(name, query_prefix=query_prefix, passage_prefix=passage_prefix)
        if engine == "openvino" and device not in ("auto", "cpu"):
            raise ConfigurationError(
                f"OpenVINO runs a model on the processor, not on {device!r}; set"
                " EMBEDWORKER_DEVICE=cpu or EMBEDWORKER_ENGINE=torch"
            )
        # Imported here: most commands never make a vector, and torch takes seconds.
        from embedworker.model.locate import locate

        located = locate(card, cache_folder, progress)
        from embedworker.model.load import load

        encoder = load(
            card,
            located,
            engine=engine,
            device=device,
            dtype=dtype,
            threads=threads,
            token_budget=token_budget,
        )
    if dimensions is not None and encoder.dimensions != dimensions:
        raise DimensionMismatch(
            f"the model {name!r} makes vectors of {encoder.dimensions} dimensions, the column"
            f" holds {dimensions}; enable the table with a model of {dimensions} dimensions,"
            f" or give it a column of {encoder.dimensions}"
        )
    return encoder


_TESTING = {encoder.name: encoder for encoder in (HashEncoder, SmallEncoder, WordsEncoder)}


def _embedding_models() -> list[str]:
    return [card.name for card in catalog().values() if card.kind == "embedding"]
