"""The default engine: a sentence-transformers model on torch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from embedworker.errors import ModelError, ModelRefused
from embedworker.model.batches import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET, token_batches
from embedworker.model.encoder import Tokens, Vectors, prefixed
from embedworker.model.fingerprint import Fingerprint
from embedworker.model.number_format import Trial, name_of

__all__ = ["TorchEncoder"]

# The tokeniser keeps about 100 bytes a token until a call returns. Texts are therefore given to it
# in groups of at most this many characters, and a longer text in pieces of this size.
CHARACTERS_AT_ONCE: Final = 200_000


class TorchEncoder:
    """The interface of :class:`embedworker.model.Encoder` over a loaded SentenceTransformer.

    All modules of the model run (pooling, dense, normalisation), so a vector is what the model's
    own ``encode`` gives; only batching, tokenising and checking are ours.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        fingerprint: Fingerprint,
        notes: Mapping[str, str | int],
        token_budget: int | None = None,
    ) -> None:
        self.fingerprint: Final = fingerprint
        self.notes = notes
        self.dimensions: Final = fingerprint.dimensions
        self.max_tokens: Final = fingerprint.max_tokens
        on_cpu = model.device.type == "cpu"
        self.token_budget: Final = token_budget or (
            CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET
        )
        self._model = model.eval()
        self._trial: Trial | None = None
        self._tokenizer, self._pad, self._pad_left = _tokenizer(model, fingerprint.model)
        self._special = self._tokenizer.num_special_tokens_to_add(False)
        # One more: the first piece of a passage may be cut otherwise behind a prefix.
        self.overhead: Final = (
            self._special
            + 1
            + len(self._encode_texts([prefixed(fingerprint.passage_prefix, "")])[0])
        )

    def __repr__(self) -> str:
        how = " ".join(str(self.notes[key]) for key in ("engine", "dtype", "device"))
        return f"<TorchEncoder {self.fingerprint.model} {self.dimensions} dimensions, {how}>"

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def try_beside(self, rival: "TorchEncoder") -> None:
        """Let the times of the next batches decide between this model and that of ``rival``."""
        self._trial = Trial(self._model, rival._model)

    def tokenize_passages(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.passage_prefix, texts)

    def tokenize_queries(self, texts: Sequence[str]) -> list[Tokens]:
        return self._tokenize(self.fingerprint.query_prefix, texts)

    def encode_tokens(self, batch: Sequence[Tokens]) -> Vectors:
        if not batch:
            return np.empty((0, self.dimensions), np.float32)
        width = max(map(len, batch))
        ids = np.full((len(batch), width), self._pad, np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, tokens in enumerate(batch):
            place = slice(width - len(tokens), None) if self._pad_left else slice(len(tokens))
            ids[row, place] = tokens.ids
            mask[row, place] = 1
        trial = self._trial
        model = self._model if trial is None else trial.next()
        started = time.perf_counter()
        with torch.inference_mode(), _memory_errors(len(batch), width):
            features = {
                "input_ids": torch.from_numpy(ids).to(model.device),
                "attention_mask": torch.from_numpy(mask).to(model.device),
            }
            vectors = model(features)["sentence_embedding"].float().cpu().numpy()
        if trial is not None:
            stays = trial.took(model, ids.size, time.perf_counter() - started)
            if stays is not None:
                self._model, self._trial = stays, None
                if name_of(stays) != self.notes["dtype"]:
                    self.notes = {**self.notes, "dtype": name_of(stays)}
        return _unit(vectors)

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_passages(texts))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.tokenize_queries(texts))

    def _encode(self, tokens: Sequence[Tokens]) -> Vectors:
        vectors = np.empty((len(tokens), self.dimensions), np.float32)
        for batch in token_batches([len(t) for t in tokens], self.token_budget):
            vectors[batch] = self.encode_tokens([tokens[i] for i in batch])
        return vectors

    def _tokenize(self, prefix: str, texts: Sequence[str]) -> list[Tokens]:
        whole = [prefixed(prefix, _valid(text, index)) for index, text in enumerate(texts)]
        result: list[Tokens] = []
        for group in _groups(whole):
            if len(group[0]) > CHARACTERS_AT_ONCE:
                result += [self._tokenize_long(text) for text in group]
            else:
                result += [self._tokens(e, len(e)) for e in self._encode_texts(group)]
        return result

    def _tokenize_long(self, text: str) -> Tokens:
        """Count a very long text piece by piece; its tokens come from the beginning alone."""
        pieces = (
            text[at : at + CHARACTERS_AT_ONCE] for at in range(0, len(text), CHARACTERS_AT_ONCE)
        )
        (first,) = self._encode_texts([next(pieces)])
        total = len(first) + sum(len(self._encode_texts([piece])[0]) for piece in pieces)
        if len(first) + self._special < self.max_tokens < total + self._special:
            # Nearly all of it is space; only then is the beginning not enough.
            (first,) = self._encode_texts([text])
        return self._tokens(first, total)

    def _encode_texts(self, texts: Sequence[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def _tokens(self, encoding: Encoding, total: int) -> Tokens:
        encoding.truncate(self.max_tokens - self._special)
        return Tokens(tuple(self._tokenizer.post_process(encoding).ids), total + self._special)


def _tokenizer(model: SentenceTransformer, name: str) -> tuple[Tokenizer, int, bool]:
    """Return the model's fast tokeniser, its padding token, and whether padding goes left.

    Truncation and padding are state inside a fast tokeniser and setting them is not safe while
    another thread uses it; ours never pads nor cuts, so it is only read.
    """
    outer = model.tokenizer
    if not isinstance(outer, PreTrainedTokenizerBase) or not outer.is_fast:
        raise ModelRefused(
            f"the model {name!r} has no fast tokenizer (tokenizer.json); save it once with one:"
            " AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    inner: Tokenizer = outer.backend_tokenizer
    inner.no_truncation()
    inner.no_padding()
    return inner, outer.pad_token_id or 0, outer.padding_side == "left"


def _valid(text: str, index: int) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelError(
            f"the text at index {index} is not valid Unicode ({error.reason} at character"
            f" {error.start}); remove the lone surrogate"
        ) from error
    return text


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts of CHARACTERS_AT_ONCE together; a longer one is a group of its own."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


@contextmanager
def _memory_errors(texts: int, width: int) -> Iterator[None]:
    """torch says "out of memory" in two ways and neither is a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        if not gpu and "can't allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"a batch of {texts} texts, {width} tokens wide, does not fit into memory"
        ) from error


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise ModelError(
            f"the model gave no direction for the text at index {bad[0]} of a batch of"
            f" {len(vectors)}: its vector has the length {lengths[bad[0], 0]:g}, expected a finite"
            " one above 0"
        )
    return np.asarray(vectors / lengths, np.float32)
