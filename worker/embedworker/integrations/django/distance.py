"""The distance of a question from each row, for ``order_by`` and ``annotate``."""

from typing import Any

from django.db.models import F, FloatField, Func
from psycopg import sql

from embedworker.database.statements import render
from embedworker.integrations.declaration import vector_table_name
from embedworker.integrations.django.embedding import (
    embedding_of,
    escaped,
    plain,
    quoted,
    relation,
)

__all__ = ["Distance"]


class Distance(Func):
    """The cosine distance of a question and the best passage of a row, 0 to 2; null without one.

        Article.objects.filter(lang="ko").order_by(Distance("a flat tyre"))[:5]

    It compares all rows that the query selects. For a large table ``search`` is quicker, because
    it uses the index. ``name`` is that of the Embedding, where the model has several.

    Raises:
        LookupError: when it is used with a model that has no such Embedding.
    """

    output_field = FloatField()

    def __init__(self, question: str, *, name: str | None = None) -> None:
        super().__init__(F("pk"))
        self._question = question
        self._name = name
        self._model: Any = None

    def resolve_expression(self, query: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Take the model of the query that it is used in."""
        resolved = super().resolve_expression(query, *args, **kwargs)
        resolved._model = query.model
        return resolved

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a subquery over the table of vectors."""
        source = embedding_of(self._model, self._name)
        key, given = compiler.compile(self.get_source_expressions()[0])
        schema = plain(self._model._meta.db_table.rpartition('"."')[0].removeprefix('"'))
        names = [*([schema] if schema else []), vector_table_name(source.name)]
        query = render(
            "django_distance",
            vectors=escaped(sql.Identifier(*names)),
            key=sql.SQL(quoted(self._model._meta.pk.column)),
            outer=sql.SQL(key),
            question=sql.SQL("%s"),
            relation=sql.SQL("%s"),
        )
        table = relation(self._model).replace("%%", "%")
        return query.as_string(), [self._question, table, *given]
