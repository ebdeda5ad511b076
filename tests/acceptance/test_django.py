"""A project of Django: migrations in both directions, searches, the command and the checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_worker import Workers
from psycopg import sql
from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.loopback import set_up_loopback
from embedworker.model.catalog import TESTING_MODEL
from embedworker.testing import wait_until_embedded

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "django_search.py"
SETTINGS = """
from psycopg.conninfo import conninfo_to_dict
import os
_ = conninfo_to_dict(os.environ["PROJECT_URL"])
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": _["dbname"], "USER": _["user"],
    "PASSWORD": _.get("password", ""), "HOST": _["host"], "PORT": _["port"],
}}
INSTALLED_APPS = ["embedworker.integrations.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
SOURCES = "select name, columns, template from embed.source where relation::text like 'shop%'"
MODELS = """
from django.db import models
from embedworker.integrations.django import Embedding, SearchManager

class Article(models.Model):
    title = models.TextField(db_column="the title")
    content = models.TextField()
    lang = models.CharField(max_length=2, default="en")
    objects = SearchManager()

    class Meta:
        indexes = [Embedding(
            fields=["title", "content"], name="article", template="{title}: 100%% {content}"
        )]
"""
FIRST = f"""
from django.db import migrations
from embedworker.integrations.django import InstallEmbedding

class Migration(migrations.Migration):
    initial = True
    operations = [InstallEmbedding(model={TESTING_MODEL!r})]
"""
FORWARDS = """
import importlib, django
django.setup()
from django.core.management import call_command
call_command("makemigrations", "shop")
importlib.invalidate_caches()
call_command("makemigrations", "shop", check_changes=True)
call_command("sqlmigrate", "shop", "0002")
call_command("migrate", verbosity=0)
"""
SEARCH = """
from embedworker.integrations.django import Distance
from embedworker.errors import EmbedworkerError
from shop.models import Article
rows = [Article(title=f"t{n}", content=f"text {n}", lang="ko" if n % 2 else "en") for n in range(6)]
Article.objects.bulk_create(rows)
input()
found = Article.objects.search("text 3: 100%", k=3)
assert len(found) == 3 and found.degraded is None, found
assert all(isinstance(row, Article) and row.passage.startswith("t") for row in found)
scores = [row.score for row in found]
assert scores == sorted(scores, reverse=True), scores
odd = Article.objects.filter(lang="ko", content__contains="t").search("%s text", k=9)
assert {row.lang for row in odd} == {"ko"} and len(odd) == 3
both = Article.objects.filter(content="text 2").search("x", matching={"lang": ["en"]})
assert [row.content for row in both] == ["text 2"]
assert list(Article.objects.filter(lang="xx").search("x")) == []
assert len(Article.objects.search("x", k=2, skip=5)) == 1
near = Article.objects.filter(lang="en").annotate(far=Distance("text 3")).order_by("far")
far = [row.far for row in near]
assert len(far) == 3 and far == sorted(far) and 0 < far[0] < 2, far
try:
    Article.objects.search("x", k=0)
except EmbedworkerError as error:
    assert error.sqlstate == "EW003", error
else:
    raise AssertionError("k=0 was not refused")
"""

BACKWARDS = f"""
import importlib, os, warnings, django
django.setup()
from django.core.management import call_command
from embedworker.errors import SearchWarning
from shop.models import Article
import psycopg
def shown():
    with psycopg.connect(os.environ["PROJECT_URL"]) as connection:
        print(connection.execute({SOURCES!r}).fetchall())
with warnings.catch_warnings(record=True) as remarks:
    warnings.simplefilter("always")
    found = Article.objects.search("text", k=3)
assert found.degraded and "words alone" in str(remarks[0].message), remarks
call_command("makemigrations", "shop", verbosity=0)
importlib.invalidate_caches()
for target in ([], ["shop", "0002"], ["shop", "zero"], ["shop"]):
    call_command("migrate", *target, verbosity=0)
    shown()
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "embedworker", "status", "--json"])
"""


class Project:
    """A folder with settings, the application shop and its migrations."""

    def __init__(
        self, folder: Path, url: str, python: str = sys.executable, libraries: Path | None = None
    ) -> None:
        self.folder = folder
        self.python = python
        self.environment = {
            **os.environ,
            "PROJECT_URL": url,
            "DJANGO_SETTINGS_MODULE": "settings",
            "EMBEDWORKER_ALLOW_TESTING_MODEL": "1",
            "PYTHONPATH": os.pathsep.join(map(str, filter(None, (folder, libraries)))),
            "PYTHONWARNINGS": "error",
        }
        (folder / "shop" / "migrations").mkdir(parents=True)
        (folder / "settings.py").write_text(SETTINGS)
        (folder / "shop" / "__init__.py").touch()
        (folder / "shop" / "migrations" / "__init__.py").touch()
        (folder / "shop" / "migrations" / "0001_initial.py").write_text(FIRST)
        self.models(MODELS)

    def models(self, text: str) -> None:
        (self.folder / "shop" / "models.py").write_text(text)

    def manage(self, *arguments: str, code: int = 0) -> str:
        return self._python("-m", "django", *arguments, code=code)

    def run(self, program: str) -> str:
        return self._python("-c", program)

    def _python(self, *arguments: str, code: int = 0) -> str:
        said = subprocess.run(
            [self.python, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert said.returncode == code, said.stdout + said.stderr
        return said.stdout + said.stderr


@pytest.fixture
def project(tmp_path: Path, bare_database: str) -> Project:
    return Project(tmp_path / "project", bare_database)


@pytest.fixture(scope="module")
def newest_django(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Another Python and a folder with the newest Django, which needs Python 3.12 or newer."""
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 12))"
    for name in (os.environ.get("TEST_PYTHON"), "python3.14", "python3.13", "python3.12"):
        python = name and shutil.which(name)
        if python and subprocess.run([python, "-c", probe], check=False).returncode == 0:
            break
    else:
        pytest.skip("no Python 3.12 or newer with pip is here; name one: TEST_PYTHON=…/python")
    folder = tmp_path_factory.mktemp("django")
    install = ["-m", "pip", "install", "--quiet", "--target", str(folder), f"{ROOT}[django]"]
    said = subprocess.run(
        [python, *install, "Django>=6.0"], capture_output=True, text=True, timeout=300, check=False
    )
    if said.returncode != 0:
        pytest.skip(f"the newest Django cannot be installed: {said.stderr[-300:]}")
    return python, folder


@pytest.fixture(params=["installed", pytest.param("newest", marks=pytest.mark.slow)])
def any_project(request: pytest.FixtureRequest, tmp_path: Path, bare_database: str) -> Project:
    """A project on each of the two Djangos."""
    if request.param == "installed":
        return Project(tmp_path / "project", bare_database)
    python, libraries = request.getfixturevalue("newest_django")
    return Project(tmp_path / "project", bare_database, python, libraries)


def sources(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(SOURCES).fetchall()


@pytest.mark.timeout(700)  # three processes of Django and two of a worker, and an installation
def test_migrations_go_both_ways_and_searches_find_instances(
    any_project: Project, bare_database: str, tmp_path: Path
) -> None:
    project = any_project
    workers = Workers(bare_database, tmp_path)
    program = subprocess.Popen(
        [project.python, "-c", FORWARDS + SEARCH],
        env=project.environment,
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_rows(bare_database, program)
        workers.start(both_lanes=True)
        wait_until_embedded(bare_database, timeout=100)
        said, _ = program.communicate("\n", 100)
        assert program.returncode == 0, said
    finally:
        program.kill()
        program.communicate()
        workers.end()
    assert "No changes detected in app 'shop'" in said
    assert "select embed.enable(" in said
    first = ("article", ["the title", "content"], "{1}: 100%% {2}")
    assert sources(bare_database) == [first]

    project.models(MODELS.replace("100%%", "of"))
    said = project.run(BACKWARDS)
    changed = [("article", ["the title", "content"], "{1}: of {2}")]
    shown = [line for line in said.splitlines() if line.startswith("[")]
    assert shown == [repr(changed), repr([first]), "[]", repr(changed)]
    assert "embed.document" in said
    assert vectors_of(bare_database) == "article_embedding"

    project.models(re.sub(r"indexes = \[.*?\)\]", "indexes = []", MODELS, flags=re.DOTALL))
    project.manage("makemigrations", "shop")
    project.manage("migrate", "shop")
    assert sources(bare_database) == []
    assert vectors_of(bare_database) is None


def vectors_of(url: str) -> str | None:
    with psycopg.connect(url) as connection:
        row = connection.execute("select to_regclass('article_embedding')::text").fetchone()
    assert row is not None
    return row[0]


def wait_for_rows(url: str, program: subprocess.Popen[str]) -> None:
    def written() -> bool:
        assert program.poll() is None, program.communicate()
        with psycopg.connect(url) as connection:
            (known,) = connection.execute("select to_regclass('shop_article')").fetchone() or ()
            return known is not None and connection.execute(
                "select count(*) from shop_article"
            ).fetchone() == (6,)

    wait_until(written, 150, "the rows of the program")


def test_checks_say_what_is_declared_wrongly(project: Project) -> None:
    project.models(MODELS.replace("{content}", "{colour}"))
    said = project.manage("check", code=1)
    assert "(embedworker.E002) the template of the embedding 'article' names colour" in said
    assert "HINT: Add it to fields, or name one of: title, content." in said
    project.models(MODELS)
    with (project.folder / "settings.py").open("a") as settings:
        settings.write('DATABASES["default"]["ENGINE"] = "django.db.backends.sqlite3"\n')
    said = project.manage("check", code=1)
    assert "(embedworker.E001) the embedding 'article' needs PostgreSQL" in said
    assert "the database is sqlite" in said
    assert "HINT: Use the engine django.db.backends.postgresql." in said


def test_arguments_that_are_false_get_into_the_migration_and_the_call(project: Project) -> None:
    said = project.run(
        "import django; django.setup()\n"
        "from shop.models import Article\n"
        "from embedworker.integrations.django import Embedding\n"
        "given = Embedding(fields=['content'], name='short', chunk=False, words=False,"
        " storage='halfvec')\n"
        "_, args, options = given.deconstruct()\n"
        "assert Embedding(*args, **options).deconstruct() == given.deconstruct()\n"
        "print(given.create_sql(Article, None))"
    )
    assert "chunk => false" in said
    assert "words => false" in said
    assert "storage => 'halfvec'" in said


# The table is '100% "odd"'. A model has percent signs and quotes doubled: Django does not.
ODD_MODEL = """
from django.db import models
from embedworker.integrations.django import Embedding, SearchManager

class Odd(models.Model):
    number = models.BigIntegerField(primary_key=True, db_column='100%% ""odd""')
    text = models.TextField(db_column='50%%s t')
    objects = SearchManager()

    class Meta:
        managed = False
        db_table = '{table}'
        indexes = [Embedding(fields=["text"], name='odd %% "x"')]
"""
ODD_SEARCH = """
import django; django.setup()
from embedworker.integrations.django import Distance
from shop.models import Odd
assert [row.text for row in Odd.objects.search("100% x", k=1, skip=1)], "all rows"
found = Odd.objects.filter(text__contains="2").search("x")
assert [(row.number, row.text, row.passage) for row in found] == [(2, "text 2", "text 2")], found
near = list(Odd.objects.order_by(Distance("text 2")))
assert sorted(row.number for row in near) == [1, 2], near
"""


@pytest.mark.parametrize("schema", ["public", '5% "s"'])
def test_names_with_percent_signs_and_quotes(
    hash_database: str, workers: Workers, tmp_path: Path, schema: str
) -> None:
    table = sql.Identifier(schema, '100% "odd"')
    with connect(hash_database) as connection:
        set_up_loopback(connection)
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
        connection.execute(
            sql.SQL('create table {} ("100% ""odd""" bigint primary key, "50%s t" text)').format(
                table
            )
        )
        connection.execute(
            sql.SQL("insert into {} values (1, 'text 1'), (2, 'text 2')").format(table)
        )
        connection.execute(
            sql.SQL("select embed.enable({}, array['50%s t'], name => 'odd % \"x\"')").format(
                sql.Literal(table.as_string(connection))
            )
        )
    workers.start(both_lanes=True)
    wait_until_embedded(hash_database, timeout=100)
    project = Project(tmp_path / "project", hash_database)
    in_model = '100%% ""odd""'
    if schema != "public":
        in_model = '"{}"."{}"'.format(schema.replace('"', '""').replace("%", "%%"), in_model)
    project.models(ODD_MODEL.replace("{table}", in_model))
    project.run(ODD_SEARCH)


def test_the_example_runs(hash_database: str, workers: Workers) -> None:
    with connect(hash_database) as connection:
        set_up_loopback(connection)
    workers.start(both_lanes=True)
    said = subprocess.run(
        [sys.executable, EXAMPLE, "a flat tyre"],
        env={**os.environ, "DATABASE_URL": hash_database},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.splitlines()) == 2
