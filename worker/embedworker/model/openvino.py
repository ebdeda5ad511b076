"""The optional engine for processors: the network of a model, compiled by OpenVINO.

Pooling, dense layers and normalisation stay those of sentence-transformers.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from embedworker.errors import ConfigurationError, ModelRefused
from embedworker.model.cpu import has_bfloat16
from embedworker.model.encoder import DType

__all__ = ["compile_network", "version"]

# Two texts of different length: with a mask of ones alone the trace could leave the mask out.
EXAMPLE: Final = ((5, 6, 7, 8), (5, 6, 0, 0))
FORMATS: Final = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
INPUTS: Final = ("input_ids", "attention_mask")

_one_at_a_time = threading.Lock()  # what _quiet changes belongs to the process


def version() -> str:
    """Return the version of OpenVINO. Raises ConfigurationError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise ConfigurationError(
            "EMBEDWORKER_ENGINE is openvino, which is not installed; run `pip install"
            " 'embedworker[openvino]'`, or set EMBEDWORKER_ENGINE=torch"
        ) from error
    return str(openvino.__version__).split("-")[0]


def compile_network(model: SentenceTransformer, *, name: str, dtype: DType, threads: int) -> str:
    """Replace the first module of a float32 model on the processor; returns the number format.

    ``dtype="auto"`` leaves the format to OpenVINO, which takes a shorter one only where the
    processor has it; so does a format that it does not have. The weights of torch are let go.

    Raises ConfigurationError where OpenVINO is not installed, ModelRefused where it does not know
    a part of the network.
    """
    version()
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Two processes that are each bound to the same processors wait for each other.
        "ENABLE_CPU_PINNING": False,
    }
    if dtype in ("auto", "bfloat16") and not has_bfloat16():
        # OpenVINO looks at the processor alone. Where oneDNN is capped it would not compile.
        dtype = "float32"
    if dtype != "auto":
        settings["INFERENCE_PRECISION_HINT"] = FORMATS[dtype]
    try:
        compiled = openvino.Core().compile_model(_converted(model), "CPU", settings)
    except RuntimeError as error:
        raise ModelRefused(
            f"OpenVINO cannot compile the model {name!r}: {str(error).strip()}; set"
            " EMBEDWORKER_ENGINE=torch"
        ) from error
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    model[0] = CompiledNetwork(compiled, model.tokenizer)
    return {short: long for long, short in FORMATS.items()}.get(used, used)


class CompiledNetwork(torch.nn.Module):
    """Stands where the model's Transformer module stood: tokens to vectors of tokens."""

    def __init__(self, compiled: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer  # sentence-transformers asks the first module for it
        self._compiled = compiled
        self._requests = threading.local()  # a request is for one thread

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add ``token_embeddings``, float32 of shape (texts, tokens, dimensions).

        They are overwritten by the next call of this thread.
        """
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        results = request.infer(
            {name: features[name].numpy() for name in INPUTS}, share_inputs=True, share_outputs=True
        )
        return {**features, "token_embeddings": torch.from_numpy(results[0])}


class _Network(torch.nn.Module):
    """What is traced: the first thing a transformer returns is the last hidden state."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs: tuple[torch.Tensor, ...] = self.network(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=False
        )
        return outputs[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore the warnings of OpenVINO's trace; the probe of the loaded model checks the result.

    torch warns that it will go one day and that it fixes branches; transformers, of properties that
    nobody asked for, because the tracer reads them all.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)


def _converted(model: SentenceTransformer) -> Any:
    """Convert the network to OpenVINO's graph, for any number of texts and tokens.

    By the frontend and not by ``openvino.convert_model``, whose package reports its use.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    ids = torch.tensor(EXAMPLE)
    example = dict(zip(INPUTS, (ids, (ids > 0).long()), strict=True))
    with _one_at_a_time, torch.inference_mode(), _quiet():
        decoder = TorchScriptPythonDecoder(_Network(model[0].auto_model), example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))
