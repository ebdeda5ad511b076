"""Who may ask over HTTP, and where: bearer tokens from the environment or a file; sockets."""

import hmac
import ipaddress
import socket
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr

from embedworker.errors import ConfigurationError

__all__ = ["Access", "guard", "is_loopback", "listen", "read_tokens"]

SHORTEST = 16  # characters; what is guessed in an afternoon protects nothing


class Access:
    """The tokens that open the door; none at all leaves it open."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [sha256(token.encode()).digest() for token in tokens]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._digests)} tokens>"

    @property
    def guarded(self) -> bool:
        """Whether a token is needed."""
        return bool(self._digests)

    def permits(self, authorization: str | None) -> bool:
        """Whether a request with this header is answered; takes the same time for any token."""
        if not self._digests:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        digest = sha256(token.strip().encode(errors="replace")).digest()
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        return any(known) and scheme.lower() == "bearer"


def guard(prefix: str, host: str, token: SecretStr | None, file: Path | None) -> Access:
    """Return the tokens of a server whose settings begin with ``prefix``, EMBEDWORKER_SERVE.

    Raises ConfigurationError when the settings would let strangers in, or cannot be read.
    """
    access = Access(read_tokens(token, file, f"{prefix}_TOKEN"))
    if not access.guarded and not is_loopback(host):
        raise ConfigurationError(
            f"{prefix}_HOST is {host!r}, which others can reach, and there is no token; set"
            f" {prefix}_TOKEN or {prefix}_TOKEN_FILE, or listen on 127.0.0.1"
        )
    return access


def read_tokens(token: SecretStr | None, file: Path | None, variable: str) -> Sequence[str]:
    """Return the tokens of the setting ``variable`` or of the one with ``_FILE`` behind it.

    Raises ConfigurationError when they cannot be read, or are too short.
    """
    given = "" if token is None else token.get_secret_value()
    where = variable
    if file is not None:
        if given:
            raise ConfigurationError(f"{variable} and {variable}_FILE are both set; keep one")
        where = f"the file {file}"
        try:
            given = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{where} cannot be read: {type(error).__name__}") from None
    # A line each, so that an old one can be taken out when every client has the new one.
    tokens = given.split()
    if file is not None and not tokens:
        raise ConfigurationError(f"{where} holds no token; write one a line")
    if any(len(each) < SHORTEST for each in tokens):
        raise ConfigurationError(
            f"{where} holds a token of fewer than {SHORTEST} characters; make one with"
            " `openssl rand -hex 24`"
        )
    return tokens


def is_loopback(host: str) -> bool:
    """Whether nobody on another machine reaches this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(prefix: str, host: str, port: int, backlog: int) -> socket.socket:
    """Open the socket of a server whose settings begin with ``prefix``; port 0 is any free one.

    Raises ConfigurationError when nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error}; choose another {prefix}_PORT or"
            f" {prefix}_HOST"
        ) from error
