"""The page's own words in English and Korean, read from ``words.toml``."""

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

__all__ = ["LANGUAGES", "language_of", "say", "words"]

LANGUAGES = ("en", "ko")


@functools.cache
def words() -> Mapping[str, Mapping[str, str]]:
    """All texts by key, each by language."""
    return MappingProxyType(
        tomllib.loads(files(__package__).joinpath("words.toml").read_text("utf-8"))
    )


def say(language: str, key: str, **values: object) -> str:
    """Return a text with its ``{values}`` filled in. Raises KeyError for an unknown key."""
    return words()[key][language].format(**values)


def language_of(chosen: str | None, accepted: str) -> str:
    """Return the language that was chosen, else the browser's first that the page speaks.

    ``accepted`` is the header Accept-Language.
    """
    if chosen in LANGUAGES:
        return chosen
    for part in accepted.split(","):
        tag = part.partition(";")[0].strip().lower().partition("-")[0]
        if tag in LANGUAGES:
            return tag
    return LANGUAGES[0]
