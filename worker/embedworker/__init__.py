"""embedworker: text columns of PostgreSQL tables, searchable by meaning.

A :class:`Worker` keeps vectors current and answers questions inside a process of yours, as
``embedworker run`` does in its own; a :class:`Client` searches:

>>> from embedworker import Client, Worker
>>> with Worker(url) as worker, Client(url) as client:
...     ready = worker.wait_ready(timeout=60)
...     for hit in client.search("embed.document", "my washing machine shows F-05", k=1):
...         print(hit.row["title"], hit.key)
Washing machine {'id': 1}

The same with ``async with`` and :class:`AsyncClient`. :func:`migrate` sets a database up, for
example one that a test runner has created. SQLAlchemy and Alembic have modules of their own:
``embedworker.integrations.sqlalchemy``, ``embedworker.integrations.alembic``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedworker.database.install import migrate
    from embedworker.search.client import AsyncClient, Client
    from embedworker.search.steps import Hit
    from embedworker.service.worker import Worker

__all__ = ["AsyncClient", "Client", "Hit", "Worker", "migrate"]

_PLACES = {
    "AsyncClient": "embedworker.search.client",
    "Client": "embedworker.search.client",
    "Hit": "embedworker.search.steps",
    "Worker": "embedworker.service.worker",
    "migrate": "embedworker.database.install",
}


def __getattr__(name: str) -> Any:
    # Only what is used is imported: the worker brings torch, which takes seconds.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "Worker":
        from embedworker.extras import require

        require("Worker", "worker")
    return getattr(import_module(_PLACES[name]), name)
