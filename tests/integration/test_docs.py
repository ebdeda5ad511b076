"""docs/: the reference is what the code says, and nothing in the other pages is out of the air."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from fix_vectors import VectorWriter

ROOT = Path(__file__).parents[2]
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


def test_a_question_is_written_to_be_computed_once() -> None:
    """In a sort, `<=> embed.query(…)` without `select` is called for every row."""
    shown = [
        file
        for folder in ("README.md", "docs", "examples", "sql", "worker", "benchmarks")
        for file in [ROOT / folder, *(ROOT / folder).rglob("*")]
        if file.suffix in {".md", ".sql", ".py", ".yml", ".yaml"}
    ]
    assert len(shown) > 100
    bare = re.compile(r"<=>\s*embed\.query\(")
    assert [str(file) for file in shown if bare.search(file.read_text())] == []


DOCUMENTED = [
    statement
    for page in (ROOT / "README.md", DOCS / "search.md")
    for block in re.findall(r"```sql\n(.*?)```", page.read_text(), re.DOTALL)
    for statement in re.split(r";\s*", block)
    if "order by embedding <=>" in statement
]


@pytest.mark.parametrize("statement", DOCUMENTED)
def test_documented_orders_leave_rows_without_a_vector_out(
    connection: psycopg.Connection[Any], vectors: VectorWriter, statement: str
) -> None:
    assert len(DOCUMENTED) == 3
    connection.execute("create table article (id int primary key, title text, published boolean)")
    into = "null"
    if "article_embedding" not in statement:
        connection.execute("alter table article add embedding vector(384)")
        into = "'embedding'"
    connection.execute(
        f"select embed.enable('article', array['title'], into_column => {into})".encode()
    )
    connection.execute("insert into article values (1, 'cold', true), (2, 'not yet', true)")
    vectors.embed("article", where="id = 1")
    vectors.know("냉장고에서 이상한 소리가 나요")
    assert connection.execute(statement.encode()).fetchall() == [("cold",)]
