"""Which endpoints a worker may use, and with which key."""

import pytest

from embedworker import settings
from embedworker.endpoints import Endpoints
from embedworker.errors import ConfigurationError


def test_a_key_goes_to_its_own_host_alone() -> None:
    known = Endpoints("http://gpu:8100, https://api.example.com=made-up=key http://[::1]:80")
    assert known.key("http://GPU:8100/v1") is None
    assert known.key("https://api.example.com:443/v1/") == "made-up=key"
    assert known.key("http://[::1]/v1") is None
    assert "made-up" not in repr(known)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://api.example.com/v1",  # no TLS: the key would be readable
        "https://api.example.com:8443/v1",
        "https://api.example.com.evil.example/v1",
        "https://api.example.com@evil.example/v1",
        "https://evil.example/https://api.example.com",
        "http://169.254.169.254/v1",
        "file:///etc/passwd",
        "https://api.example.com/v1?to=evil.example",
    ],
)
def test_every_other_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Endpoints("https://api.example.com=made-up").key(endpoint)
    assert "made-up" not in str(raised.value)


@pytest.mark.parametrize(
    "entry", ["made-up-key", "ftp://host", "https://a:b@host", "http://host/v1"]
)
def test_an_entry_that_is_no_address_is_refused_unquoted(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDWORKER_ENDPOINTS", f"https://good.example {entry}")
    with pytest.raises(ConfigurationError, match=r"entry 2 of EMBEDWORKER_ENDPOINTS") as raised:
        settings.load()
    assert entry not in str(raised.value)
