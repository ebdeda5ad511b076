"""The parser of the named queries, and the files it reads."""

from pathlib import Path

import pytest
from psycopg import sql

from embedworker.database import statements
from embedworker.database.statements import purpose, render, statement
from embedworker.resources import sql_folder


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of queries that stands in for the package's own."""
    folder = tmp_path / "queries"
    folder.mkdir()
    monkeypatch.setattr(statements, "sql_folder", lambda: tmp_path)
    return folder


def test_names_purposes_and_statements(queries: Path) -> None:
    (queries / "a.sql").write_text(
        "-- first\n-- One line\n-- and another.\nselect 1\n-- inside\n\nfrom {queue};\n\n"
        "-- second\n-- Short.\nselect %(x)s, '{{}}', 5 %% 2;\n"
    )
    assert purpose("first") == "One line and another."
    rendered = render("first", queue=sql.Identifier("My Schema", 'q"'))
    assert rendered.as_string() == 'select 1\n-- inside\n\nfrom "My Schema"."q""";'.rstrip(";")
    assert statement("second") == "select %(x)s, '{}', 5 %% 2"


def test_unknown_name_lists_what_there_is(queries: Path) -> None:
    (queries / "a.sql").write_text("-- claim\n-- Why.\nselect 1;\n")
    with pytest.raises(LookupError, match="no query is named 'clam'; there are: claim"):
        statement("clam")


def test_duplicate_is_refused(queries: Path) -> None:
    for name in "ab":
        (queries / f"{name}.sql").write_text("-- claim\n-- Why.\nselect 1;\n")
    with pytest.raises(ValueError, match=r"b\.sql: the query 'claim' exists already"):
        statement("claim")


def test_identifiers_cannot_be_forgotten(queries: Path) -> None:
    (queries / "a.sql").write_text("-- claim\n-- Why.\nselect 1 from {queue};\n")
    with pytest.raises(ValueError, match="'claim' needs the identifiers queue; use render"):
        statement("claim")
    with pytest.raises(KeyError, match="queue"):
        render("claim")


@pytest.mark.parametrize(
    "content",
    [
        "select 1;\n",
        "-- claim\nselect 1;\n",
        "-- claim\n-- Why.\n",
        "-- claim\n-- Why.\nselect 1\n",
        "-- claim\n-- Why.\nselect 1;\nselect 2;\n",
        "-- Claim it\n-- Why.\nselect 1;\n",
    ],
    ids=["no-header", "no-purpose", "no-statement", "no-end", "two-statements", "bad-name"],
)
def test_malformed_file_is_refused(queries: Path, content: str) -> None:
    (queries / "bad.sql").write_text(content)
    with pytest.raises(ValueError, match=r"^bad\.sql"):
        statement("claim")


def test_the_package_ships_its_queries() -> None:
    assert (sql_folder() / "queries").is_dir()
    assert purpose("connection_prepare")
