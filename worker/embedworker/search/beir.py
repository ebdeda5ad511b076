"""Questions whose right answers are known: a folder in BEIR's format, or a file of one's own.

A folder holds ``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``,
``text``) and the judgements, ``qrels.tsv`` or ``qrels/test.tsv`` (question, document, grade; a
header line, tabs between). See https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedworker.database.numbers import loads
from embedworker.errors import ConfigurationError
from embedworker.search.measures import Relevance

__all__ = ["Collection", "OwnQuestion", "read_asked", "read_beir", "read_questions"]

JUDGEMENTS = ("qrels.tsv", "qrels/test.tsv")


@dataclass(frozen=True)
class Collection:
    """What is asked, and what the right answers are; texts by id."""

    name: str
    questions: dict[str, str]
    relevance: Relevance
    documents: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Collection {self.name}: {len(self.documents)} documents, "
            f"{len(self.questions)} questions>"
        )


@dataclass(frozen=True, slots=True)
class OwnQuestion:
    """A question and the key of the row that answers it, as the file has it.

    ``place`` is the file and line, for messages.
    """

    question: str
    key: Any
    place: str


def read_beir(folder: Path) -> Collection:
    """Read a folder in BEIR's format. Questions without a judgement are left out.

    The text of a document is title, a space and text, without blanks around it.

    Raises:
        ConfigurationError: a file is missing or wrong; says which line.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder; expected one in BEIR's format")
    documents: dict[str, str] = {}
    for line, entry in _entries(folder / "corpus.jsonl"):
        text = f"{_text(line, entry, 'title', '')} {_text(line, entry, 'text')}".strip()
        _add(documents, line, _text(line, entry, "_id"), text)
    questions: dict[str, str] = {}
    for line, entry in _entries(folder / "queries.jsonl"):
        _add(questions, line, _text(line, entry, "_id"), _text(line, entry, "text").strip())
    relevance = _judgements(folder, documents, questions)
    asked = {number: questions[number] for number in relevance}
    return Collection(folder.resolve().name, asked, relevance, documents)


def read_questions(file: Path) -> list[OwnQuestion]:
    """Read lines of ``{"question": "…", "key": …}``; a question may have several lines.

    Raises:
        ConfigurationError: the file is missing or wrong; says which line.
    """
    found = []
    for line, entry in _entries(file):
        question = _text(line, entry, "question").strip()
        if not question:
            raise ConfigurationError(f"{line}: the question is blank")
        if entry.get("key") is None:
            raise ConfigurationError(f'{line}: expected "key", the key of the row that answers it')
        found.append(OwnQuestion(question, entry["key"], line))
    if not found:
        raise ConfigurationError(f"{file} is empty; expected lines of " + _OWN_LINE)
    return found


def read_asked(file: Path) -> list[str] | None:
    """Read lines of ``{"question": "…"}``; None where a line names a key, for others to read.

    Raises:
        ConfigurationError: the file is missing or wrong; says which line.
    """
    entries = list(_entries(file))
    if any("key" in entry for _, entry in entries):
        return None
    for line, entry in entries:
        if unknown := sorted(entry.keys() - {"question"}):
            raise ConfigurationError(f'{line}: unknown field "{unknown[0]}"; expected {_OWN_LINE}')
    found = list(dict.fromkeys(_text(line, entry, "question").strip() for line, entry in entries))
    if not all(found) or not found:
        raise ConfigurationError(f"{file} is empty or has a blank question; expected {_OWN_LINE}")
    return found


_OWN_LINE = '{"question": "how do I …?", "key": 17}'


def _judgements(
    folder: Path, documents: dict[str, str], questions: dict[str, str]
) -> dict[str, dict[str, int]]:
    file = next((folder / name for name in JUDGEMENTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigurationError(f"{folder} has neither {' nor '.join(JUDGEMENTS)}")
    relevance: dict[str, dict[str, int]] = {}
    for number, content in _lines(file):
        line = f"{file}, line {number}"
        if number == 1 and not content.rpartition("\t")[2].strip().isdigit():
            continue  # the header
        try:
            question, document, grade = content.split("\t")
            graded = int(grade)
        except ValueError:
            raise ConfigurationError(
                f"{line}: expected question, document and a whole number, tabs between"
            ) from None
        if question not in questions:
            raise ConfigurationError(f"{line}: the question {question!r} is not in queries.jsonl")
        if document not in documents:
            raise ConfigurationError(f"{line}: the document {document!r} is not in corpus.jsonl")
        relevance.setdefault(question, {})[document] = graded
    if not relevance:
        raise ConfigurationError(f"{file} holds no judgement")
    return relevance


def _entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not file.is_file():
        raise ConfigurationError(f"there is no file {file}")
    for number, content in _lines(file):
        line = f"{file}, line {number}"
        try:
            entry = loads(content)
        except ValueError as error:
            raise ConfigurationError(f"{line} is not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{line}: expected an object, {{…}}")
        yield line, entry


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines, which also splits at the separators of Unicode that JSON leaves in strings.
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as opened:
            for number, content in enumerate(opened, 1):
                if content.strip():
                    yield number, content.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not in UTF-8: {error}") from None


_REQUIRED = object()


def _text(line: str, entry: dict[str, Any], name: str, otherwise: object = _REQUIRED) -> str:
    value = entry.get(name)
    if value is None:
        value = otherwise
    if not isinstance(value, str):
        raise ConfigurationError(f'{line}: expected "{name}" with a text, got {entry.get(name)!r}')
    return value


def _add(texts: dict[str, str], line: str, number: str, text: str) -> None:
    if number in texts:
        raise ConfigurationError(f"{line}: the id {number!r} is there already")
    texts[number] = text
