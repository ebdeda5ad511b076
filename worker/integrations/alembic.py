"""Alembic for applications whose tables are searchable. Import it in ``env.py``:

    import worker.integrations.alembic  # noqa: F401

Migrations then have ``op.enable_embedding`` and ``op.disable_embedding``; ``--autogenerate`` writes
them from what the models declare, and leaves alone what ``embed.enable`` has made: vector tables,
indexes, the schema ``embed``.
"""

import pgvector.sqlalchemy  # noqa: F401 -- Alembic reads columns of its types

import worker.integrations.comparison  # noqa: F401 -- registers itself
from worker.integrations.operations import DisableEmbedding, EnableEmbedding

__all__ = ["DisableEmbedding", "EnableEmbedding"]
