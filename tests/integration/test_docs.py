"""docs/: the reference is what the code says, and nothing in the other pages is out of the air."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The program that writes the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(
    connection: psycopg.Connection[Any], generate: ModuleType
) -> None:
    written = (DOCS / "reference.md").read_text().splitlines()
    assert written == generate.reference(connection).splitlines(), "python docs/generate.py --write"


def test_what_is_public(connection: psycopg.Connection[Any], generate: ModuleType) -> None:
    """Also where tables are enabled: what is made for one of them is no part of the reference."""
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    names = {row[0] for row in connection.execute(generate.FUNCTIONS)}
    assert {"enable", "disable", "search", "query", "sweep", "restrict_questions"} <= names
    assert not {name for name in names if name.startswith(("_", "source_", "dblink"))}
    assert not {"ask", "await"} & names


def test_a_public_function_without_a_comment_is_refused(
    connection: psycopg.Connection[Any], generate: ModuleType
) -> None:
    connection.execute("create function embed.silent() returns int language sql return 1")
    with pytest.raises(SystemExit, match=r"embed\.silent has no comment"):
        generate.reference(connection)
