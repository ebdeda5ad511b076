"""Alembic's autogenerate: what is declared against what is enabled, and nothing of ours dropped."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, ops
from alembic.util import CommandError, DispatchPriority
from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import DBAPIError

from embedworker.integrations.declaration import Embedding, declarations, quoted_name
from embedworker.integrations.operations import DisableEmbedding, EnableEmbedding
from embedworker.integrations.statements import clause

__all__: list[str] = []

SCHEMA = "embed"
_PLACE = re.compile(r"\{\{|\}\}|\{(\d+)\}")

Name = tuple[str | None, str]


class _Enabled(NamedTuple):
    """One source of the database, as it would be declared."""

    embedding: Embedding
    key: frozenset[str]
    key_is_default: bool
    dimensions: int
    stored_filter: str | None


@comparators.dispatch_for("schema", qualifier="postgresql", priority=DispatchPriority.FIRST)
def _ignore_ours(
    context: AutogenContext,
    upgrade_ops: ops.UpgradeOps,  # noqa: ARG001 -- Alembic gives it
    schemas: set[str | None],
) -> None:
    """Keep Alembic from reading the schema embed at all, and from telling of removed tables.

    It logs what it finds before anything can be taken out again. There is no public way to add a
    filter to those of the application's ``env.py``; without this one, only the log is longer.
    """
    schemas.discard(SCHEMA)
    connection = context.connection
    assert connection is not None  # noqa: S101 -- autogenerate has one
    default = connection.dialect.default_schema_name
    _require_rights(connection)
    ours = _ours(connection, default)

    def include(item: Any, name: str | None, kind: str, reflected: bool, _: Any) -> bool:
        schema = getattr(getattr(item, "table", item), "schema", None)
        found = reflected and (_schema(schema, default), name) in ours.get(kind, ())
        return schema != SCHEMA and not found

    getattr(context, "_object_filters", []).append(include)


@comparators.dispatch_for("schema", qualifier="postgresql", priority=DispatchPriority.LAST)
def _compare(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> None:
    """After Alembic's own comparisons: take out what is ours, and add what is declared."""
    connection = context.connection
    assert connection is not None  # noqa: S101 -- autogenerate has one
    default = connection.dialect.default_schema_name
    _leave_ours(connection, default, upgrade_ops)

    metadatas = _metadatas(context)
    tables = {
        (_schema(table.schema, default), table.name)
        for metadata in metadatas
        for table in metadata.tables.values()
    }
    declared = {
        _place(embedding, default): embedding
        for metadata in metadatas
        for embedding in declarations(metadata)
        if _included(context, embedding, reflected=False)
    }
    enabled = _enabled(connection, default)
    gone: list[MigrateOperation] = []
    new: list[EnableEmbedding | DisableEmbedding] = []
    dropped = {
        (op.schema, op.table_name) for op in upgrade_ops.ops if isinstance(op, ops.DropTableOp)
    }
    for place, source in enabled.items():
        table = place[:2]
        if place in declared or place[0] not in schemas:
            continue
        if table in dropped or (
            table in tables and _included(context, source.embedding, reflected=True)
        ):
            gone.append(_disable(source.embedding))
    for place, embedding in declared.items():
        new.extend(_change(connection, embedding, enabled.get(place)))
    later = _columns_dropped(upgrade_ops, {(op.embedding.schema, op.embedding.table) for op in new})
    upgrade_ops.ops[:] = [*gone, *upgrade_ops.ops, *new, *later]
    _import_types(context)


def _require_rights(connection: Connection) -> None:
    """Refuse, as Alembic refuses, where what is enabled cannot be read."""
    if not connection.execute(clause("cli_migrated")).scalar_one():
        return
    role, readable = connection.execute(clause("alembic_readable")).one()
    if not readable:
        raise CommandError(
            f"the role {role!r} may not read embed.source, which autogenerate compares with the "
            "models. Members of embed_admin are trusted with all embedding in this database. "
            "Have a superuser run: grant embed_admin to "
            f"{connection.dialect.identifier_preparer.quote(role)};"
        )


def _change(
    connection: Connection, wanted: Embedding, found: _Enabled | None
) -> Iterator[EnableEmbedding | DisableEmbedding]:
    if found is None:
        yield EnableEmbedding(wanted)
        return
    had = found.embedding
    model = wanted.model or had.model  # embed.enable leaves a table its model, too
    dimensions = connection.execute(clause("alembic_dimensions"), {"model": model}).scalar()
    if (
        not (found.key_is_default if wanted.key is None else set(wanted.key) == found.key)
        or (wanted.into_column, _chunk(wanted)) != (had.into_column, _chunk(had))
        or dimensions not in (None, found.dimensions)
        or wanted.storage not in (None, had.storage or "vector")
    ):
        # embed.enable refuses to change these: no vector that is there could be kept.
        yield _disable(had)
        yield EnableEmbedding(wanted)
    elif (wanted.columns, model, wanted.template, wanted.words) != (
        had.columns,
        had.model,
        had.template,
        had.words,
    ) or _filter_changed(connection, wanted, found):
        if had.model is None and model is not None:
            # A downgrade has to name it, or embed.enable would leave the table the new one.
            default = connection.execute(clause("model_default")).scalar()
            had = replace(had, model=default)
        yield EnableEmbedding(wanted, previous=had)


def _chunk(embedding: Embedding) -> bool:
    return embedding.chunk and embedding.into_column is None


def _filter_changed(connection: Connection, wanted: Embedding, found: _Enabled) -> bool:
    had = found.embedding.filter
    if wanted.filter == had or wanted.filter is None or had is None:
        return wanted.filter != had
    # Only the server can say whether two texts are one condition: it stores what it has read.
    asked = {"relation": quoted_name(wanted.schema, wanted.table), "filter": wanted.filter}
    try:
        with connection.begin_nested():
            connection.execute(clause("alembic_probe_filter"), asked)
            stored = connection.execute(clause("alembic_read_filter"), asked).scalar()
    except DBAPIError:
        return True  # a column that is not there yet
    return bool(stored != found.stored_filter)


def _disable(embedding: Embedding) -> DisableEmbedding:
    return DisableEmbedding(embedding, drop_vectors=embedding.into_column is None)


def _enabled(connection: Connection, default: str | None) -> dict[Any, _Enabled]:
    if not connection.execute(clause("cli_migrated")).scalar_one():
        return {}
    found = {}
    for row in connection.execute(clause("alembic_sources")).mappings():
        columns = row["columns"]

        def named(match: re.Match[str], columns: list[str] = columns) -> str:
            return match[0] if match[1] is None else f"{{{columns[int(match[1]) - 1]}}}"

        template = row["template"]
        embedding = Embedding(
            table=row["table"],
            columns=tuple(columns),
            schema=_schema(row["schema"], default),
            name=None if row["name"] == row["table"] else row["name"],
            model=row["model"],
            template=None if template is None else _PLACE.sub(named, template),
            into_column=row["into_column"],
            chunk=row["chunk"] or row["into_column"] is not None,  # its default there
            filter=row["filter"],
            key=None if row["key_is_default"] else tuple(row["key"]),
            words=row["words"],
            storage=None if row["storage"] == "vector" else row["storage"],
        )
        found[_place(embedding, default)] = _Enabled(
            embedding,
            frozenset(row["key"]),
            row["key_is_default"],
            row["dimensions"],
            row["stored_filter"],
        )
    return found


def _ours(connection: Connection, default: str | None) -> dict[str, set[Name]]:
    """Return the tables of vectors and their indexes, by kind; schema None is the default one."""
    if not connection.execute(clause("cli_migrated")).scalar_one():
        indexes = set()
    else:
        indexes = {
            (_schema(schema, default), index)
            for schema, index in connection.execute(clause("alembic_vector_indexes"))
        }
    tables = {
        (_schema(schema, default), table)
        for schema, table in connection.execute(clause("alembic_vector_tables"))
    }
    return {"table": tables, "index": indexes}


def _leave_ours(connection: Connection, default: str | None, upgrade_ops: ops.UpgradeOps) -> None:
    ours = _ours(connection, default)
    tables, indexes = ours["table"], ours["index"]

    def is_ours(op: Any) -> bool:
        schema = getattr(op, "schema", None)
        if schema == SCHEMA or (schema, getattr(op, "table_name", None)) in tables:
            return True
        if isinstance(op, ops.DropIndexOp):
            return (schema, op.index_name) in indexes
        if isinstance(op, ops.ModifyTableOps):
            op.ops[:] = [part for part in op.ops if not is_ours(part)]
            return op.is_empty()
        return False

    upgrade_ops.ops[:] = [op for op in upgrade_ops.ops if not is_ours(op)]


def _columns_dropped(upgrade_ops: ops.UpgradeOps, tables: set[Name]) -> list[MigrateOperation]:
    """Take the dropping of columns out, to come last: on the way back it is adding, and first.

    Else, in one of the two directions, a column would be embedded that is not there yet.
    """
    later: list[MigrateOperation] = []
    for op in upgrade_ops.ops:
        if isinstance(op, ops.ModifyTableOps) and (op.schema, op.table_name) in tables:
            drops = [part for part in op.ops if isinstance(part, ops.DropColumnOp)]
            if drops:
                op.ops[:] = [part for part in op.ops if part not in drops]
                later.append(ops.ModifyTableOps(op.table_name, drops, schema=op.schema))
    upgrade_ops.ops[:] = [
        op for op in upgrade_ops.ops if not (isinstance(op, ops.ModifyTableOps) and op.is_empty())
    ]
    return later


def _import_types(context: AutogenContext) -> None:
    """Have the migration import pgvector, if it names one of its types."""
    others = context.opts.get("render_item")

    def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
        module = type(item).__module__
        if kind == "type" and module.startswith("pgvector."):
            context.imports.add(f"import {module}")
        return False if others is None else others(kind, item, context)

    context.opts["render_item"] = render_item


def _included(context: AutogenContext, embedding: Embedding, *, reflected: bool) -> bool:
    """Call the application's include_object, with the type "embedding"."""
    return context.run_object_filters(
        embedding,  # type: ignore[arg-type]  # of a kind that SQLAlchemy does not know
        embedding.source_name,
        "embedding",  # type: ignore[arg-type]
        reflected,
        None,
    )


def _metadatas(context: AutogenContext) -> list[MetaData]:
    given = context.metadata
    if given is None:
        return []
    return [given] if isinstance(given, MetaData) else list(given)


def _schema(schema: str | None, default: str | None) -> str | None:
    return None if schema == default else schema


def _place(embedding: Embedding, default: str | None) -> tuple[str | None, str, str]:
    return _schema(embedding.schema, default), embedding.table, embedding.source_name
