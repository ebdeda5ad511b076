"""One adaptation: train, choose on validation, measure on what was held out, decide.

Every step leaves its result in a work folder and is skipped when that is there: a run that was
killed goes on. The finished model appears in one rename. Nothing else is changed.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from embedworker.adapt.card import write_card
from embedworker.adapt.gate import Verdict, decide
from embedworker.adapt.material import CHOICE_ROWS, Material
from embedworker.adapt.ranking import QuestionSet, Vectors, evaluated
from embedworker.adapt.soup import WEIGHTS, soup
from embedworker.adapt.training import Pair, Recipe, batch_size, train
from embedworker.model.catalog import ModelCard
from embedworker.model.cpu import has_bfloat16
from embedworker.model.encoder import prefixed
from embedworker.model.locate import Located
from embedworker.search.measures import Difference, PerQuestion, compared, means

__all__ = ["Adaptation", "Outcome", "Steps"]

log = logging.getLogger("embedworker.adapt")

MEASURE: Final = "nDCG@10"
BATCH: Final = 16  # texts

Steps = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows a bar: takes its label and how many steps there are; yields what takes those done."""


@dataclass(frozen=True)
class Outcome:
    """What came out. ``folder`` is the accepted model; None where nothing was changed.

    ``figures`` has, by set and way of ranking, the candidate's nDCG@10 minus the base's.
    """

    verdict: Verdict
    recipe: Recipe
    weight: float
    figures: dict[str, dict[str, Difference]]
    base: dict[str, dict[str, float]]
    folder: Path | None = None


@dataclass
class Adaptation:
    """The parts that stay the same through one adaptation.

    ``lexical`` is the weight of words in the table's searches. ``work`` is a folder of its own.
    """

    model: ModelCard
    located: Located
    material: Material
    lexical: float
    work: Path
    steps: Steps
    _base: SentenceTransformer = field(init=False)
    _judge: SentenceTransformer = field(init=False)
    _measured: dict[tuple[float, int, str], tuple[PerQuestion, PerQuestion]] = field(init=False)
    _judged: tuple[float, int] = field(init=False)  # the weights that the judge has
    _encoded: dict[str, Vectors] = field(init=False)  # its vectors, by the text with its prefix

    def run(self, recipes: Sequence[Recipe], output: Path) -> Outcome:
        """Return the outcome; write the model to ``output`` where it is accepted."""
        disable_progress_bar()  # type: ignore[no-untyped-call]  # not annotated
        self._begin(recipes)
        self._base = _open(self.located.folder)
        self._judge = deepcopy(self._base)
        if has_bfloat16() and self._judge.device.type == "cpu":
            self._judge = self._judge.bfloat16()
        self._measured = {}
        self._judged, self._encoded = (0.0, id(None)), {}
        tuned = [self._train(number, recipe) for number, recipe in enumerate(recipes)]
        number, weight = self._choose(tuned)
        questions = self.material.questions
        sets = [self.material.asked("held-out questions", questions.test), *self.material.guards]
        figures, base = {}, {}
        with self.steps("measuring", 2 * len(sets)) as show:
            for done, one in enumerate(sets):
                before = self._evaluate(one, None, 0)
                show(2 * done + 1)
                after = self._evaluate(one, tuned[number], weight)
                show(2 * done + 2)
                figures[one.name] = _differences(after, before)
                base[one.name] = {
                    way: means(values)[MEASURE]
                    for way, values in zip(("dense", "rescored"), before, strict=True)
                }
        gain, *losses = (figures[one.name]["rescored"] for one in sets)
        verdict = decide(gain, dict(zip([one.name for one in sets[1:]], losses, strict=True)))
        outcome = Outcome(verdict, recipes[number], weight, figures, base)
        if not verdict.accepted:
            return outcome
        outcome = Outcome(verdict, recipes[number], weight, figures, base, output)
        self._save(tuned[number], outcome, output)
        return outcome

    def _begin(self, recipes: Sequence[Recipe]) -> None:
        """Empty the work folder unless it is of the same adaptation."""
        material = [asdict(self.material.questions), self.material.texts]
        same = json.dumps([self.located.revision, material, [asdict(r) for r in recipes]])
        mark = self.work / "adaptation"
        digest = sha256(same.encode()).hexdigest()
        if not mark.is_file() or mark.read_text() != digest:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            mark.write_text(digest)

    def _train(self, number: int, recipe: Recipe) -> dict[str, torch.Tensor]:
        folder = self.work / f"tuned-{number}"
        if not folder.is_dir():
            pairs = self.pairs()
            batches = len(pairs) // batch_size(pairs, recipe.batch)
            with self.steps("training", batches * recipe.epochs) as show:
                model = train(
                    self.located.folder,
                    pairs,
                    recipe,
                    self.work / f"training-{number}",
                    lambda done, _total: show(done),
                )
            partial = self.work / f"tuned-{number}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            model.save(str(partial), create_model_card=False)
            partial.rename(folder)
        return dict(_open(folder).state_dict())

    def pairs(self) -> list[Pair]:
        """Every train question with each of its right texts."""
        return [
            Pair(
                prefixed(self.model.query_prefix, question),
                prefixed(self.model.passage_prefix, self.material.texts[key]),
            )
            for question, grades in self.material.questions.train.items()
            for key, grade in grades.items()
            if grade and key in self.material.texts
        ]

    def _choose(self, tuned: Sequence[dict[str, torch.Tensor]]) -> tuple[int, float]:
        """Return the recipe and the weight that gain most on validation and keep the guards.

        Where none keeps all guards, the one that gains most is returned; the gate then names them.
        """
        questions = self.material.questions.validation
        chosen_by = self.material.asked("validation", questions, CHOICE_ROWS)
        candidates = [(number, weight) for number in range(len(tuned)) for weight in WEIGHTS]
        sets = (chosen_by, *self.material.guards)
        before = {one.name: self._evaluate(one, None, 0) for one in sets}
        found = []
        with self.steps("choosing", len(candidates)) as show:
            for done, (number, weight) in enumerate(candidates):
                gains = {
                    one.name: _differences(
                        self._evaluate(one, tuned[number], weight), before[one.name]
                    )["rescored"]
                    for one in sets
                }
                gain = gains.pop(chosen_by.name)
                kept = decide(Difference(1, 0), gains).accepted
                found.append((kept, gain.difference, -weight, number))
                show(done + 1)
        _, _, weight, number = max(found)
        return number, -weight

    def _evaluate(
        self, asked: QuestionSet, tuned: dict[str, torch.Tensor] | None, weight: float
    ) -> tuple[PerQuestion, PerQuestion]:
        known = (weight, id(tuned), asked.name)
        if known not in self._measured:
            if self._judged != known[:2]:
                base = dict(self._base.state_dict())
                self._judge.load_state_dict(base if tuned is None else soup(base, tuned, weight))
                self._judged, self._encoded = known[:2], {}
            self._measured[known] = evaluated(asked, self._encode, self.lexical)
        return self._measured[known]

    def _encode(self, questions: Sequence[str], texts: Sequence[str]) -> tuple[Vectors, Vectors]:
        def vectors(prefix: str, some: Sequence[str]) -> Vectors:
            # The guard sets of the table's own texts have the same texts, and validation most.
            written = [prefixed(prefix, text) for text in some]
            new = [text for text in dict.fromkeys(written) if text not in self._encoded]
            if new:
                found: Any = self._judge.encode(
                    new, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True
                )
                array = found.float().cpu().numpy()
                array /= np.linalg.norm(array, axis=1, keepdims=True)
                self._encoded.update(zip(new, np.asarray(array, np.float32), strict=True))
            return np.stack([self._encoded[text] for text in written])

        return vectors(self.model.query_prefix, questions), vectors(
            self.model.passage_prefix, texts
        )

    def _save(self, tuned: dict[str, torch.Tensor], outcome: Outcome, output: Path) -> None:
        base = dict(self._base.state_dict())
        model = deepcopy(self._base)
        model.load_state_dict(soup(base, tuned, outcome.weight))
        partial = output.with_name(f".{output.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save(str(partial), create_model_card=False)
        write_card(
            partial / "README.md",
            base=self.located.name,
            revision=self.located.revision,
            questions=str(self.material.questions),
            pairs=len(self.pairs()),
            recipe=outcome.recipe,
            weight=outcome.weight,
            figures=outcome.figures,
            before=outcome.base,
        )
        partial.rename(output)


def _open(folder: Path) -> SentenceTransformer:
    model = SentenceTransformer(
        str(folder), local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    model.default_prompt_name = None  # the prefixes are added here
    return model.eval()


def _differences(
    after: tuple[PerQuestion, PerQuestion], before: tuple[PerQuestion, PerQuestion]
) -> dict[str, Difference]:
    ways = ("dense", "rescored")
    return {
        way: compared(new, old)[MEASURE] for way, new, old in zip(ways, after, before, strict=True)
    }
