"""From a model's folder to an encoder that has proved itself."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import sentence_transformers
import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from worker.errors import DimensionMismatch, ModelError, ModelRefused
from worker.model.catalog import ModelCard
from worker.model.cpu import cpu_quota, has_bfloat16, set_threads
from worker.model.encoder import DType, EngineName, Vectors, prefixed
from worker.model.fingerprint import Fingerprint
from worker.model.locate import Located
from worker.model.torch_encoder import TorchEncoder

__all__ = ["load", "one_at_a_time"]

log = logging.getLogger(__name__)
one_at_a_time = threading.Lock()
"""Held from a model's weights to its probe: transformers changes what belongs to the process as it
loads (the default dtype, a method), and what is timed must not compete."""

PROBE_TEXT: Final = "서울에서 부산까지 기차로 얼마나 걸리나요? How long is the train ride?"
LENGTH_TOLERANCE: Final = 1e-3
# 1 - cosine between our forward pass and the model's own encode. Half precision costs up to 1e-4;
# a wrong prefix, pooling or padding costs 1e-2 and more.
AGREEMENT: Final = 1e-3
TIMING_TEXTS: Final = [PROBE_TEXT * 4] * 8  # about 8 x 120 tokens: one CPU batch
TIMING_REPEATS: Final = 3


def load(
    card: ModelCard,
    located: Located,
    *,
    engine: EngineName = "torch",
    device: str = "auto",
    dtype: DType = "auto",
    threads: int | None = None,
    token_budget: int | None = None,
) -> TorchEncoder:
    """Load and probe one embedding model; see :func:`worker.model.open_encoder`.

    No code that comes with a model is ever run.
    """
    with one_at_a_time:
        return _load(
            card,
            located.folder,
            partial(
                Fingerprint,
                model=located.name,
                revision=located.revision,
                query_prefix=card.query_prefix,
                passage_prefix=card.passage_prefix,
                pooling=located.pooling,
            ),
            engine=engine,
            device=device,
            dtype=dtype,
            threads=threads or cpu_quota(),
            token_budget=token_budget,
        )


def _load(
    card: ModelCard,
    folder: Path,
    fingerprint: Callable[..., Fingerprint],
    *,
    engine: EngineName,
    device: str,
    dtype: DType,
    threads: int,
    token_budget: int | None,
) -> TorchEncoder:
    set_threads(threads)
    if engine == "openvino":
        model = _open(folder, card.name, "cpu", torch.float32)
    else:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = _with_dtype(folder, card.name, device, dtype)
    max_tokens = _max_tokens(model, card)
    model.max_seq_length = max_tokens
    reference = _reference(model, card)
    if card.dimensions is not None and len(reference) != card.dimensions:
        raise DimensionMismatch(
            f"the model {card.name!r} makes vectors of {len(reference)} dimensions, expected"
            f" {card.dimensions}; it is another model under this name: use the published one"
        )
    engine_version = f"torch {torch.__version__}"
    used = str(model.dtype).removeprefix("torch.")
    if engine == "openvino":
        # Imported here: an extra that few have.
        from worker.model import openvino

        engine_version = f"OpenVINO {openvino.version()}"
        used = openvino.compile_network(model, name=card.name, dtype=dtype, threads=threads)
    encoder = TorchEncoder(
        model,
        fingerprint(dimensions=len(reference), max_tokens=max_tokens),
        notes={
            "engine": f"{engine_version},"
            f" sentence-transformers {sentence_transformers.__version__}",
            "dtype": used,
            "device": str(model.device),
            "threads": threads,
        },
        token_budget=token_budget,
    )
    _probe(encoder, reference)
    log.info("loaded %r", encoder)
    return encoder


def _with_dtype(folder: Path, name: str, device: str, dtype: DType) -> SentenceTransformer:
    """The model in the format asked for; ``auto`` never picks one that turned out slower."""
    if dtype != "auto":
        return _open(folder, name, device, getattr(torch, dtype))
    if device != "cpu":
        return _open(folder, name, device, torch.float16)
    model = _open(folder, name, device, torch.float32)
    if not has_bfloat16():
        return model
    exact = _seconds(model)
    half = _seconds(model.bfloat16())
    log.info("a batch takes %.1f ms in float32, %.1f ms in bfloat16", exact * 1e3, half * 1e3)
    # Read again: weights that were rounded to bfloat16 do not come back.
    return model if half < exact else _open(folder, name, device, torch.float32)


def _open(folder: Path, name: str, device: str, dtype: torch.dtype) -> SentenceTransformer:
    try:
        with _no_progress_bar():
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": dtype},
            )
    except (ImportError, LookupError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelRefused(f"the model {name!r} cannot be loaded from {folder}: {error}") from error
    model.default_prompt_name = None  # prefixes are added by us, once
    return model.eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep "Loading weights" off the terminal: it ends before anybody can read it."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # ditto


def _seconds(model: SentenceTransformer) -> float:
    """The fastest of a few batches; the first warms up and does not count."""
    times = []
    for _ in range(1 + TIMING_REPEATS):
        start = time.perf_counter()
        model.encode(TIMING_TEXTS, show_progress_bar=False)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _max_tokens(model: SentenceTransformer, card: ModelCard) -> int:
    limits = [limit for limit in (model.max_seq_length, card.max_tokens) if limit]
    if not limits:
        raise ModelRefused(
            f"the model {card.name!r} does not say how many tokens it takes; set max_seq_length in"
            " its sentence_bert_config.json"
        )
    return min(limits)


def _reference(model: SentenceTransformer, card: ModelCard) -> Vectors:
    """What sentence-transformers itself makes of the probe: float32 of shape (dimensions,)."""
    text = prefixed(card.passage_prefix, PROBE_TEXT)
    vector = model.encode(text, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vector, np.float32)


def _probe(encoder: TorchEncoder, reference: Vectors) -> None:
    name = encoder.fingerprint.model
    try:
        (vector,) = encoder.encode_passages([PROBE_TEXT])
    except ModelError as error:
        raise ModelRefused(f"the model {name!r} failed its probe: {error}") from error
    length = float(np.linalg.norm(vector))
    cosine = float(vector @ reference) if vector.shape == reference.shape else float("nan")
    if not (abs(length - 1) <= LENGTH_TOLERANCE and 1 - cosine <= AGREEMENT):
        raise ModelRefused(
            f"the model {name!r} failed its probe: a vector of length {length:.6f} (expected 1),"
            f" cosine {cosine:.6f} (expected 1) to what sentence-transformers encodes; please"
            " report the model's name"
        )
