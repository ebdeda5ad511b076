"""The table of situations names tests that exist, and leaves no row without one."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = [line for line in (TESTS / "SITUATIONS.md").read_text("utf-8").splitlines() if "`" in line]
ROWS = [line for line in ROWS if re.match(r"\| (S\d+|–|\d\.\d+) \|", line)]
NAMED = re.compile(r"`((?:\w+/)+test_\w+\.py)(?:::(test_\w+))?`")
# Named as a whole; their tests may be about to be written.
WHOLE = {
    "acceptance/test_connections.py",
    "integration/test_alembic.py",
    "integration/test_sqlalchemy.py",
}
# Every number of the list the table was made from.
NUMBERS = (
    "1 2 3 5 6 7 8 10 11 13 14 15 16 18 19 20 21 22 24 25 26 28 29 31 32 34 36 38 39 40 41 43 44 46"
    " 48 49 50 51 52 54 55 57 59 60 61 62 65 66 68 70 72 73 74 75 76 78 81"
)


@cache
def functions(path: str) -> set[str]:
    """Names of the tests of a file."""
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_is_named_exists() -> None:
    missing = [
        f"{path}::{name}"
        for row in ROWS
        for path, name in NAMED.findall(row)
        if path not in WHOLE
        if not (TESTS / path).is_file() or (name and name not in functions(path))
    ]
    assert missing == []


def test_every_situation_has_a_row_with_a_test() -> None:
    found = [row.split("|")[1].strip() for row in ROWS]
    assert [number for number in found if number.startswith("S")] == [
        f"S{n}" for n in NUMBERS.split()
    ]
    assert [row for row in ROWS if not NAMED.search(row.rsplit("|", 2)[1])] == []
    assert [row for row in ROWS if row.count("|") != 5] == []
