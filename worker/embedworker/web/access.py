"""Who may open the page: a token once, a cookie afterwards, and a CSRF token in every form."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_urlsafe

from embedworker.service.monitoring.access import read_tokens
from embedworker.settings import Settings

__all__ = ["Access", "Visitor"]

_SESSION, _FORM = b"embedworker page session", b"embedworker page form"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who has a token. ``name`` tells tokens apart in the log and reveals none."""

    name: str
    cookie: str
    csrf: str


class Access:
    """The tokens of the page; where none is set, a random one that lasts as long as the process.

    Raises ConfigurationError when the tokens of the settings cannot be read or are too short.
    """

    def __init__(self, settings: Settings) -> None:
        given = read_tokens(settings.web_token, settings.web_token_file, "EMBEDWORKER_WEB_TOKEN")
        self.made: str | None = None if given else token_urlsafe(24)
        """The random token, None where the settings have one: those are never printed."""
        self._tokens: Sequence[str] = given or [str(self.made)]

    def __repr__(self) -> str:
        return f"<Access {len(self._tokens)} tokens>"

    def by_token(self, given: str) -> Visitor | None:
        """Return the visitor whose token this is; takes the same time for any token."""
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.encode(), given.strip().encode(errors="replace")):
                found = token
        return None if found is None else _visitor(found)

    def by_cookie(self, cookie: str | None) -> Visitor | None:
        """Return the visitor whose cookie this is."""
        found = None
        for visitor in map(_visitor, self._tokens):
            if hmac.compare_digest(
                visitor.cookie.encode(), (cookie or "").encode(errors="replace")
            ):
                found = visitor
        return found


def _visitor(token: str) -> Visitor:
    def derived(purpose: bytes) -> str:
        return hmac.new(token.encode(), purpose, sha256).hexdigest()

    return Visitor(
        name=sha256(token.encode()).hexdigest()[:8],
        cookie=derived(_SESSION),
        csrf=derived(_FORM),
    )
