"""What is installed without extras: it stays small, it works, and what is missing is named."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import embedworker
from embedworker.errors import MissingExtra
from embedworker.extras import EXTRAS, installed, require

ROOT = Path(__file__).parents[2]
PACKAGE = Path(embedworker.__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST_BYTES = 80_000_000

# Modules that an extra's packages bring along and that code of ours imports, too.
BROUGHT = {"huggingface_hub", "safetensors", "tokenizers", "transformers"}
WITHOUT = sorted({m for modules in EXTRAS.values() for m in modules} | BROUGHT | {"scipy"})

# pytest loads embedworker.testing, and nothing else does.
THEIRS = {"pytest"}

# Below these nothing may need an extra; of the rest each module belongs to one.
ALONE = ("database", "integrations")


# Of `integrations`, what only projects of that framework import.
FRAMEWORKS = {"django"}


def plain(requirement: str) -> str:
    """The name of the package that a line of requirements is about."""
    name = re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def required(extra: str | None) -> set[str]:
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {plain(line) for line in lines} - {"embedworker"}


def test_modules_and_packages_of_each_extra_agree() -> None:
    packages = packages_distributions()
    for extra, modules in EXTRAS.items():
        assert {plain(name) for module in modules for name in packages[module]} == required(extra)


def test_every_import_is_of_a_package_that_is_required() -> None:
    packages = packages_distributions()
    known = required(None).union(*(required(extra) for extra in EXTRAS))
    undeclared = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in (
                {name.partition(".")[0] for name in names} - {"embedworker"} - BROUGHT - THEIRS
            ):
                if module in sys.stdlib_module_names:
                    continue
                if not {plain(name) for name in packages[module]} & known:
                    undeclared.add((file.name, module))
    assert not undeclared


def installed_files(names: set[str]) -> Iterator[Path]:
    """The files of these packages and of all that they need here."""
    seen: set[str] = set()
    while names := names - seen:
        seen |= names
        found = [distribution(name) for name in names]
        needed = [Requirement(line) for each in found for line in each.requires or ()]
        names = {
            plain(each.name)
            for each in needed
            if each.marker is None or each.marker.evaluate({"extra": "binary"})  # psycopg[binary]
        }
        for each in found:
            yield from (Path(str(file.locate())) for file in each.files or ())


def test_without_extras_it_takes_eighty_megabytes_at_most() -> None:
    files = {file for file in installed_files(required(None)) if file.is_file()}
    files |= {file for file in PACKAGE.rglob("*") if file.is_file()}
    assert not [file for file in files if file.parts[-2:] == ("torch", "__init__.py")]
    assert 40_000_000 < sum(file.stat().st_size for file in files) < MOST_BYTES


def without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as if no extra were installed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({WITHOUT}))\n"
    return subprocess.run(
        [sys.executable, "-c", block + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return without_extras("from embedworker.cli.app import main; main()", *arguments)


def test_what_an_application_imports_needs_no_extra() -> None:
    modules = [
        ".".join(("embedworker", *file.relative_to(PACKAGE).with_suffix("").parts))
        for part in ALONE
        for file in (PACKAGE / part).rglob("*.py")
        if file.stem != "__init__" and not FRAMEWORKS.intersection(file.parts)
    ]
    assert len(modules) >= 20
    modules += ["embedworker.cli.app", "embedworker.cli.database", "embedworker.service.doctor"]
    said = without_extras(
        f"from importlib import import_module\nfor name in {modules}: import_module(name)\n"
        "from embedworker import AsyncClient, Client, Hit"
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        (["run"], "worker"),
        (["run", "--only-queries"], "worker"),
        (["models"], "worker"),
        (["demo"], "worker,embedded"),
        (["eval", "folder"], "worker,eval"),
        (["serve"], "worker,serve"),
        (["web"], "web"),
        (["mcp"], "mcp"),
        (["db", "start"], "embedded"),
        (["migrate"], "embedded"),
        (["search", "article", "a question"], "embedded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
@pytest.mark.slow
def test_a_command_without_its_extra_says_what_to_install(
    arguments: list[str], extras: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDWORKER_DATA_DIR", str(tmp_path / "data"))
    said = command(*arguments)
    assert said.returncode == 1
    assert said.stderr.startswith("error: ")
    assert said.stderr.endswith(f"installed; run: pip install 'embedworker[{extras}]'\n")
    assert said.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_the_worker_of_python_says_it_too() -> None:
    said = without_extras("from embedworker import Worker")
    assert "MissingExtra: Worker needs filelock, numpy" in said.stderr
    assert said.stderr.endswith("pip install 'embedworker[worker]'\n")


def test_what_is_installed_is_not_missing() -> None:
    assert installed("worker")
    require("this test", *EXTRAS)


def test_one_missing_module_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra) as refused:
        require("`embedworker serve`", "worker", "serve")
    assert str(refused.value) == (
        "`embedworker serve` needs uvicorn, which is not installed; run: "
        "pip install 'embedworker[serve]'"
    )
