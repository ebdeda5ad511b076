"""A model behind an HTTP endpoint of the form of OpenAI's embeddings API.

This module adds the prefixes, so the endpoint must add none. The tokeniser is not known here: a
character counts as a token, and ``max_tokens`` is the window in characters.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from embedworker.endpoints import Endpoints
from embedworker.errors import EndpointUnavailable
from embedworker.model.batches import token_batches
from embedworker.model.encoder import Tokens, Vectors, prefixed
from embedworker.model.fingerprint import Fingerprint
from embedworker.model.remote_endpoint import PROBE, RemoteEndpoint

__all__ = ["RemoteEncoder"]

KIND: Final = "OpenAI-compatible endpoint"
TYPICAL: Final = 512  # characters of a passage, to plan how many texts one call takes


class RemoteEncoder:
    """The interface of :class:`embedworker.model.Encoder` over ``POST {endpoint}/embeddings``.

    ``texts`` is the most texts of one request, ``requests`` the most requests of one call at a
    time. ``timeout`` is in seconds, for a whole request with its answer.

    Raises ConfigurationError for an endpoint that ``endpoints`` does not name, and what
    :meth:`encode_tokens` raises for the first request, which checks the endpoint.
    """

    tokenizer: Final = None

    def __init__(
        self,
        name: str,
        endpoint: str,
        endpoints: Endpoints,
        *,
        dimensions: int,
        max_tokens: int,
        query_prefix: str,
        passage_prefix: str,
        texts: int,
        requests: int,
        timeout: float,
    ) -> None:
        self.fingerprint: Final = Fingerprint(
            model=name,
            revision=KIND,
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
            pooling="endpoint",
            dimensions=dimensions,
            max_tokens=max_tokens,
        )
        self.dimensions: Final = dimensions
        self.max_tokens: Final = max_tokens
        self.token_budget: Final = texts * requests * min(max_tokens, TYPICAL)
        self.notes: Mapping[str, str | int] = {
            "engine": KIND,
            "dtype": "float32",
            "device": "remote",
            "threads": requests,
        }
        self._endpoint = RemoteEndpoint(
            name, endpoint, endpoints.key(endpoint), dimensions=dimensions, timeout=timeout
        )
        self._texts = texts
        self._requests = requests
        self.encode_passages([PROBE])

    def __repr__(self) -> str:
        return f"<RemoteEncoder {self.fingerprint.model} {self.dimensions} dimensions>"

    @property
    def overhead(self) -> int:
        return len(self.fingerprint.passage_prefix)

    def tokenize_passages(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.passage_prefix, texts)

    def tokenize_queries(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.query_prefix, texts)

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        """Return float32 of shape (len(batch), dimensions), each row brought to length 1.

        Raises ModelError where a text of the batch may be the reason, so that the caller tries its
        halves, and EndpointUnavailable where the endpoint answers nobody.
        """
        texts = ["".join(map(chr, tokens.ids)) for tokens in batch]
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        parts = deque(range(0, len(texts), self._texts))
        errors: list[Exception] = []

        def work() -> None:
            while not errors:
                try:
                    start = parts.popleft()
                except IndexError:
                    return
                try:
                    part = texts[start : start + self._texts]
                    vectors[start : start + len(part)] = self._endpoint.embed(part)
                except Exception as error:  # raised below, in the caller's thread
                    errors.append(error)

        # Not a pool's threads: those take nothing any more once the main thread has ended.
        others = [
            threading.Thread(target=work, name="endpoint")
            for _ in range(min(self._requests, len(parts)) - 1)
        ]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
        for error in sorted(errors, key=lambda e: not isinstance(e, EndpointUnavailable)):
            raise error
        return vectors

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_passages(texts))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_queries(texts))

    def _tokenize(self, prefix: str, texts: Sequence[str]) -> list[Tokens]:
        whole = [prefixed(prefix, text) for text in texts]
        return [Tokens(tuple(map(ord, text[: self.max_tokens])), len(text)) for text in whole]

    def _encode(self, tokens: Sequence[Tokens]) -> Vectors:
        vectors = np.empty((len(tokens), self.dimensions), np.float32)
        for batch in token_batches([len(t) for t in tokens], self.token_budget):
            vectors[batch] = self.encode_tokens([tokens[i] for i in batch])
        return vectors
