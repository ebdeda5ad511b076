"""Database URLs without their passwords, for messages and logs."""

import re
from urllib.parse import parse_qsl, urlencode

__all__ = ["obfuscate"]

_HIDDEN = "***"
_PASSWORD_IN_DSN = re.compile(r"(\b(?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])+)")
# A URL without its "://" is neither form, and is shown in the error that says so.
_PASSWORD_IN_NEITHER = re.compile(r":.*@", re.DOTALL)


def obfuscate(url: str) -> str:
    """Return a database URL or ``key=value`` DSN with every password replaced by ``***``."""
    if "://" not in url:
        shown = _PASSWORD_IN_DSN.sub(rf"\g<1>{_HIDDEN}", url)
        return _PASSWORD_IN_NEITHER.sub(f":{_HIDDEN}@", shown)
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if "@" in query:  # a raw ? in a password looks like this: nothing of it is safe to show
        return f"{scheme}://{_HIDDEN}"
    # The last @ ends the credentials, so that a raw @ or / in a password stays hidden with it.
    credentials, at, server = place.rpartition("@")
    user, colon, _ = credentials.partition(":")
    pairs = parse_qsl(query, keep_blank_values=True)
    hidden = [(key, _HIDDEN if "password" in key else value) for key, value in pairs]
    shown = f"{scheme}://{user}{f':{_HIDDEN}' if colon else ''}{at}{server}"
    return f"{shown}?{urlencode(hidden, safe='*/:,')}" if hidden else shown
