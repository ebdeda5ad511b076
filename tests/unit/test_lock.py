"""The tested packages, by hash: whole, the same in both files, and what make and Docker use."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"dev": ["dev"], "worker": ["worker", "openvino"]}
ENTRY = re.compile(
    r"([\w.-]+)==(\S+)(?: ; [^\\]+)? \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
)


def locked(name: str) -> dict[str, str]:
    """The versions of a file, which holds nothing but packages with their hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert not re.search("://|--index|--find-links|file:", text)
    lines = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    assert ENTRY.sub("", lines).strip() == ""
    return {canonicalize_name(found[1]): found[2] for found in ENTRY.finditer(lines)}


def direct(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for, extras of extras too."""
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        for line in PROJECT["project"]["optional-dependencies"][extra]:
            wanted = Requirement(line)
            if wanted.name == "embedworker":
                lines += map(str, direct(sorted(wanted.extras)))
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_each_file_has_all_that_is_needed(name: str) -> None:
    versions = locked(name)
    todo, seen = direct(EXTRAS[name]), set[str]()
    todo += [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    while todo:
        wanted = todo.pop()
        key = canonicalize_name(wanted.name)
        extras = ["", *sorted(wanted.extras)]
        if key == "torch" or (
            wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
        ):
            continue
        assert key in versions, f"{wanted} is not in requirements/{name}.txt; run: make lock"
        assert Version(versions[key]) in wanted.specifier, f"{wanted}; run: make lock"
        if (mark := f"{key}{extras}") in seen:
            continue
        seen.add(mark)
        try:
            needed = [Requirement(line) for line in distribution(wanted.name).requires or ()]
        except PackageNotFoundError:  # of a set-up that is older than the file
            continue
        for each in needed:
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                each.marker = None
                todo.append(each)


def test_the_image_has_versions_that_are_tested() -> None:
    assert locked("worker").items() <= locked("dev").items()
    assert "torch" not in locked("dev")
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.M)


def test_the_image_takes_its_packages_before_its_sources() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    build = compose["services"]["worker"]["build"]
    text = build["dockerfile_inline"].replace("\\\n", " ")
    steps = [line for line in text.splitlines() if re.match("COPY|RUN|ARG", line)]
    copied = [path for step in steps if step.startswith("COPY") for path in step.split()[1:-1]]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path.split("/")[0], pattern) for pattern in allowed), path
    order = {
        what: next(number for number, step in enumerate(steps) if what in step)
        for what in ("--require-hashes", "ARG TORCH_INDEX", " torch", "COPY worker")
    }
    assert "--no-cache-dir --no-deps --no-build-isolation ." in steps[-1]
    assert order["--require-hashes"] < order["ARG TORCH_INDEX"] < order[" torch"]
    assert order[" torch"] < order["COPY worker"]
    # Without an index that the person names there is no image, and so none with CUDA by default.
    assert '--index-url "$$TORCH_INDEX" torch' in steps[order[" torch"]]
    assert build["args"]["TORCH_INDEX"].startswith("${TORCH_INDEX:?")


def test_make_installs_by_hash_and_says_how_much() -> None:
    text = (ROOT / "Makefile").read_text()
    recipe = text.partition("\n$(STAMP): ")[2]
    assert "--no-deps --require-hashes --requirement $(LOCK)" in recipe
    assert "LOCK := requirements/dev.txt" in text
    assert re.search(r"downloads [\d.]+ GB", recipe)
    assert re.search(r"about \d+ minutes", recipe)
