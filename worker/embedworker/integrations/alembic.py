"""Alembic for applications whose tables are searchable. Import it in ``env.py``:

    import embedworker.integrations.alembic  # noqa: F401

Migrations then have ``op.enable_embedding`` and ``op.disable_embedding``, and
``op.install_embedding`` for ``embedworker migrate``. ``--autogenerate`` writes the first two
from what the models declare, and leaves alone what ``embed.enable`` has made: vector tables,
indexes, the schema ``embed``.
"""

import pgvector.sqlalchemy  # noqa: F401 -- Alembic reads columns of its types

import embedworker.integrations.autogenerate  # noqa: F401 -- registers itself
from embedworker.integrations.operations import DisableEmbedding, EnableEmbedding, InstallEmbedding

__all__ = ["DisableEmbedding", "EnableEmbedding", "InstallEmbedding"]
