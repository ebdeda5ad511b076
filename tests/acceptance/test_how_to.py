"""The pages of docs/ and the README: SQL runs, commands exist, names are not made up."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer.main
from fix_database import _new_database as new_database
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from waiting import wait_until

from embedworker import Worker, testing
from embedworker.cli.app import app
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.service.monitoring import metrics
from embedworker.settings import load
from embedworker.settings.reference import describe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LONGEST = 60.0  # seconds on a machine that does much else
# Programs of others that the pages use, whose flags are not looked at.
OTHERS = {"createdb", "kill", "make", "pg_dump", "pg_dumpall", "pg_restore", "pip", "psql"}
OTHERS |= {"python", "wait"}
# Variables that no setting of the worker is behind, and what the pages abbreviate.
VARIABLES = {"EMBEDWORKER_DATABASE_URL"}


def sections() -> dict[str, list[str]]:
    """The SQL of every recipe that has some, by its heading, and that of two pages as a whole."""
    parts = re.split(r"^## ", (DOCS / "how-to.md").read_text(), flags=re.M)[1:]
    parts += [
        f"{page.name}\n{page.read_text()}" for page in (ROOT / "README.md", DOCS / "search.md")
    ]
    found = {p.partition("\n")[0]: re.findall(r"```sql\n(.*?)```", p, re.S) for p in parts}
    return {heading: code for heading, code in found.items() if code}


def commands(page: Path) -> list[str]:
    """The lines of a page that are typed into a shell, without their remarks."""
    text = page.read_text()
    code = "".join(re.findall(r"```(?:console|sh)\n(.*?)```", text, re.S))
    if page.name == "tutorial.md":  # what is not typed there is output
        code = "\n".join(line[2:] for line in code.splitlines() if line.startswith("$ "))
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    named = re.findall(r"`(embedworker(?: [^`]*)?)`", prose)
    return [line for line in [*code.splitlines(), *named] if line and "…" not in line]


@pytest.fixture
def url(server: Cluster, hash_template: str) -> Iterator[str]:
    """A database with the table of the recipes, embedded; what it makes of roles goes with it."""
    with pytest.MonkeyPatch.context() as patch, psycopg.connect(server.url()) as other:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        other.autocommit = True
        roles = {name for (name,) in other.execute("select rolname from pg_roles")}
        with new_database(server, hash_template) as made:
            with connect(made) as connection:
                set_up_loopback(connection)
                connection.execute(
                    "create table article (id serial primary key, title text, content text,"
                    " tenant text not null default 'a', published boolean not null default true);"
                    "insert into article (title, content) values ('Tea', 'Hot.'), ('Bread', 'Soft')"
                )
                connection.execute("select embed.enable('article', array['title', 'content'])")
            yield made
        for (name,) in other.execute("select rolname from pg_roles").fetchall():
            if name not in roles:
                other.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("heading", sections())
@pytest.mark.smoke
def test_the_sql_of_a_recipe(server: Cluster, url: str, heading: str) -> None:
    code = "\n".join(sections()[heading])
    # In one session, since a recipe may set something; its own time-out is for idle machines.
    code = code.replace("embed.query_timeout = '30s'", "embed.query_timeout = '60s'")
    code = code.replace("database shop", f"database {conninfo_to_dict(url)['dbname']}")
    if re.search(r"embed\.(query|search|similar|similarity)\(", code):
        settings = load(index_after_rows=10**9, poll_max=0.2)
        with Worker(url, settings) as worker, connect(url) as connection:
            assert worker.wait_ready(LONGEST)
            wait_until(
                lambda: connection.execute(
                    "select from embed.status where name = 'article' and embedded = rows"
                ).fetchall(),
                LONGEST,
            )
            _run(server, url, code)
    else:
        _run(server, url, code)


def _run(server: Cluster, url: str, code: str) -> None:
    said = subprocess.run(
        [server.installation.program("psql"), url, "-X", "-v", "ON_ERROR_STOP=1"],
        input=code,
        env={**os.environ, "PGOPTIONS": "-c embed.query_timeout=60s -c embed.worker_grace=60s"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert said.returncode == 0, said.stderr


def test_back_up_and_restore(server: Cluster, url: str, tmp_path: Path) -> None:
    """Its commands with the programs of the server's own installation; roles are there already."""
    text = (DOCS / "how-to.md").read_text()
    recipe = text.partition("## Back up and restore\n")[2].partition("\n## ")[0]
    (code, _) = re.findall(r"```console\n(.*?)```", recipe, re.S)
    given = conninfo_to_dict(url)
    # The addresses that a person would have in the environment, too.
    environment = {
        "PATH": f"{Path(server.installation.program('psql')).parent}:{os.environ['PATH']}",
        "PGHOST": str(given["host"]),
        "PGPORT": str(given["port"]),
        "PGUSER": str(given["user"]),
        "PGPASSWORD": str(given["password"]),
    }
    program = f"{shlex.quote(sys.executable)} -P -m embedworker.cli"
    code = code.replace("embedworker", program).replace(" shop\n", f" {given['dbname']}\n")
    Worker(url, load(), lanes=["passages"]).run_once()
    with connect(url) as connection:
        kept = connection.execute("select * from article_embedding order by id").fetchall()
    try:
        said = subprocess.run(
            ["bash", "-e", "-c", code],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        with connect(server.url("shop_again")) as connection:
            query = "select * from article_embedding order by id"
            assert connection.execute(query).fetchall() == kept
            Worker(server.url("shop_again"), load(), lanes=["passages"]).run_once()
            assert connection.execute(query).fetchall() == kept
        assert len(kept) == 2
    finally:
        with psycopg.connect(server.url(), autocommit=True) as other:
            other.execute("drop database if exists shop_again with (force)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.smoke
def test_every_command_exists(page: Path) -> None:
    if page.name == "reference.md":
        return  # written from the commands themselves
    for line in commands(page):
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words.pop(0)
        assert words, line
        if words[0] == "embedworker":
            resolve(words[1:], line)
        else:
            assert words[0] in OTHERS | {"export"}, line


def resolve(words: list[str], line: str) -> None:
    """Walk the tree of commands; every flag must be one of the command that it is given to."""
    command: Any = typer.main.get_command(app)
    value = False
    for word in words:
        if value:
            value = False
            continue
        if re.match(r"[|&<>]|2>", word):
            return
        below = getattr(command, "commands", {})
        if word in below:
            command = below[word]
        elif word.startswith("-"):
            flags = {f: p for p in command.params for f in [*p.opts, *p.secondary_opts]}
            assert word in flags or word == "--help", f"{line}: {command.name} has no {word}"
            value = word in flags and not flags[word].is_flag
        else:
            # An argument, which a group of commands does not have.
            assert not below or word in ("COMMAND", "|"), f"{line}: no command {word}"


def test_a_command_that_does_not_exist_is_seen() -> None:
    for line in ("run --no-such-flag", "no-such-command", "db restart"):
        with pytest.raises(AssertionError, match=r"has no|no command"):
            resolve(line.split(), line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_are_not_made_up(page: Path) -> None:
    """Settings, metrics, SQL functions, and files that a page links to."""
    text = page.read_text()
    variables = {row.variable for row in describe()} | VARIABLES
    assert set(re.findall(r"\bEMBEDWORKER_[A-Z_]*[A-Z]\b", text)) <= variables
    known = set(re.findall(r"embedworker_[a-z_]+", str(metrics.__doc__)))
    known |= {name for name in testing.__all__ if name.startswith("embedworker_")}
    assert set(re.findall(r"\bembedworker_(?!eval\b)[a-z_]+", text)) <= known
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        headings = (page.parent / target if target else page).read_text()
        assert anchor in _anchors(headings), f"{target}#{anchor}"


def _anchors(text: str) -> set[str]:
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.smoke
def test_functions_are_not_made_up(connection: psycopg.Connection[Any]) -> None:
    names = {
        name
        for (name,) in connection.execute(
            "select proname from pg_proc where pronamespace = 'embed'::regnamespace"
            " union all select relname from pg_class where relnamespace = 'embed'::regnamespace"
        )
    }
    # Settings of a session, and files whose names are like it.
    names |= {"query_timeout", "rerank_timeout", "worker_grace", "writing", "notify"}
    names |= {"search_without_worker", "degraded"}
    for page in PAGES:
        used = set(re.findall(r"\bembed\.([a-z][a-z_]*)\b", page.read_text()))
        assert used <= names, (page.name, used - names)


@pytest.mark.smoke
def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.smoke
def test_every_page_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in DOCS.glob("*.md")}
