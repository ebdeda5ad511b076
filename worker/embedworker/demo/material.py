"""The sample articles, and the questions that are asked of them."""

import json
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["Article", "Delete", "Find", "Insert", "Script", "Update", "articles", "script"]


@dataclass(frozen=True, slots=True)
class Article:
    """One row of the table."""

    lang: str
    title: str
    content: str


@dataclass(frozen=True, slots=True)
class Find:
    """A question, and the title it should find."""

    question: str
    expects: str


@dataclass(frozen=True, slots=True)
class Insert:
    """An article that comes later, and the question that should then find it."""

    title: str
    content: str
    question: str


@dataclass(frozen=True, slots=True)
class Update:
    """New text for the article ``expects``, with a question for the old and one for the new."""

    expects: str
    old_question: str
    new_content: str
    new_question: str


@dataclass(frozen=True, slots=True)
class Delete:
    """An article to delete, and the question that found it."""

    expects: str
    question: str


@dataclass(frozen=True, slots=True)
class Script:
    """What the demonstration does, in order."""

    korean: Find
    english_to_korean: Find
    insert: Insert
    update: Update
    delete: Delete


def articles() -> list[Article]:
    """Return the sample articles."""
    lines = files(__package__).joinpath("articles.jsonl").read_text("utf-8").splitlines()
    return [Article(**json.loads(line)) for line in lines]


def script() -> Script:
    """Return the questions and changes that are shown."""
    said = json.loads(files(__package__).joinpath("questions.json").read_text("utf-8"))
    return Script(
        korean=Find(**said["korean"]),
        english_to_korean=Find(**said["english_to_korean"]),
        insert=Insert(**said["insert"]),
        update=Update(**said["update"]),
        delete=Delete(**said["delete"]),
    )
