"""A model of Django whose texts are searchable by meaning, in one file.

    python examples/django_search.py "a question"

Set DATABASE_URL, run `embedworker migrate` once, and keep `embedworker run` running. In a project,
`makemigrations` and `migrate` do what the function prepare does here.
"""

import os
import sys
import time

import django
from django.conf import settings
from django.db import connection, models
from psycopg.conninfo import conninfo_to_dict

from embedworker.integrations.django import Embedding, SearchManager

given = conninfo_to_dict(os.environ["DATABASE_URL"])
names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
database = {name: given[key] for name, key in names.items() if key in given}
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **database}},
    INSTALLED_APPS=["embedworker.integrations.django"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()


class Recipe(models.Model):
    title = models.TextField()
    content = models.TextField()
    objects = SearchManager()

    class Meta:
        app_label = "example"
        indexes = [Embedding(fields=["title", "content"], name="recipe")]


def prepare() -> None:
    if Recipe._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Recipe)
        Recipe.objects.create(title="Bread", content="Knead the dough and let it rest.")
        Recipe.objects.create(title="Soup", content="Boil leeks and potatoes.")
    with connection.cursor() as cursor:
        waiting = True
        while waiting:
            cursor.execute("select pending from embed.status where name = 'recipe'")
            ((waiting,),) = cursor.fetchall()
            time.sleep(0.1)


prepare()
for recipe in Recipe.objects.search(" ".join(sys.argv[1:]) or "how is dough made?", k=2):
    print(f"{recipe.score:.3f}  {recipe.title}: {recipe.content}")
