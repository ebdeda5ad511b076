"""Texts longer than the model's window: cut at it, or split into passages.

    python benchmarks/long_texts.py sets/gnome-help-ko \\
        --joined sets/belebele-ko-ko

Every folder in BEIR's format is asked twice by ``embedworker eval``, with ``--no-chunk`` (the
vector is of the beginning of a text) and with ``--chunk`` (a row is found by its best passage). Of
the folders after ``--joined``, documents in a seeded random order are put together until a text has
``--tokens`` tokens, so that most answers lie behind the window. Questions are counted apart by
where their answer is. Prints a Markdown table, and with ``--json FILE`` writes everything that was
found.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality import ours

from embedworker.model import BUNDLED_MODEL, Encoder, open_encoder
from embedworker.search.beir import Collection, read_beir

SETTINGS = ("exact+lexical=0", "default")
BETWEEN = "\n\n"
SEED = 20260101


@dataclass(frozen=True)
class LongTexts:
    """A set, and by name of a group its questions."""

    collection: Collection
    groups: dict[str, list[str]]


def as_it_is(collection: Collection, encoder: Encoder) -> LongTexts:
    """The set itself; apart, the questions of which every right text is longer than the window."""
    tokens = encoder.tokenize_passages(list(collection.documents.values()))
    long = {
        number for number, each in zip(collection.documents, tokens, strict=True) if each.truncated
    }
    return LongTexts(
        collection,
        {
            "all": list(collection.questions),
            "right text longer than the window": [
                question
                for question in collection.questions
                if _right(collection, question) <= long
            ],
        },
    )


def joined(collection: Collection, encoder: Encoder, tokens: int) -> LongTexts:
    """Documents put together to texts of ``tokens`` tokens or a little more."""
    order = list(collection.documents)
    random.Random(SEED).shuffle(order)
    texts: dict[str, str] = {}
    where: dict[str, str] = {}
    within, behind = set(), set()
    for text, members in _joined(order, collection.documents, encoder, tokens):
        number = f"joined {len(texts)}"
        texts[number] = text
        for document, first, last in members:
            where[document] = number
            if last <= encoder.max_tokens:
                within.add(document)
            elif first >= encoder.max_tokens:
                behind.add(document)
    relevance: dict[str, dict[str, int]] = {}
    for question, judged in collection.relevance.items():
        for document, grade in judged.items():
            grades = relevance.setdefault(question, {})
            grades[where[document]] = max(grade, grades.get(where[document], 0))
    groups = {
        f"answer {place} the window": [
            question
            for question in collection.questions
            if _right(collection, question) <= documents
        ]
        for place, documents in (("within", within), ("behind", behind))
    }
    name = f"{collection.name}, joined"
    return LongTexts(
        Collection(name, collection.questions, relevance, texts),
        {"all": list(collection.questions), **groups},
    )


def measure(long_texts: LongTexts, model: str) -> list[dict[str, Any]]:
    """Ask the set with its texts cut and split; a result for each setting and group."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), long_texts.collection)
        cut, split = (
            ours(Path(folder), model, ",".join(SETTINGS), chunk=chunk, quick=True)
            for chunk in (False, True)
        )
    results = []
    for one, other in zip(cut["settings"], split["settings"], strict=True):
        for group, questions in long_texts.groups.items():
            pairs = [(one["by_question"][q], other["by_question"][q]) for q in questions]
            results.append(
                {
                    "set": long_texts.collection.name,
                    "texts": len(long_texts.collection.documents),
                    "passages": split["passages"],
                    "setting": one["setting"],
                    "group": group,
                    "questions": len(questions),
                    **_compared(pairs),
                }
            )
    return results


def _compared(pairs: list[tuple[float, float]]) -> dict[str, float | None]:
    if len(pairs) < 2:
        return {"cut": None, "split": None, "difference": None, "standard_error": None}
    differences = [split - cut for cut, split in pairs]
    return {
        "cut": statistics.fmean(cut for cut, _ in pairs),
        "split": statistics.fmean(split for _, split in pairs),
        "difference": statistics.fmean(differences),
        "standard_error": statistics.stdev(differences) / len(differences) ** 0.5,
    }


def _joined(
    order: list[str], documents: dict[str, str], encoder: Encoder, tokens: int
) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """Texts, and of each its documents with their first and last token, the prefix included."""
    text, members = "", []
    for number in order:
        start = encoder.tokenize_passages([text])[0].total
        text += (BETWEEN if text else "") + documents[number]
        end = encoder.tokenize_passages([text])[0].total
        members.append((number, start, end))
        if end >= tokens:
            yield text, members
            text, members = "", []
    if members:
        yield text, members


def _right(collection: Collection, question: str) -> set[str]:
    return {number for number, grade in collection.relevance[question].items() if grade > 0}


def _write(folder: Path, collection: Collection) -> None:
    for name, texts in (("corpus", collection.documents), ("queries", collection.questions)):
        lines = [json.dumps({"_id": number, "text": text}) for number, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    judgements = [
        f"{question}\t{document}\t{grade}"
        for question, grades in collection.relevance.items()
        for document, grade in grades.items()
    ]
    (folder / "qrels.tsv").write_text("\n".join(judgements), encoding="utf-8")


def _sampled(collection: Collection, count: int | None) -> Collection:
    """``count`` of the documents, the longest, and the questions whose right ones are all there."""
    if count is None or count >= len(collection.documents):
        return collection
    longest = sorted(collection.documents, key=lambda n: -len(collection.documents[n]))[:count]
    documents = {n: text for n, text in collection.documents.items() if n in set(longest)}
    questions = {
        question: text
        for question, text in collection.questions.items()
        if _right(collection, question) <= documents.keys()
    }
    relevance = {
        question: {n: g for n, g in collection.relevance[question].items() if n in documents}
        for question in questions
    }
    return Collection(collection.name, questions, relevance, documents)


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| set | texts | passages | search | questions | number | cut | split | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        measures = "– | – | –"
        if result["difference"] is not None:
            measures = (
                f"{result['cut']:.4f} | {result['split']:.4f} "
                f"| {result['difference']:+.4f} ± {result['standard_error']:.4f}"
            )
        facts = [result[name] for name in ("set", "texts", "passages", "setting", "group")]
        lines.append(f"| {' | '.join(map(str, facts))} | {result['questions']} | {measures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every folder and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="asked as they are")
    parser.add_argument("--joined", nargs="*", type=Path, metavar="DIR", default=[])
    parser.add_argument("--tokens", type=int, default=1500, help="of a joined text")
    parser.add_argument("--documents", type=int, help="take the longest so many of each set")
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = open_encoder(given.model, dtype="float32")  # it only counts tokens
    results: list[dict[str, Any]] = []
    for folder in given.folders + given.joined:
        collection = _sampled(read_beir(folder), given.documents)
        if folder in given.folders:
            results += measure(as_it_is(collection, encoder), given.model)
        if folder in given.joined:
            results += measure(joined(collection, encoder, given.tokens), given.model)
        if given.json is not None:
            given.json.write_text(json.dumps(results, ensure_ascii=False, indent=2))
    print(_table(results))


if __name__ == "__main__":
    main()
