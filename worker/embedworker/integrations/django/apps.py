"""The application for INSTALLED_APPS, and its system checks."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.core import checks
from django.db import connections, router

from embedworker.integrations.django.embedding import Embedding

__all__ = ["EmbedworkerConfig", "check_embeddings"]


class EmbedworkerConfig(AppConfig):
    """``manage.py embedworker``, and checks of what models declare."""

    name = "embedworker.integrations.django"
    label = "embedworker"
    verbose_name = "embedworker"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_embeddings, checks.Tags.models)


def check_embeddings(
    app_configs: Sequence[AppConfig] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """Say which declarations a migration or a search would refuse."""
    chosen = apps.get_app_configs() if app_configs is None else app_configs
    found: list[checks.CheckMessage] = []
    for config in chosen:
        for model in config.get_models():
            for index in model._meta.indexes:
                if isinstance(index, Embedding):
                    found += _check(model, index)
    return found


def _check(model: Any, index: Embedding) -> list[checks.CheckMessage]:
    found: list[checks.CheckMessage] = []
    database = connections[router.db_for_write(model)]
    if database.vendor != "postgresql":
        found.append(
            checks.Error(
                f"the embedding {index.name!r} needs PostgreSQL; the database is {database.vendor}",
                hint="Use the engine django.db.backends.postgresql.",
                obj=model,
                id="embedworker.E001",
            )
        )
    unknown = sorted(set(index.template_fields()) - set(index.fields))
    if unknown:
        found.append(
            checks.Error(
                f"the template of the embedding {index.name!r} names {', '.join(unknown)}, which "
                "is none of its fields",
                hint=f"Add it to fields, or name one of: {', '.join(index.fields)}.",
                obj=model,
                id="embedworker.E002",
            )
        )
    return found
