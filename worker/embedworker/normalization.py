"""Unicode normalization in linear time."""

import re
import unicodedata
from typing import Final, Literal

__all__ = ["normalized"]

MOST: Final = 30  # non-starters in a row, as Unicode's Stream-Safe Text Format has it
JOINER: Final = "\u034f"  # COMBINING GRAPHEME JOINER, a starter that is not seen

# No combining character is a \w but the halfwidth kana marks, which NFKC makes combining ones.
_LONG_RUN: Final = re.compile(f"[\\W\uff9e\uff9f]{{{MOST + 1},}}")


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """Return the text in a normal form.

    Normalization sorts the combining characters after a letter by insertion: 100,000 of them took
    a minute. A role that may write a text could stop the worker with it. So an invisible starter
    breaks each run that is longer than any language writes, as in Unicode's Stream-Safe Text Format
    (UAX #15). embed._nfc does the same to the same characters. Only a text in another form pays for
    this: 1,000,000 characters of composed Korean take 2 ms as before, decomposed 65 ms instead of
    20.
    """
    if unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, _LONG_RUN.sub(_broken, text))


def _broken(run: re.Match[str]) -> str:
    characters: list[str] = []
    length = 0
    for character in run[0]:
        first = unicodedata.normalize("NFKD", character)[0]
        length = length + 1 if unicodedata.combining(first) else 0
        if length > MOST:
            characters.append(JOINER)
            length = 1
        characters.append(character)
    return "".join(characters)
