"""Django: models whose texts are searchable by meaning.

    INSTALLED_APPS = [..., "embedworker.integrations.django"]

    class Article(models.Model):
        title = models.TextField()
        content = models.TextField()
        objects = SearchManager()

        class Meta:
            indexes = [Embedding(fields=["title", "content"], name="article")]

    Article.objects.search("how do I fix a flat tyre?", k=3)

``makemigrations`` writes the rest. The first migration has ``InstallEmbedding()`` before it, or
``embedworker migrate`` was run.
"""

from embedworker.integrations.django.distance import Distance
from embedworker.integrations.django.embedding import Embedding
from embedworker.integrations.django.operations import InstallEmbedding
from embedworker.integrations.django.search import Found, SearchManager, SearchQuerySet

__all__ = [
    "Distance",
    "Embedding",
    "Found",
    "InstallEmbedding",
    "SearchManager",
    "SearchQuerySet",
]
