"""Cross-encoders: they read a question and a passage together and say how well they fit.

Not part of an index: every pair costs a pass of the model, so they only order what search found.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import CrossEncoder

from embedworker.errors import ModelError, ModelNotFound, ModelRefused
from embedworker.model.cpu import has_bfloat16
from embedworker.model.encoder import DType
from embedworker.model.folder import missing_reranker_files
from embedworker.model.hub import hub_folder
from embedworker.model.load import one_at_a_time, opening
from embedworker.normalization import normalized

__all__ = ["Reranker", "open_reranker"]

CPU_BATCH: Final = 4  # pairs; more gain nothing there, and delay the look at whether anybody waits
GPU_BATCH: Final = 32
PROBE: Final = ("서울에서 부산까지 얼마나 걸리나요?", "기차로 두 시간 반쯤 걸립니다.")

Scores = npt.NDArray[np.float32]


class Reranker:
    """Scores pairs of a question and a passage. For one thread at a time."""

    def __init__(self, model: CrossEncoder, name: str) -> None:
        self._model = model.eval()
        self._name = name
        self._batch = CPU_BATCH if model.device.type == "cpu" else GPU_BATCH

    def __repr__(self) -> str:
        return f"<Reranker {self._name} {self._model.device}>"

    def scored(self, question: str, passages: Sequence[str]) -> Iterator[tuple[list[int], Scores]]:
        """Yield batches of scores, each with the places of its passages, short passages first.

        Scores are float32 of shape (places,), larger for what fits better; they are what
        ``CrossEncoder.predict`` gives. Raises ModelError when one is not a finite number.
        """
        asked = normalized("NFC", question)
        order = sorted(range(len(passages)), key=lambda place: len(passages[place]))
        for at in range(0, len(order), self._batch):
            places = order[at : at + self._batch]
            pairs = [(asked, normalized("NFC", passages[place])) for place in places]
            scores = np.asarray(
                self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False),
                np.float32,
            )
            if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
                raise ModelError(
                    f"the reranker {self._name!r} gave {scores.tolist()} for {len(pairs)} pairs;"
                    " expected a finite number for each; use the published model"
                )
            yield places, scores


def open_reranker(
    name: str,
    *,
    max_tokens: int,
    cache_folder: Path | None = None,
    device: str = "auto",
    dtype: DType = "auto",
) -> Reranker:
    """Find, load and probe a cross-encoder by hub name or folder.

    ``max_tokens`` are those of question and passage together; what is longer is cut, or at fewer
    where the network takes fewer. No code that comes with a model is ever run.

    Raises ModelNotFound, or ModelRefused for one that is broken, or gives classes and no score.
    """
    folder = _locate(name, cache_folder)
    if missing := missing_reranker_files(folder):
        raise ModelRefused(
            f"the reranker {name!r} is not complete: {', '.join(missing)} missing in {folder};"
            " copy or download it again"
        )
    _check_head(folder, name)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with one_at_a_time:
        return _open(folder, name, device, _dtype(dtype, device), max_tokens)


def _open(folder: Path, name: str, device: str, dtype: torch.dtype, max_tokens: int) -> Reranker:
    with opening(f"reranker {name!r}", folder):
        model = CrossEncoder(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
        )
    if model.num_labels != 1:
        raise ModelRefused(
            f"the model {name!r} gives {model.num_labels} classes, expected one score; it is not a"
            " reranker"
        )
    model.max_seq_length = min(filter(None, (model.max_seq_length, max_tokens)))
    reranker = Reranker(model, name)
    try:
        list(reranker.scored(PROBE[0], [PROBE[1]]))
    except (ModelError, RuntimeError, LookupError) as error:
        raise ModelRefused(f"the reranker {name!r} failed its probe: {error}") from error
    return reranker


def _locate(name: str, cache_folder: Path | None) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")):
        raise ModelNotFound(
            f"the reranker's folder {name!r} does not exist; check the path in"
            " embed.use_reranker(…)"
        )
    return hub_folder(name, cache_folder, "reranker")


def _check_head(folder: Path, name: str) -> None:
    """Refuse a model without a head for scores: the library would make one up at random."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        architectures = list(config.get("architectures") or [])
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelRefused(
            f"config.json of the reranker {name!r} cannot be read: {error}; copy or download it"
            " again"
        ) from error
    if not any(str(kind).endswith("ForSequenceClassification") for kind in architectures):
        raise ModelRefused(
            f"the model {name!r} is a {' or '.join(map(str, architectures)) or 'network'} without a"
            " head that scores pairs, expected …ForSequenceClassification; it is not a reranker"
        )


def _dtype(wanted: DType, device: str) -> torch.dtype:
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(wanted, torch.float16)
    if device != "cpu":
        return torch.float16
    return torch.bfloat16 if has_bfloat16() else torch.float32
