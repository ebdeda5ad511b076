"""Who may ask: bearer tokens, from the environment or a file."""

import hmac
import ipaddress
from collections.abc import Sequence
from hashlib import sha256

from worker.errors import ConfigurationError
from worker.settings import Settings

__all__ = ["Access"]

SHORTEST = 16  # characters; what is guessed in an afternoon protects nothing


class Access:
    """The tokens that open the door; none at all leaves it open, to this machine only.

    Raises ConfigurationError when the settings would let strangers in, or cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        tokens = _tokens(settings)
        if not tokens and not _is_loopback(settings.serve_host):
            raise ConfigurationError(
                f"EMBEDWORKER_SERVE_HOST is {settings.serve_host!r}, which others can reach, and"
                " there is no token; set EMBEDWORKER_SERVE_TOKEN or EMBEDWORKER_SERVE_TOKEN_FILE,"
                " or listen on 127.0.0.1"
            )
        self._digests = [sha256(token.encode()).digest() for token in tokens]

    def __repr__(self) -> str:
        return f"<Access {len(self._digests)} tokens>"

    def permits(self, authorization: str | None) -> bool:
        """Whether a request with this header is answered; takes the same time for any token."""
        if not self._digests:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        digest = sha256(token.strip().encode()).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        return any(known) and scheme.lower() == "bearer"


def _tokens(settings: Settings) -> Sequence[str]:
    given = "" if settings.serve_token is None else settings.serve_token.get_secret_value()
    where = "EMBEDWORKER_SERVE_TOKEN"
    if settings.serve_token_file is not None:
        if given:
            raise ConfigurationError(
                "EMBEDWORKER_SERVE_TOKEN and EMBEDWORKER_SERVE_TOKEN_FILE are both set; keep one"
            )
        where = f"the file {settings.serve_token_file}"
        try:
            given = settings.serve_token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{where} cannot be read: {type(error).__name__}") from None
    # A line each, so that an old one can be taken out when every client has the new one.
    tokens = given.split()
    if settings.serve_token_file is not None and not tokens:
        raise ConfigurationError(f"{where} holds no token; write one a line")
    if any(len(token) < SHORTEST for token in tokens):
        raise ConfigurationError(
            f"{where} holds a token of fewer than {SHORTEST} characters; make one with"
            " `openssl rand -hex 24`"
        )
    return tokens


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
