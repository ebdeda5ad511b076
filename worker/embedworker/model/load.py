"""From a model's folder to an encoder that has proved itself."""

import logging
import threading
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

from embedworker.errors import DimensionMismatch, ModelError, ModelRefused
from embedworker.model.catalog import ModelCard
from embedworker.model.cpu import cpu_quota, set_threads
from embedworker.model.encoder import DType, EngineName, Vectors, prefixed
from embedworker.model.fingerprint import Fingerprint
from embedworker.model.locate import Located
from embedworker.model.number_format import PROBE_TEXT, Choice, choose, name_of
from embedworker.model.torch_encoder import TorchEncoder

__all__ = ["load", "one_at_a_time", "opening"]

log = logging.getLogger(__name__)
one_at_a_time = threading.Lock()
"""Held from a model's weights to its probe: transformers changes what belongs to the process as it
loads (the default dtype, a method), and what is timed must not compete."""

LENGTH_TOLERANCE: Final = 1e-3
# The largest 1 - cosine between our vector and that of the library, by the format of ours. Measured
# over the architectures of the catalogue with random weights, and with the bundled model: float32
# 1.2e-7, float16 4.4e-5, bfloat16 3.5e-3 (2.6e-5 with the bundled model). A wrong prefix costs 6e-3
# and more (1.7e-2 with the bundled model), wrong pooling 7e-2 and more.
AGREEMENT: Final = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 5e-3}


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
    """Load and probe one embedding model; see :func:`embedworker.model.open_encoder`.

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
        choice = Choice(_open(folder, card.name, "cpu", torch.float32))
    else:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        choice = _with_dtype(folder, card.name, device, dtype)
    model = choice.model
    max_tokens = _max_tokens(model, card)
    model.max_seq_length = max_tokens
    reference = _reference(model, card)
    if card.dimensions is not None and len(reference) != card.dimensions:
        raise DimensionMismatch(
            f"the model {card.name!r} makes vectors of {len(reference)} dimensions, expected"
            f" {card.dimensions}; it is another model under this name: use the published one"
        )
    engine_version = f"torch {torch.__version__}"
    used = name_of(model)
    if engine == "openvino":
        # Imported here: an extra that few have.
        from embedworker.model import openvino

        engine_version = f"OpenVINO {openvino.version()}"
        used = openvino.compile_network(model, name=card.name, dtype=dtype, threads=threads)
    notes: dict[str, str | int] = {
        "engine": f"{engine_version}, sentence-transformers {sentence_transformers.__version__}",
        "dtype": used,
        "device": str(model.device),
        "threads": threads,
    }
    if choice.times is not None:
        notes["times"] = choice.times
    named = fingerprint(dimensions=len(reference), max_tokens=max_tokens)
    encoder = TorchEncoder(model, named, notes, token_budget)
    _probe(encoder, reference)
    if choice.rival is not None:
        rival = TorchEncoder(choice.rival, named, {**notes, "dtype": name_of(choice.rival)})
        _probe(rival, reference)
        encoder.try_beside(rival)
    log.debug("loaded %r", encoder)
    return encoder


def _with_dtype(folder: Path, name: str, device: str, dtype: DType) -> Choice:
    """Return the model in the given format; ``auto`` is the faster one on this machine."""
    if dtype != "auto":
        return Choice(_open(folder, name, device, getattr(torch, dtype)))
    if device != "cpu":
        return Choice(_open(folder, name, device, torch.float16))
    return choose(_open(folder, name, device, torch.float32))


def _open(folder: Path, name: str, device: str, dtype: torch.dtype) -> SentenceTransformer:
    with opening(f"model {name!r}", folder):
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
        )
    model.default_prompt_name = None  # prefixes are added by us, once
    return model.eval()


@contextmanager
def opening(what: str, folder: Path) -> Iterator[None]:
    """Raise ModelRefused where a model's files are no model.

    The block keeps "Loading weights" off the terminal: it ends before anybody can read it.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated
    try:
        yield
    except (ImportError, LookupError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelRefused(f"the {what} cannot be loaded from {folder}: {error}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # ditto


def _max_tokens(model: SentenceTransformer, card: ModelCard) -> int:
    limits = [limit for limit in (model.max_seq_length, card.max_tokens) if limit]
    if not limits:
        raise ModelRefused(
            f"the model {card.name!r} does not say how many tokens it takes; set max_seq_length in"
            " its sentence_bert_config.json"
        )
    return min(limits)


def _reference(model: SentenceTransformer, card: ModelCard) -> Vectors:
    """Encode the probe with sentence-transformers: float32 of shape (dimensions,), of length 1.

    It is normalised here, in float32. The library normalises in the model's own format: in
    bfloat16 the length comes out between 0.998 and 1.002.
    """
    text = prefixed(card.passage_prefix, PROBE_TEXT)
    vector = np.asarray(model.encode(text, show_progress_bar=False), np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _probe(encoder: TorchEncoder, reference: Vectors) -> None:
    name = encoder.fingerprint.model
    try:
        (vector,) = encoder.encode_passages([PROBE_TEXT])
    except ModelError as error:
        raise ModelRefused(f"the model {name!r} failed its probe: {error}") from error
    length = float(np.linalg.norm(vector))
    cosine = float(vector @ reference) if vector.shape == reference.shape else float("nan")
    allowed = AGREEMENT.get(str(encoder.notes["dtype"]), AGREEMENT["float32"])
    if not (abs(length - 1) <= LENGTH_TOLERANCE and 1 - cosine <= allowed):
        raise ModelRefused(
            f"the model {name!r} failed its probe: a vector of length {length:.6f} (expected 1),"
            f" cosine {cosine:.6f} (expected {1 - allowed:g} or more) to the vector of"
            " sentence-transformers; please report the model's name"
        )
