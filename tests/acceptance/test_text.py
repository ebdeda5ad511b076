"""The command line in an ASCII locale, with arguments that are not UTF-8, and under Kubernetes."""

import json
import os
import subprocess
import sys

import psycopg
import pytest
from fix_cli import Cli, embedworker
from fix_vectors import VectorWriter

# An ASCII locale that Python does not take for UTF-8, as it does for C by itself.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
QUESTION = "버스는 어디로 가나요"
TEXT = "402번 버스 🚌"


def run(*arguments: str | bytes, **environment: str | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [os.fsencode(sys.executable), b"-m", b"embedworker.cli", *map(os.fsencode, arguments)],
        env={os.fsencode(k): os.fsencode(v) for k, v in {**os.environ, **environment}.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=110,
        check=False,
    )


@pytest.fixture
def known(cli: Cli, vectors: VectorWriter, connection: psycopg.Connection[object]) -> Cli:
    """A database in which one question has its answer, without a worker."""
    connection.execute("create table article (id int primary key, title text)")
    connection.execute("select embed.enable('article', array['title'])")
    connection.execute("insert into article values (1, %s)", [TEXT])
    vectors.embed("article")
    vectors.know(QUESTION)
    return cli


def test_korean_in_an_ascii_locale(known: Cli) -> None:
    given = {**known.environment, **ASCII}
    shown = run("search", "article", QUESTION, **given)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == run("search", "article", QUESTION, **known.environment).stdout
    assert TEXT.encode() in shown.stdout


def test_korean_where_the_locale_has_no_letters_for_it(known: Cli) -> None:
    given = {**known.environment, "PYTHONIOENCODING": "latin-1"}
    shown = run("search", "article", QUESTION, **given)
    assert shown.returncode == 0, shown.stderr
    assert rb"402\ubc88" in shown.stdout
    said = run("search", "article", QUESTION, "--json", **given)
    assert said.stdout.isascii()
    assert json.loads(said.stdout)[0]["row"]["title"] == TEXT


@pytest.mark.parametrize("locale", [{}, ASCII], ids=["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "variables", "where"),
    [
        ([b"search", b"article", b"caf\xe9"], {}, "argument 3"),
        ([b"enable", b"caf\xe9", b"title"], {}, "argument 2"),
        ([b"--database-url", b"postgresql://u:caf\xe9@h/d", b"status"], {}, "argument 2"),
        ([b"status"], {"DATABASE_URL": b"postgresql://u:caf\xe9@h/d"}, "DATABASE_URL"),
        ([b"models"], {"EMBEDWORKER_MODEL": b"caf\xe9"}, "EMBEDWORKER_MODEL"),
    ],
)
def test_what_is_not_utf8_is_refused(
    arguments: list[bytes], variables: dict[str, bytes], where: str, locale: dict[str, str]
) -> None:
    said = run(*arguments, **locale, **variables)
    assert said.returncode == 2
    assert said.stderr.decode().startswith(f"error: {where} is not UTF-8")
    assert b"Traceback" not in said.stderr
    assert b"postgresql" not in said.stderr


def test_an_error_in_korean_in_an_ascii_locale(cli: Cli) -> None:
    said = run("sweep", "버스", **cli.environment, **ASCII)
    assert said.returncode == 1
    assert "버스".encode() in said.stderr
    assert b"Traceback" not in said.stderr


@pytest.mark.parametrize("arguments", [["run", "--once"], ["serve", "--help"], ["status"]])
def test_a_link_of_kubernetes_stops_no_command(cli: Cli, arguments: list[str]) -> None:
    links = {
        f"EMBEDWORKER_{name}_PORT": "tcp://10.0.0.1:9464" for name in ("METRICS", "SERVE", "DB")
    }
    said = embedworker(*arguments, **cli.environment, **links)
    assert said.returncode == 0, said.stderr
    assert "tcp" not in said.stderr
