"""The tables that a person may have meant."""

import difflib
from collections.abc import Iterable

__all__ = ["meant"]

SUGGESTIONS = 3
LISTED = 8  # tables named where none is similar


def meant(name: str, tables: Iterable[tuple[str, str]]) -> str | None:
    """Return a clause with the tables like ``name``, else with some of all; None without tables.

    Of each table, as the server writes it, and its bare name.
    """
    by_word: dict[str, str] = {}
    all_shown = []
    for shown, bare in tables:
        all_shown.append(shown)
        by_word.setdefault(bare.lower(), shown)
        by_word[shown.replace('"', "").lower()] = shown
    close = difflib.get_close_matches(name.replace('"', "").lower(), by_word, n=SUGGESTIONS)
    if close:
        return f"did you mean {' or '.join(dict.fromkeys(by_word[word] for word in close))}?"
    if all_shown:
        some = ", ".join(all_shown[:LISTED])
        return f"there are: {some}{', …' if len(all_shown) > LISTED else ''}."
    return None
