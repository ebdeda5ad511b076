"""The endpoints that this environment allows, each with its key.

``EMBEDWORKER_ENDPOINTS`` is a list of ``scheme://host:port`` or ``scheme://host:port=KEY``,
separated by spaces or commas. The database names the endpoint of a model. Only the environment says
which hosts a worker may send texts to, and which key a host gets.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from embedworker.errors import ConfigurationError

__all__ = ["Endpoints"]

PORTS: Final = {"http": 80, "https": 443}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class Endpoints:
    """Origins and their keys. Its repr shows no key."""

    def __init__(self, text: str) -> None:
        """Read the list; raises ConfigurationError, which quotes nothing of it."""
        self._keys: dict[_Origin, str | None] = {}
        for place, entry in enumerate(re.split(r"[\s,]+", text.strip()) if text.strip() else [], 1):
            address, _, key = entry.partition("=")
            origin = _origin(address)
            if origin is None or urlsplit(address).path.strip("/"):
                raise ConfigurationError(
                    f"entry {place} of EMBEDWORKER_ENDPOINTS is no address; expected"
                    " http://HOST:PORT or https://HOST, and =KEY behind it where the endpoint"
                    " wants a key"
                )
            self._keys[origin] = key or None

    def __repr__(self) -> str:
        return f"<Endpoints {[f'{o.scheme}://{o.host}:{o.port}' for o in self._keys]}>"

    def key(self, endpoint: str) -> str | None:
        """Return the key for an endpoint, None where it has none.

        Raises ConfigurationError for an address that the list does not name.
        """
        origin = _origin(endpoint)
        if origin is None:
            raise ConfigurationError(
                f"the endpoint {endpoint!r} is no address; expected http://HOST:PORT/v1"
            )
        if origin not in self._keys:
            address = f"{origin.scheme}://{origin.host}:{origin.port}"
            raise ConfigurationError(
                f"a model uses the endpoint {address}, which this worker may not use; add it to"
                " EMBEDWORKER_ENDPOINTS"
            )
        return self._keys[origin]


def _origin(address: str) -> _Origin | None:
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    if parts.query or parts.fragment:
        return None
    return _Origin(parts.scheme, parts.hostname, port or PORTS[parts.scheme])
