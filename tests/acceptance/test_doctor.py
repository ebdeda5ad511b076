"""``embedworker doctor``: what it prints, and when it exits with 1."""

from pathlib import Path

import psycopg
import pytest
from fix_cli import Cli, embedworker
from psycopg import sql


def states(document: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    return {(row["subject"], row["check"]): row["state"] for row in document}


def test_with_and_without_a_worker(cli: Cli) -> None:
    found = states(cli.json("doctor", code=1))
    assert found["workers", "passages"] == "problem"
    assert found["database", "notifications"] == "ok"
    assert found["database", "schema"] == "ok"
    assert found["questions", "embed.query"] == "ok"
    with cli.worker():
        said = cli("doctor")
        assert said.returncode == 0, said.stdout
        assert "0 problem" in said.stdout
        assert "embed.document" in said.stdout
        quiet = cli.ok("doctor", "--quiet")
        assert quiet.splitlines()[-1].startswith("0 problem, ")
        assert "ok   " not in quiet


@pytest.mark.smoke
def test_advice_is_printed(cli: Cli) -> None:
    said = cli("doctor", "--quiet")
    assert said.returncode == 1
    assert "Changes wait until a worker runs: embedworker run." in said.stdout


def test_server_that_is_not_there() -> None:
    said = embedworker(
        "doctor", EMBEDWORKER_DATABASE_URL="postgresql://me:secret4711@127.0.0.1:1/x"
    )
    assert said.returncode == 1
    assert "connection" in said.stdout
    assert "secret4711" not in said.stdout + said.stderr
    assert "Traceback" not in said.stderr


def test_a_check_that_cannot_be_made_stops_no_other(cli: Cli) -> None:
    nowhere = "postgresql://127.0.0.1:1/x"
    found = states(cli.json("doctor", code=1, EMBEDWORKER_LISTEN_URL=nowhere))
    assert found["database", "notifications"] == "problem"
    assert found["models", "disk"] == "ok"


def test_database_that_is_not_set_up(bare_database: str) -> None:
    said = embedworker("doctor", EMBEDWORKER_DATABASE_URL=bare_database)
    assert said.returncode == 1
    assert "Run `embedworker migrate`." in said.stdout


def test_model_that_is_not_there_and_another_version(cli: Cli, tmp_path: Path) -> None:
    missing = str(tmp_path / "gone")
    with psycopg.connect(cli.url, autocommit=True) as connection:
        connection.execute("select embed.add_model(%s, 384)", [missing])
        connection.execute("create table note (id int primary key, body text)")
        connection.execute(
            sql.SQL("select embed.enable('note', array['body'], model => {})").format(missing)
        )
        connection.execute("update embed.schema_version set version_num = '0000'")
    found = states(cli.json("doctor", code=1))
    assert found[missing, "files"] == "problem"
    assert found["database", "schema"] == "problem"
