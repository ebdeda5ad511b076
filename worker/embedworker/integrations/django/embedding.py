"""What a model declares in ``Meta.indexes``."""

import re
from collections.abc import Sequence
from typing import Any

from django.db import models
from psycopg import sql

from embedworker.database.statements import render

__all__ = ["Embedding", "embedding_of", "escaped", "plain", "quoted", "relation"]

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Embedding(models.Index):
    """Makes fields of a model searchable by meaning, in the place and the manner of an index.

        indexes = [Embedding(fields=["title", "content"], name="article")]

    The migration that adds it calls ``embed.enable``, and the one that removes it calls
    ``embed.disable``, which drops the vectors. They are in the table ``<name>_embedding``. The
    other arguments are those of ``embed.enable``; names in ``template`` and ``into_column`` are
    fields, ``filter`` is SQL. To change the name, remove it in one migration and add it in the
    next, because Django would rename an index.

    Raises:
        ValueError: there is no name, or no field.
    """

    max_name_length = 63

    def __init__(
        self,
        *,
        fields: Sequence[str] = (),
        name: str | None = None,
        model: str | None = None,
        template: str | None = None,
        into_column: str | None = None,
        chunk: bool = True,
        filter: str | None = None,  # noqa: A002 -- named as in embed.enable
        words: bool = True,
        storage: str | None = None,
    ) -> None:
        if not name:
            # Django would make one from the table's name, and a new one when that changes.
            raise ValueError('Embedding needs a name, such as name="article"')
        super().__init__(fields=list(fields), name=name)
        self.options: dict[str, Any] = {
            "model": model,
            "template": template,
            "into_column": into_column,
            "filter": filter,
            "storage": storage,
        }
        self.switches = {"chunk": chunk, "words": words}

    def deconstruct(self) -> Any:
        """Return how to make it again; what has its default is left out."""
        _, args, kwargs = super().deconstruct()
        kwargs |= {name: value for name, value in self.options.items() if value is not None}
        kwargs |= {name: False for name, value in self.switches.items() if not value}
        return "embedworker.integrations.django.Embedding", args, kwargs

    def create_sql(
        self, model: type[models.Model], schema_editor: Any, using: str = "", **kwargs: Any
    ) -> Any:
        """Return the call of ``embed.enable``."""

        def column(field: str) -> str:
            return str(model._meta.get_field(field).column)  # type: ignore[union-attr]

        def in_database(match: re.Match[str]) -> str:
            return match[0] if match[1] is None else f"{{{column(match[1])}}}"

        options = dict(self.options)
        if options["template"] is not None:
            options["template"] = _BRACES.sub(in_database, options["template"])
        if options["into_column"] is not None:
            options["into_column"] = column(options["into_column"])
        return _written(
            "django_enable",
            relation=relation(model),
            columns=[column(field) for field in self.fields],
            source=self.name,
            **self.switches,
            **options,
        )

    def remove_sql(self, model: type[models.Model], schema_editor: Any, **kwargs: Any) -> Any:
        """Return the call of ``embed.disable``."""
        drop = self.options["into_column"] is None
        return _written(
            "django_disable", relation=relation(model), source=self.name, drop_vectors=drop
        )

    def template_fields(self) -> list[str]:
        """Return the names between braces in the template."""
        found = _BRACES.finditer(self.options["template"] or "")
        return [match[1] for match in found if match[1] is not None]


def embedding_of(model: type[models.Model], name: str | None) -> Embedding:
    """Return the declaration of a model, the first one without ``name``.

    Raises:
        LookupError: the model has none of that name.
    """
    for index in model._meta.indexes:
        if isinstance(index, Embedding) and name in (None, index.name):
            return index
    which = f" of the name {name!r}" if name else ""
    raise LookupError(
        f"{model._meta.label} has no Embedding{which} in Meta.indexes; add it, and run "
        "makemigrations"
    )


def relation(model: type[models.Model]) -> str:
    """Return the table of a model, quoted; a table of another schema is named schema"."table."""
    return quoted(model._meta.db_table)


def quoted(name: str) -> str:
    """Return a name as Django writes it into statements with parameters."""
    return name if name.startswith('"') else f'"{name}"'


def plain(name: str) -> str:
    """Return what a name of Django's is in the database.

    Django doubles neither quotes nor percent signs, so models have them doubled where a table has
    one: ``db_column='100%% ""odd""'``.
    """
    return name.replace('""', '"').replace("%%", "%")


def escaped(composed: sql.Composable) -> sql.SQL:
    """Return quoted names or values for a statement with parameters, percent signs doubled."""
    return sql.SQL(composed.as_string().replace("%", "%%"))


def _written(query: str, **values: Any) -> str:
    """Return a query with its values in it: Django executes and prints it without parameters."""
    literals = {name: sql.Literal(value) for name, value in values.items()}
    return render(query, **literals).as_string()
