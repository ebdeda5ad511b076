"""docs/testing.md: the plugin for the tests of an application, as the page has it."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedworker.database.embedded.cluster import Cluster
from embedworker.errors import ConfigurationError
from embedworker.model import testing_words
from embedworker.model.testing_words import alike, words_vector

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
OWN_SERVER = """
@pytest.fixture(scope="session")
def embedworker_server():
    return {url!r}
"""


@pytest.fixture(autouse=True)
def nothing_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing_words, "_alike", {})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.S):
        (tmp_path / name).write_text(code)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["conftest.py", "test_search.py"]
    return tmp_path


def run(project: Path) -> str:
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", project],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return said.stdout + said.stderr


def test_the_page(project: Path) -> None:
    """With the embedded server, from nothing; torch is not loaded."""
    (project / "test_torch.py").write_text(
        "import sys\n\ndef test_it(shop):\n    assert 'torch' not in sys.modules\n"
    )
    assert re.search(r"\b2 passed", run(project)), run(project)


def test_with_a_server_of_ones_own(project: Path, server: Cluster) -> None:
    """And what a test sees that goes wrong: no worker, a table that is not enabled."""
    conftest = project / "conftest.py"
    conftest.write_text(conftest.read_text() + OWN_SERVER.format(url=server.url()))
    (project / "test_search.py").write_text(
        """
import psycopg
import pytest
from embedworker.errors import SourceError
from embedworker.testing import wait_until_embedded

def test_no_worker(embedworker_database):
    with psycopg.connect(embedworker_database, autocommit=True) as connection:
        connection.execute("create table note (id integer primary key, body text)")
        with pytest.raises(SourceError, match="note is not enabled"):
            wait_until_embedded(embedworker_database, "note")
        connection.execute("select embed.enable('note', array['body'])")
        connection.execute("insert into note values (1, 'one')")
        with pytest.raises(TimeoutError, match="1 rows still wait .*no worker.*commit"):
            wait_until_embedded(embedworker_database, timeout=0.1)

def test_with_worker(embedworker_database, embedworker_worker):
    wait_until_embedded(embedworker_database)
"""
    )
    assert re.search(r"\b2 passed", run(project)), run(project)


def cosine(one: str, other: str) -> float:
    return float(np.dot(words_vector(one), words_vector(other)))


@pytest.mark.smoke
def test_the_cosine_is_that_of_shared_words() -> None:
    assert cosine("the red car", "THE RED CAR") == pytest.approx(1, abs=1e-6)
    assert cosine("red car", "red bicycle") == pytest.approx(0.5, abs=0.1)
    assert cosine("빨간 차", "빨간 자전거") == pytest.approx(0.5, abs=0.1)
    assert cosine("one two three four", "one") == pytest.approx(0.5, abs=0.1)
    assert abs(cosine("red car", "opening hours")) < 0.2
    assert math.isfinite(cosine("", "…"))


@pytest.mark.smoke
def test_phrases_that_are_alike() -> None:
    alike("refund", "money back")
    alike("Refund", "reimbursement")
    alike("a lift", "an elevator")
    assert cosine("refund", "money back") == pytest.approx(1, abs=1e-6)
    assert cosine("I want my money back", "I want my reimbursement") == pytest.approx(1, abs=1e-6)
    assert abs(cosine("refund", "a lift")) < 0.2
    alike("money back", "an elevator")  # joins what was declared before
    assert cosine("reimbursement", "a lift") == pytest.approx(1, abs=1e-6)
    for wrong in ((), ("one",), ("one", "…")):
        with pytest.raises(ConfigurationError, match="two phrases or more"):
            alike(*wrong)
