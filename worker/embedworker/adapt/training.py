"""Train a copy of a model on pairs of a question and the text that answers it.

The loss is GISTEmbedLoss (Solatorio, "GISTEmbed: Guided In-sample Selection of Training Negatives
for Text Embedding Fine-tuning", 2024). The other texts of a batch are the negatives, except those
that the guide, which is the model before the training, finds nearer to the question than the right
text. Plain in-batch negatives made the bundled model forget: belebele-ko-ko fell from 0.9064 to
0.7302 nDCG@10.

The gradient is computed in small parts of a batch (Gao et al., "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", 2021), so memory does not grow with the batch.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    MultipleNegativesRankingLoss,
)
from torch.nn.functional import normalize
from transformers import PrinterCallback, TrainerCallback

from embedworker.adapt.batches import LikeLength
from embedworker.errors import SourceError
from embedworker.model.cpu import has_bfloat16

__all__ = ["Pair", "Recipe", "batch_size", "spread", "train"]

CHECKPOINT: Final = 10  # steps from one checkpoint to the next: a minute or less on two cores
PART: Final = 32  # texts of a batch that are in memory together with their activations
# Temperatures in the standard deviation of a question's cosines. With 0.01, that of the E5 models,
# the training made cosines spread 2.3 times as far. Words, which have a fixed weight, then counted
# for half: belebele-ko-ko lost 0.0130 nDCG@10 with words. With 0.0045, as by this number, cosines
# spread 1.2 times as far and it lost 0.0033. ko-strategyqa-facts gained 0.0151 and 0.0155.
SPREAD: Final = 4.1
QUESTIONS: Final = 200  # that the spread is measured with
TEXTS: Final = 1000
NO_BATCH: Final = "{} pairs fill no batch; judge questions about more rows"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one candidate is trained. ``tokens`` is the length at which texts are cut."""

    seed: int = 1
    rate: float = 5e-5
    margin: float = 0.0
    batch: int = 128
    epochs: int = 2
    tokens: int = 64
    plain: bool = False  # without a guide, for the test that shows why there is one


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and a text that answers it, with the prefixes of the model."""

    question: str
    right: str


def train(
    base: Path,
    pairs: Sequence[Pair],
    recipe: Recipe,
    work: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> SentenceTransformer:
    """Return the trained model in float32; go on from the last checkpoint in ``work``, if any.

    ``base`` is a folder of sentence-transformers. ``progress`` takes the steps done and all. A
    checkpoint of another recipe or of other pairs is removed.

    Raises SourceError when the pairs fill no batch.
    """
    disable_progress_bars()
    _keep_only_ours(work, recipe, pairs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = device == "cuda" or has_bfloat16()
    model = _open(base, recipe, device, torch.float32)
    # The guide only compares: in bfloat16 it takes half the time on a CPU that has it.
    guide = _open(base, recipe, device, torch.bfloat16 if half else torch.float32)
    if device == "cpu":
        _freeze_words(model)
    loss: torch.nn.Module
    size = batch_size(pairs, recipe.batch)
    temperature = spread(guide.eval(), pairs) / SPREAD
    if recipe.plain:
        loss = MultipleNegativesRankingLoss(model, scale=1 / temperature)
    else:
        loss = CachedGISTEmbedLoss(
            model, guide, temperature=temperature, mini_batch_size=PART, margin=recipe.margin
        )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work),
        seed=recipe.seed,
        data_seed=recipe.seed,
        learning_rate=recipe.rate,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=size,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        batch_sampler=LikeLength,
        bf16=half,
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=CHECKPOINT,
        save_total_limit=1,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=device == "cuda",
    )
    with _quiet():
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=_dataset(pairs),
            loss=loss,
            callbacks=[_Progress(progress)],
        )
        trainer.remove_callback(PrinterCallback)  # it writes to the standard output
        trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    if not trainer.state.global_step:
        raise SourceError(NO_BATCH.format(len(pairs)))
    model.max_seq_length = SentenceTransformer(str(base), local_files_only=True).max_seq_length
    return model.eval()


def spread(model: SentenceTransformer, pairs: Sequence[Pair]) -> float:
    """Return the standard deviation of a question's cosines with many texts, at the mean."""
    questions = list(dict.fromkeys(pair.question for pair in pairs))[:QUESTIONS]
    texts = list(dict.fromkeys(pair.right for pair in pairs))[:TEXTS]
    found: list[Any] = [
        model.encode(some, batch_size=PART, show_progress_bar=False, convert_to_tensor=True)
        for some in (questions, texts)
    ]
    asked, compared = (normalize(vectors.float(), dim=1) for vectors in found)
    return float((asked @ compared.T).std(dim=1).mean())


def batch_size(pairs: Sequence[Pair], most: int) -> int:
    """Return how many pairs a batch has.

    No text stands twice in a batch. Batches of nearly all different texts were hardly ever filled:
    of 100 texts with two questions each, none of 97 was, and nothing was trained.

    Raises SourceError when all questions, or all texts, are the same.
    """
    different = min(len({pair.right for pair in pairs}), len({pair.question for pair in pairs}))
    if different < 2:
        raise SourceError(NO_BATCH.format(len(pairs)))
    return min(most, max(2, different // 2))


def _open(base: Path, recipe: Recipe, device: str, dtype: torch.dtype) -> SentenceTransformer:
    model = SentenceTransformer(
        str(base), device=device, local_files_only=True, model_kwargs={"dtype": dtype}
    )
    model.default_prompt_name = None  # the pairs have their prefixes
    model.max_seq_length = min(recipe.tokens, model.max_seq_length or recipe.tokens)
    return model


def _freeze_words(model: SentenceTransformer) -> None:
    """Leave the word embeddings as they are: four fifths of a small model, and slow to update."""
    transformer: Any = model[0]
    transformer.auto_model.get_input_embeddings().weight.requires_grad_(False)


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    columns = {
        "anchor": [pair.question for pair in pairs],
        "positive": [pair.right for pair in pairs],
    }
    return Dataset.from_dict(columns)


def _keep_only_ours(work: Path, recipe: Recipe, pairs: Sequence[Pair]) -> None:
    """Remove checkpoints of another training, so that none is taken for this one."""
    mark = work / "training.json"
    ours = json.dumps([asdict(recipe), [asdict(pair) for pair in pairs]], ensure_ascii=False)
    if not mark.is_file() or mark.read_text("utf-8") != ours:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mark.write_text(ours, "utf-8")


class _Progress(TrainerCallback):
    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._progress(state.global_step, state.max_steps)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainer's own summary off the terminal, which shows a bar."""
    names = ("transformers", "sentence_transformers", "accelerate")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
