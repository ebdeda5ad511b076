"""What makes two vectors comparable."""

from dataclasses import fields, replace

import pytest

from embedworker.model import Fingerprint

FINGERPRINT = Fingerprint("owner/name", "abc", "query: ", "passage: ", "mean", 384, 512)


def test_the_digest_is_stable() -> None:
    # A change here makes every stored vector stale at the next upgrade.
    assert FINGERPRINT.digest == "b5e94ede56083b2c6d2983e53bc56c3962cd5b986264bf3a188e96ea9822f1e2"


@pytest.mark.parametrize("field", [field.name for field in fields(Fingerprint)])
def test_every_field_counts(field: str) -> None:
    old = getattr(FINGERPRINT, field)
    other = replace(FINGERPRINT, **{field: old + 1 if isinstance(old, int) else old + "x"})
    assert other.digest != FINGERPRINT.digest


def test_prefixes_do_not_run_into_each_other() -> None:
    one = replace(FINGERPRINT, query_prefix="a", passage_prefix="b")
    other = replace(FINGERPRINT, query_prefix="ab", passage_prefix="")
    assert one.digest != other.digest
