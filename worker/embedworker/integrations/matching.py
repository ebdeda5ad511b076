"""Conditions of SQLAlchemy as what ``embed.search`` takes for ``matching``."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Table, Text, cast, func, null, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ColumnElement

from embedworker.errors import ConfigurationError

__all__ = ["matching"]


def matching(table: Table, conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[Any]:
    """Return the argument ``matching`` for the rows of ``table`` that pass all conditions.

    A column that equals a value is given as such. For all other conditions the statement collects
    the keys of the rows that pass them.

    Raises:
        ConfigurationError: there are such others, and the key has several columns.
    """
    equal: dict[str, ColumnElement[Any]] = {}
    others = []
    keys = list(table.primary_key.columns)
    for condition in conditions:
        pair = _equality(table, condition)
        if pair is None or pair[0].primary_key or pair[0].name in equal:
            others.append(condition)
        else:
            equal[pair[0].name] = cast(pair[1], pair[0].type)
    if others:
        if len(keys) != 1:
            raise ConfigurationError(
                f"a condition of where is no equality, and {table} has a key of {len(keys)} "
                "columns; give only conditions such as Article.lang == 'ko'"
            )
        found = select(func.coalesce(func.jsonb_agg(keys[0]), func.jsonb_build_array()))
        equal[keys[0].name] = found.where(*others).correlate(None).scalar_subquery()
    if not equal:
        return cast(null(), JSONB)
    parts = [part for name, value in equal.items() for part in (cast(name, Text()), value)]
    built: ColumnElement[Any] = func.jsonb_build_object(*parts)
    return built


def _equality(
    table: Table, condition: ColumnElement[bool]
) -> tuple[Column[Any], BindParameter[Any]] | None:
    if not isinstance(condition, BinaryExpression) or condition.operator is not operators.eq:
        return None
    left, right = condition.left, condition.right
    column = table.columns.get(getattr(left, "key", None) or "")
    if column is None or not isinstance(right, BindParameter):
        return None
    return (column, right) if left.shares_lineage(column) else None
