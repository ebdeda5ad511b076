"""Requests to one HTTP endpoint of the form of OpenAI's embeddings API.

Nothing here waits for an endpoint that is busy: it raises :class:`EndpointUnavailable`, whose
``seconds`` say for how long the callers leave the rows in the queue. No message quotes an answer of
the endpoint, because an endpoint may repeat the texts or the key in it.
"""

import json
import threading
import time
import weakref
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
import numpy as np

from embedworker.errors import DimensionMismatch, EndpointUnavailable, ModelError
from embedworker.model.encoder import Vectors

__all__ = ["PROBE", "RemoteEndpoint"]

PROBE: Final = "How long is the train ride?"
LONGEST_PAUSE: Final = 300.0  # seconds; a larger Retry-After is cut to it
FIRST_PAUSE: Final = 1.0  # seconds, doubled with each failure in a row
LONGEST_OWN_PAUSE: Final = 60.0  # seconds, where the endpoint names none
NUMBER: Final = 32  # bytes that one number of a vector takes in JSON at most
HEAD: Final = 65_536  # bytes of an answer besides its numbers
# The texts of a request may be the reason. A probe then says whether the endpoint works at all.
BY_TEXT: Final = (400, 413, 422, 500)


class RemoteEndpoint:
    """``POST {endpoint}/embeddings`` for one model, closed for a while after a failure."""

    def __init__(
        self, model: str, endpoint: str, key: str | None, *, dimensions: int, timeout: float
    ) -> None:
        self._model = model
        self._url = f"{endpoint.rstrip('/')}/embeddings"
        self._dimensions = dimensions
        self._timeout = timeout
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # Redirects are not followed: they could lead to a host that nobody named.
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        weakref.finalize(self, self._client.close)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Do one request; where its texts may be the reason of a failure, ask for the probe."""
        remaining = self._closed_until - time.monotonic()
        if remaining > 0:
            raise EndpointUnavailable(self._said("failed a moment ago"), remaining)
        try:
            vectors = self._request(texts)
        except _TextRefused as refused:
            if list(texts) != [PROBE]:
                try:
                    self._request([PROBE])
                except _TextRefused:
                    pass
                else:
                    self._failures = 0
                    raise ModelError(self._said(f"{refused}; it answers other texts")) from None
            raise self._unavailable(f"{refused}, for any text") from None
        self._failures = 0
        return vectors

    def _request(self, texts: Sequence[str]) -> Vectors:
        deadline = time.monotonic() + self._timeout
        most = HEAD + len(texts) * self._dimensions * NUMBER
        body = bytearray()
        sent = {"model": self._model, "input": texts, "encoding_format": "float"}
        try:
            with self._client.stream("POST", self._url, json=sent) as answer:
                status, headers = answer.status_code, answer.headers
                if status == 200:
                    for piece in answer.iter_bytes():
                        body += piece
                        if len(body) > most:
                            raise self._unavailable(f"sent more than {most} bytes")
                        if time.monotonic() > deadline:  # httpx limits each read, and not the sum
                            raise _TextRefused(self._too_slow)
        except httpx.TimeoutException:
            raise _TextRefused(self._too_slow) from None
        except httpx.HTTPError as error:
            raise self._unavailable(f"cannot be reached ({type(error).__name__})") from None
        if status in BY_TEXT:
            raise _TextRefused(f"answered with status {status}")
        if status != 200:
            advice = {
                401: "; give its key in EMBEDWORKER_ENDPOINTS",
                403: "; give its key in EMBEDWORKER_ENDPOINTS",
                404: "; see the address and the name of the model",
            }.get(status, "")
            raise self._unavailable(
                f"answered with status {status}{advice}", _seconds(headers.get("Retry-After"))
            )
        return self._vectors(bytes(body), len(texts))

    @property
    def _too_slow(self) -> str:
        return f"did not answer within {self._timeout:g} s"

    def _vectors(self, body: bytes, count: int) -> Vectors:
        try:
            rows: dict[int, Any] = {
                row["index"]: row["embedding"] for row in json.loads(body)["data"]
            }
            given = [np.asarray(rows[index], np.float32) for index in range(count)]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self._unavailable(f"sent no list of {count} vectors") from None
        if len(rows) != count:
            raise self._unavailable(f"sent {len(rows)} vectors for {count} texts")
        wrong = {vector.shape for vector in given} - {(self._dimensions,)}
        if wrong:
            length = "×".join(map(str, wrong.pop()))
            raise DimensionMismatch(
                self._said(
                    f"makes vectors of {length} dimensions, expected {self._dimensions};"
                    " name its dimensions in embed.add_model(…)"
                )
            )
        vectors = np.stack(given)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
        if len(bad):
            raise ModelError(
                self._said(
                    f"gave no direction for the text at index {bad[0]} of {count}: its vector has"
                    f" the length {lengths[bad[0], 0]:g}"
                )
            )
        return np.asarray(vectors / lengths, np.float32)

    def _unavailable(self, what: str, seconds: float | None = None) -> EndpointUnavailable:
        """Close the endpoint for all callers for a while, so that they do not all wait for it."""
        with self._lock:
            own = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), LONGEST_OWN_PAUSE)
            self._failures += 1
            pause = min(seconds, LONGEST_PAUSE) if seconds else own
            self._closed_until = max(self._closed_until, time.monotonic() + pause)
        return EndpointUnavailable(self._said(what), pause)

    def _said(self, what: str) -> str:
        return f"the endpoint of the model {self._model!r} {what}"


class _TextRefused(Exception):
    """The endpoint refused a request, perhaps because of its texts."""


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of the header, which is a number or a date; None for anything else."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        # Eighteen digits are years already, and no float holds four hundred.
        return float(retry_after[:18])
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
