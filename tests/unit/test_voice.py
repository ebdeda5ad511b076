"""The voice of code, texts and pages: words that do not appear, and the length of a sentence."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = 20  # of a sentence, at most
BANNED = re.compile(
    r"\b(anew|whoever|of late|at hand|be had|is at it|roads?|unsaid|dear|has it free"
    r"|what is left of)\b",
    re.IGNORECASE,
)
READ = [
    "worker",
    "sql",
    "migrations",
    "docs",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
SUFFIXES = {".py", ".sql", ".md", ".toml"}
# Pages whose sentences are short already. A new page belongs in this list.
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "docs/assistants.md",
    "docs/comparison.md",
    "docs/data.md",
    "docs/fleet.md",
    "docs/how-to.md",
    "docs/http.md",
    "docs/index.md",
    "docs/install.md",
    "docs/learning.md",
    "docs/python.md",
    "docs/search.md",
    "docs/tutorial.md",
    "docs/web.md",
    "examples/README.md",
]


@pytest.mark.parametrize("place", READ)
def test_words_that_a_reader_would_have_to_decode_do_not_appear(place: str) -> None:
    top = ROOT / place
    files = [top] if top.is_file() else [f for f in top.rglob("*") if f.suffix in SUFFIXES]
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for match in BANNED.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_of_a_page_has_at_most_twenty_words(page: str) -> None:
    long = [
        f"{len(words)} words: {' '.join(words)}"
        for sentence in sentences((ROOT / page).read_text())
        if len(words := sentence.split()) > WORDS
    ]
    assert long == []


def sentences(markdown: str) -> list[str]:
    """Return the sentences of a page, without code blocks and tables of figures.

    What is set as code counts as one word, and a link as its text.
    """
    text = re.sub(r"^```.*?^```", "\n", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(#.*|\|[-| :]*)$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*([*-]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = text.replace("**", "")
    # A cell, an item and a paragraph end a sentence, too.
    parts = re.split(r"\n\s*\n|\||(?<=[.!?:])\s+", text)
    return [" ".join(part.split()) for part in parts if part.strip()]
