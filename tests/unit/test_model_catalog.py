"""The catalogue, and what a name means."""

import subprocess
import sys
from dataclasses import replace

import pytest

from embedworker.errors import ConfigurationError
from embedworker.model import BUNDLED_MODEL, DEFAULT_MODEL, ModelCard, catalog
from embedworker.model.factory import card_for

# Written out from the models' own cards, so that a slip in the data file shows.
E5 = ("query: ", "passage: ", "mean")
EMBEDDING_MODELS = {
    "dragonkue/multilingual-e5-small-ko-v2": (384, 512, *E5),
    "dragonkue/multilingual-e5-small-ko": (384, 512, *E5),
    "intfloat/multilingual-e5-small": (384, 512, *E5),
    "bundled:multilingual-e5-small": (384, 512, *E5),
    "exp-models/dragonkue-KoEn-E5-Tiny": (384, 512, *E5),
    "intfloat/multilingual-e5-base": (768, 512, *E5),
    "intfloat/multilingual-e5-large": (1024, 512, *E5),
    "BAAI/bge-m3": (1024, 8192, "", "", "cls"),
    "Snowflake/snowflake-arctic-embed-l-v2.0": (1024, 8192, "query: ", "", "cls"),
    "ibm-granite/granite-embedding-278m-multilingual": (768, 512, "", "", "cls"),
    "ibm-granite/granite-embedding-107m-multilingual": (384, 512, "", "", "cls"),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": (384, 128, "", "", "mean"),
}
RERANKERS = {"dragonkue/bge-reranker-v2-m3-ko", "BAAI/bge-reranker-v2-m3"}


def test_it_holds_exactly_the_known_models() -> None:
    assert set(catalog()) == EMBEDDING_MODELS.keys() | RERANKERS


@pytest.mark.parametrize("name", EMBEDDING_MODELS)
def test_an_embedding_model(name: str) -> None:
    dimensions, max_tokens, query, passage, pooling = EMBEDDING_MODELS[name]
    assert replace(catalog()[name], korean_mean=None) == ModelCard(
        name, dimensions, max_tokens, query, passage, pooling, "embedding"
    )


@pytest.mark.parametrize("name", sorted(RERANKERS))
def test_a_reranker_has_no_vector(name: str) -> None:
    assert catalog()[name] == ModelCard(name, max_tokens=512, kind="reranker")
    with pytest.raises(ConfigurationError, match="is a reranker and makes no vectors"):
        card_for(name)


def test_the_catalogue_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        catalog()["mine"] = ModelCard("mine")  # type: ignore[index]  # that is what is tested


def test_the_default_and_the_bundled_model_are_compatible() -> None:
    default, bundled = catalog()[DEFAULT_MODEL], catalog()[BUNDLED_MODEL]
    assert (default.query_prefix, default.passage_prefix, default.dimensions) == (
        bundled.query_prefix,
        bundled.passage_prefix,
        bundled.dimensions,
    )


@pytest.mark.parametrize("prefixes", [{}, {"query_prefix": ""}, {"passage_prefix": "p: "}])
def test_an_unknown_model_needs_both_prefixes(prefixes: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"prefixes of the model 'me/mine' are not known"):
        card_for("me/mine", **prefixes)


def test_prefixes_make_an_unknown_model_known() -> None:
    card = card_for("me/mine", query_prefix="", passage_prefix="text: ")
    assert card == ModelCard("me/mine", None, None, "", "text: ", None)


def test_a_given_prefix_wins_over_the_catalogue() -> None:
    card = card_for(DEFAULT_MODEL, passage_prefix="query: ")
    assert (card.query_prefix, card.passage_prefix) == ("query: ", "query: ")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, embedworker.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
