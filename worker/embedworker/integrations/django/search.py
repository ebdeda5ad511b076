"""A manager whose ``search`` returns instances, the nearest in meaning first."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import Error, connections, models
from psycopg import sql

from embedworker.database.refusal import refusal
from embedworker.database.statements import render
from embedworker.errors import ConfigurationError, SearchWarning
from embedworker.integrations.django.embedding import (
    embedding_of,
    escaped,
    plain,
    quoted,
    relation,
)

__all__ = ["Found", "SearchManager", "SearchQuerySet"]

_PLACE = re.compile(r"%%|%s")


class Found(list[Any]):
    """Instances with ``score``, ``similarity``, ``passage``, ``bm25`` and ``reranked``.

    ``degraded`` says why the words of the question alone ranked them: no worker answered.
    """

    degraded: str | None = None


class SearchQuerySet(models.QuerySet[Any]):
    """A query set that can be searched, also after ``filter``."""

    def search(
        self,
        question: str,
        k: int = 10,
        *,
        name: str | None = None,
        lexical: float | None = None,
        rerank: int | None = None,
        matching: Mapping[str, Any] | None = None,
        skip: int = 0,
    ) -> Found:
        """Return the ``k`` instances nearest in meaning to a question, the nearest first.

        ``name`` is that of the Embedding, where the model has several. Only rows of this query set
        are searched: ``Article.objects.filter(lang="ko").search("…")`` reads their keys first.
        ``matching`` are values of columns, which costs less: ``{"lang": ["ko", "en"]}``. ``skip``
        leaves out that many of the best rows. ``lexical`` and ``rerank`` are those of
        ``embed.search``.

        Warns:
            SearchWarning: no worker answered, and the words alone ranked the rows.

        Raises:
            ConfigurationError: the query set is sliced, or its key has several columns.
            NoWorker: no worker answered, and the words must not; more in embedworker.errors.
            LookupError: the model has no such Embedding.
        """
        source = embedding_of(self.model, name).name
        key = self.model._meta.pk
        if self.query.is_sliced or not getattr(key, "column", None):
            raise ConfigurationError(
                "search needs a query set that is not sliced, of a model whose key is one column; "
                "give k and skip instead of a slice"
            )
        asked: dict[str, Any] = {
            "question": question,
            "k": k,
            "name": source,
            "lexical": lexical,
            "rerank": rerank,
            "matching": None if matching is None else json.dumps(matching, default=str),
            "skip": skip,
        }
        keys: sql.Composable = sql.SQL("null::jsonb")
        if self.query.where:
            inner, values = self.order_by().values("pk").query.sql_with_params()
            keys = render(
                "django_keys",
                keys=_named(inner, values, asked),
                key=escaped(sql.Literal(plain(key.column))),
            )
        query = render(
            "django_search",
            relation=sql.SQL(relation(self.model)),
            key=sql.SQL(quoted(key.column)),
            keys=keys,
        )
        with _typed_errors(), connections[self.db].cursor() as cursor:
            cursor.execute(query.as_string(), asked)
            *hits, (*_, degraded) = cursor.fetchall()
        found = Found(self._instances(hits))
        if degraded:
            found.degraded = degraded
            warnings.warn(f"the words alone rank the rows: {degraded}", SearchWarning, stacklevel=2)
        return found

    def _instances(self, hits: list[Any]) -> Iterator[Any]:
        to_python = self.model._meta.pk.to_python
        ranks = {to_python(key): rank for key, *rank in hits}
        rows = {row.pk: row for row in self.order_by().filter(pk__in=list(ranks))}
        for key, (score, similarity, bm25, reranked, passage, _) in ranks.items():
            if (row := rows.get(key)) is None:
                continue  # deleted since
            row.score, row.similarity, row.bm25 = score, similarity, bm25
            row.reranked, row.passage = reranked, passage
            yield row


class SearchManager(models.Manager.from_queryset(SearchQuerySet)):  # type: ignore[misc]
    """``objects = SearchManager()``, whose :meth:`SearchQuerySet.search` searches all rows."""


def _named(query: str, values: Any, into: dict[str, Any]) -> sql.SQL:
    """Return Django's query with names for its parameters, which are added to ``into``."""
    given = iter(values)

    def name(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%%"
        key = f"p{len(into)}"
        into[key] = next(given)
        return f"%({key})s"

    return sql.SQL(_PLACE.sub(name, query))


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Raise what the server refuses as an error of this package, whose text holds no question."""
    try:
        yield
    except Error as error:
        refused = None if error.__cause__ is None else refusal(error.__cause__)
        if refused is None:
            raise
        raise refused from None
