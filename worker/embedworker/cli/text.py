"""What comes in and goes out as text: UTF-8, whatever the locale is."""

import os
import sys
from codecs import lookup
from io import TextIOWrapper

from embedworker.errors import ConfigurationError
from embedworker.settings import variables

__all__ = ["settle"]


def settle() -> None:
    """Read arguments and variables as UTF-8, and write it where the locale is ASCII.

    What another locale has no letter for is written as \\u….

    Raises:
        ConfigurationError: an argument or one of our variables is not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            plain = lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if plain else None, errors="backslashreplace")
    sys.argv[1:] = [
        _utf8(argument, f"argument {number}") for number, argument in enumerate(sys.argv[1:], 1)
    ]
    for name in variables():
        os.environ[name] = _utf8(os.environ[name], name)


def _utf8(value: str, where: str) -> str:
    if value.isascii():
        return value
    try:
        # In an ASCII locale Python keeps the bytes it could not read, so nothing is lost yet.
        return os.fsencode(value).decode("utf-8")
    except UnicodeError:
        # Not shown: it may be a password.
        raise ConfigurationError(f"{where} is not UTF-8; write it in UTF-8") from None
