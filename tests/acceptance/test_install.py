"""As a wheel and editable, beside an application that has a ``worker.py`` of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hatchling.build import build_editable, build_wheel

ROOT = Path(__file__).parents[2]
# What embedworker needs is taken from this environment; mypy goes without, in a tenth of the time.
LIBRARIES = os.pathsep.join(path for path in sys.path if (Path(path) / "psycopg").is_dir())

APPLICATION = '''
"""The tasks of an application, in a module that many applications have."""

import embedworker
from embedworker import Client, Hit
from embedworker.integrations.sqlalchemy import Embedded


def answer(client: Client, question: str) -> list[Hit]:
    return client.search("article", question)


def wrong(client: Client) -> int:
    return client.search("article", "a question")  # an error that only types show


FILE = embedworker.__file__
'''
PROGRAM = """
import json, worker
from embedworker.resources import migrations_folder, sql_folder
print(json.dumps([worker.__file__, worker.FILE, str(sql_folder()), str(migrations_folder())]))
"""

Install = tuple[Path, Path]  # of an environment: its Python, and where embedworker must be


@pytest.fixture(scope="module", params=["wheel", "editable"])
def install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """An environment that has embedworker and nothing else."""
    folder = tmp_path_factory.mktemp(request.param)
    build: Callable[[str], str] = build_wheel if request.param == "wheel" else build_editable
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        wheel = folder / build(str(folder))
    finally:
        os.chdir(here)
    venv.create(folder / "venv")
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    libraries = Path(sysconfig.get_path("purelib", vars=paths))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(libraries)
    place = libraries if request.param == "wheel" else ROOT / "worker"
    return folder / "venv" / "bin" / "python", place / "embedworker"


@pytest.fixture
def application(tmp_path: Path) -> Path:
    (tmp_path / "worker.py").write_text(APPLICATION)
    return tmp_path


def run(
    *command: str | Path, folder: Path, libraries: str = LIBRARIES
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": libraries},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_an_application_keeps_its_own_worker(install: Install, application: Path) -> None:
    python, package = install
    said = run(python, "-c", PROGRAM, folder=application)
    assert said.returncode == 0, said.stderr
    own, ours, sql, migrations = json.loads(said.stdout)
    assert own == str(application / "worker.py")
    assert ours == str(package / "__init__.py")
    for found in (sql, migrations):
        assert Path(found).is_relative_to(
            ROOT if package == ROOT / "worker/embedworker" else package
        )


def test_the_command_line_is_ours_in_a_folder_with_a_worker(
    install: Install, application: Path
) -> None:
    python, _ = install
    said = run(python, "-m", "embedworker.cli", "--version", folder=application)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("embedworker 0.")


def test_nothing_else_is_installed(install: Install) -> None:
    python, package = install
    code = (
        "from importlib.metadata import files; import json;"
        "print(json.dumps(sorted({file.parts[0] for file in files('embedworker')})))"
    )
    said = run(python, "-c", code, folder=python.parent, libraries="")
    found = {name for name in json.loads(said.stdout) if not name.endswith(".dist-info")}
    if package.is_relative_to(ROOT):
        assert found == {"embedworker", "_embedworker.pth"}
        modules = {path.parent.name for path in package.parent.glob("*/__init__.py")}
        assert modules | {path.stem for path in package.parent.glob("*.py")} == {"embedworker"}
    else:
        assert found == {"embedworker"}


@pytest.mark.slow
def test_mypy_reads_its_types(install: Install, application: Path) -> None:
    python, _ = install
    command: list[Any] = [sys.executable, "-m", "mypy", "--python-executable", python]
    command += ["--cache-dir", application / "cache", "worker.py"]
    said = run(*command, folder=application, libraries="")
    assert said.stdout.splitlines()[:-1] == [
        'worker.py:14: error: Incompatible return value type (got "Hits", expected "int")'
        "  [return-value]"
    ], said.stdout + said.stderr
