"""The house: how large a class and a file may be, and that imports go downwards."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "worker" / "embedworker"
CLASS = 200  # lines, at most
FILE = 350  # lines, at most
# From the top. A room imports from lower floors. Rooms of the top and the lowest floor also import
# from each other.
FLOORS = [
    ["cli", "integrations", "testing", "__init__"],
    ["demo", "serving", "web", "assistant", "fleet"],
    ["state", "service", "adapt"],
    ["search"],
    ["queue"],
    ["database"],
    ["model"],
    [
        "endpoints",
        "errors",
        "extras",
        "figures",
        "machine",
        "normalization",
        "resources",
        "settings",
    ],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def test_no_file_is_too_long() -> None:
    sizes = {str(f.relative_to(ROOT)): len(f.read_text("utf-8").splitlines()) for f in FILES}
    assert {name: size for name, size in sizes.items() if size > FILE} == {}


def test_no_class_is_too_long() -> None:
    sizes = {
        f"{file.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert len(sizes) > 200
    assert {name: size for name, size in sizes.items() if size > CLASS} == {}


def test_imports_go_downwards() -> None:
    upward = []
    for file in FILES:
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        floor = FLOOR[room]
        shared = floor in (0, len(FLOORS) - 1)
        for other in _imported(file) - {room}:
            if FLOOR[other] < floor or (FLOOR[other] == floor and not shared):
                upward.append(f"{file.relative_to(ROOT)} imports {other}")
    assert upward == []


def _imported(file: Path) -> set[str]:
    """Return the rooms of this package that a file names in its imports, wherever they stand."""
    names = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    rooms = {words[1] for words in parts if words[0] == "embedworker" and len(words) > 1}
    return {name if name in FLOOR else "__init__" for name in rooms}
