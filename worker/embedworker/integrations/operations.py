"""``op.install_embedding``, ``op.enable_embedding`` and ``op.disable_embedding`` for migrations."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Select
from sqlalchemy.dialects import postgresql

from embedworker.database.install import migrate
from embedworker.errors import NotMigrated
from embedworker.integrations.declaration import Embedding, disable_call, enable_call
from embedworker.integrations.statements import clause

__all__ = ["DisableEmbedding", "EnableEmbedding", "InstallEmbedding"]

MODULE = "embedworker.integrations.alembic"


@Operations.register_operation("install_embedding")
class InstallEmbedding(MigrateOperation):
    """Set the database up as ``embedworker migrate`` does."""

    def __init__(self, model: str | None = None) -> None:
        self.model = model

    @classmethod
    def install_embedding(cls, operations: Operations, *, model: str | None = None) -> None:
        """Create the schema ``embed``, or bring it up to date; safe to repeat.

        For the first migration of an application, so that every database has it that is made from
        its migrations, such as a test runner's. It is committed at once and stays when the
        migration fails. A downgrade leaves it: ``embedworker migrate --down`` takes it out.
        """
        operations.invoke(cls(model))

    def reverse(self) -> MigrateOperation:
        """Return itself, which does nothing where it was done."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` shows."""
        return ("install_embedding", self.model)


@Operations.register_operation("enable_embedding")
class EnableEmbedding(MigrateOperation):
    """Make a table searchable; ``previous``, if it was already, is what a downgrade restores."""

    def __init__(self, embedding: Embedding, *, previous: Embedding | None = None) -> None:
        self.embedding = embedding
        self.previous = previous

    @classmethod
    def enable_embedding(
        cls,
        operations: Operations,
        table: str,
        columns: Sequence[str],
        *,
        schema: str | None = None,
        name: str | None = None,
        model: str | None = None,
        template: str | None = None,
        into_column: str | None = None,
        chunk: bool = True,
        filter: str | None = None,  # noqa: A002 -- named as in embed.enable
        key: Sequence[str] | None = None,
        words: bool = True,
        storage: str | None = None,
    ) -> None:
        """Call ``embed.enable``: make a table searchable by the meaning of its text columns.

        Raises:
            NotMigrated: the schema ``embed`` is not in the database.
        """
        embedding = Embedding(
            table=table,
            columns=tuple(columns),
            schema=schema,
            name=name,
            model=model,
            template=template,
            into_column=into_column,
            chunk=chunk,
            filter=filter,
            key=None if key is None else tuple(key),
            words=words,
            storage=storage,
        )
        operations.invoke(cls(embedding))

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        if self.previous is not None:
            return EnableEmbedding(self.previous, previous=self.embedding)
        return DisableEmbedding(self.embedding, drop_vectors=self.embedding.into_column is None)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` shows."""
        return ("enable_embedding", self.embedding)


@Operations.register_operation("disable_embedding")
class DisableEmbedding(MigrateOperation):
    """No longer keep a table's vectors; ``embedding`` is what a downgrade restores."""

    def __init__(self, embedding: Embedding, *, drop_vectors: bool = False) -> None:
        self.embedding = embedding
        self.drop_vectors = drop_vectors

    @classmethod
    def disable_embedding(
        cls,
        operations: Operations,
        table: str,
        *,
        schema: str | None = None,
        name: str | None = None,
        drop_vectors: bool = False,
    ) -> None:
        """Call ``embed.disable``: no longer keep a table's vectors.

        Without ``name``, under all its names.

        Raises:
            NotMigrated: the schema ``embed`` is not in the database.
        """
        embedding = Embedding(table=table, columns=(), schema=schema, name=name)
        operations.invoke(cls(embedding, drop_vectors=drop_vectors))

    def reverse(self) -> MigrateOperation:
        """Return what undoes it."""
        return EnableEmbedding(self.embedding)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return what ``alembic check`` shows."""
        return ("disable_embedding", self.embedding)


@Operations.implementation_for(InstallEmbedding)
def _install(operations: Operations, operation: InstallEmbedding) -> None:
    context = operations.get_context()
    if context.as_sql:
        model = f" --model {operation.model}" if operation.model else ""
        context.impl.static_output(f"-- Before what follows, run: embedworker migrate{model}")
        return
    for remark in migrate(operations.get_bind(), model=operation.model):
        warnings.warn(remark, stacklevel=2)


@Operations.implementation_for(EnableEmbedding)
def _enable(operations: Operations, operation: EnableEmbedding) -> None:
    _run(operations, enable_call(operation.embedding, schema=operation.embedding.schema))


@Operations.implementation_for(DisableEmbedding)
def _disable(operations: Operations, operation: DisableEmbedding) -> None:
    which = operation.embedding
    call = disable_call(
        which.table, schema=which.schema, name=which.name, drop_vectors=operation.drop_vectors
    )
    _run(operations, call)


def _run(operations: Operations, call: Select[Any]) -> None:
    context = operations.get_context()
    if context.as_sql:
        # With a dialect of ours: another paramstyle than this would double every percent sign.
        dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
        dialect._backslash_escapes = False  # as servers read texts, since PostgreSQL 9.1
        compiled = call.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        context.impl.static_output(f"{compiled}{context.impl.command_terminator}")
        return
    connection = operations.get_bind()
    if not connection.execute(clause("cli_migrated")).scalar_one():
        raise NotMigrated(
            "the database is not set up for embedworker; run `embedworker migrate` before this "
            "migration, or call op.install_embedding() in an earlier one"
        )
    connection.execute(call)


@renderers.dispatch_for(EnableEmbedding)
def _render_enable(context: AutogenContext, operation: EnableEmbedding) -> str:
    given = asdict(operation.embedding)
    arguments = [repr(given.pop("table")), repr(list(given.pop("columns")))]
    arguments += [f"{name}=False" for name in ("chunk", "words") if given.pop(name) is False]
    if given["key"] is not None:
        given["key"] = list(given["key"])
    arguments += [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return _call(context, "enable_embedding", arguments)


@renderers.dispatch_for(DisableEmbedding)
def _render_disable(context: AutogenContext, operation: DisableEmbedding) -> str:
    which = operation.embedding
    # By name always: the table may be enabled under another one, too.
    arguments = [repr(which.table), f"name={which.source_name!r}"]
    if which.schema is not None:
        arguments.insert(1, f"schema={which.schema!r}")
    if operation.drop_vectors:
        arguments.append("drop_vectors=True")
    return _call(context, "disable_embedding", arguments)


def _call(context: AutogenContext, function: str, arguments: list[str]) -> str:
    context.imports.add(f"import {MODULE}  # noqa: F401  (op.enable_embedding)")
    return f"{context.opts['alembic_module_prefix']}{function}({', '.join(arguments)})"
