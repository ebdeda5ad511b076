"""The Python of the README and of docs/python.md, run as it stands there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fix_database import _new_database as new_database
from sqlalchemy import create_engine

from embedworker import Worker
from embedworker.database.connect import connect
from embedworker.database.embedded.cluster import Cluster
from embedworker.database.loopback import set_up_loopback
from embedworker.settings import load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PYTHON = ROOT / "docs" / "python.md"
ARTICLES = [(1, "Flat tyre", "Take the wheel off."), (2, "Bread", "Knead it."), (3, "Tea", "Hot.")]


def blocks(section: str, url: str, page: Path = README) -> list[str]:
    """The code of a section, with the address filled in."""
    text = re.split(r"\n#{2,3} ", page.read_text().partition(f"### {section}\n")[2])[0]
    found = re.findall(r"```python\n(.*?)```", text, re.S)
    assert found, section
    return [
        code.replace("postgresql+psycopg://…", url.replace("://", "+psycopg://", 1)).replace(
            "postgresql://…", url
        )
        for code in found
    ]


@pytest.fixture(scope="module")
def url(server: Cluster, hash_template: str) -> Iterator[str]:
    """A database with three embedded articles."""
    with pytest.MonkeyPatch.context() as patch, new_database(server, hash_template) as made:
        patch.setenv("EMBEDWORKER_ALLOW_TESTING_MODEL", "1")
        patch.setenv("PGOPTIONS", "-c embed.query_timeout=60s -c embed.worker_grace=60s")
        with connect(made) as connection:
            set_up_loopback(connection)
            connection.execute(
                "create table article (id serial primary key, title varchar not null,"
                " content varchar not null)"
            )
            with connection.cursor() as cursor:
                cursor.executemany("insert into article values (%s, %s, %s)", ARTICLES)
            connection.execute("select embed.enable('article', array['title', 'content'])")
        assert Worker(made, load(index_after_rows=10**9), lanes=["passages"]).run_once() == []
        yield made


def run(code: str, **given: Any) -> dict[str, Any]:
    names = {"__name__": "readme", **given}
    exec(compile(code, str(README), "exec"), names)  # noqa: S102 -- what is tested
    return names


@pytest.mark.smoke
def test_sqlalchemy(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("SQLAlchemy", url)
    with Worker(url, lanes=["questions"]) as worker:
        assert worker.wait_ready(60)
        names = run(code)
    assert len(capsys.readouterr().out.splitlines()) == 3 + sum(
        content.count("\n") for content in [title + "\n" + text for _, title, text in ARTICLES]
    )
    assert sorted(article.id for article in names["articles"]) == [1, 2, 3]
    names["engine"].dispose()


@pytest.mark.smoke
def test_alembic(url: str) -> None:
    env, migration = blocks("Alembic", url, PYTHON)
    run(env)
    names = run(migration, op=op)
    engine = create_engine(url.replace("://", "+psycopg://", 1))
    with engine.connect() as connection, connect(url) as other:
        context = MigrationContext.configure(connection)
        for step, templates in (("upgrade", [("{1}: {2}",)]), ("downgrade", [])):
            with context.begin_transaction(), Operations.context(context):
                names[step]()
            connection.commit()
            query = "select template from embed.source where name = 'article'"
            assert other.execute(query).fetchall() == templates
        other.execute("select embed.enable('article', array['title', 'content'])")
    engine.dispose()
    assert Worker(url, lanes=["passages"]).run_once() == []


@pytest.mark.smoke
def test_from_python(url: str) -> None:
    (code,) = blocks("From Python", url)
    names = run(code.replace(") as client", ", timeout=60) as client"))
    assert sorted(hit.row["id"] for hit in names["hits"]) == [1, 2, 3]
    assert len(names["vector"].to_list()) == 384
