"""The models of a worker's sources, one of them loaded while the others are used."""

import threading
from collections.abc import Set

from embedworker.errors import DimensionMismatch
from embedworker.queue.source import Connection, Source
from embedworker.service.models import Loaded, Models

__all__ = ["Loading", "SourceModels"]


class Loading(Exception):
    """The source's model is being loaded by another thread."""


class SourceModels:
    """Finds the model of a source.

    With ``wake``, another thread loads a model, which may download for minutes, and sets ``wake``
    at the end. Without it, the first use waits.
    """

    def __init__(
        self, connection: Connection, models: Models, wake: threading.Event | None
    ) -> None:
        self._connection = connection
        self._models = models
        self._wake = wake
        self.awaited: set[str] = set()
        """Models that sources wait for."""

    def look(self, used: Set[str]) -> None:
        """Wait no longer for models that are loaded, or that no source uses."""
        self.awaited = {name for name in self.awaited & used if self._loading(name)}

    def load(self, source: Source) -> Loaded:
        """Return the model of a source.

        Raises Loading while another thread loads it, ModelError, DimensionMismatch among them, or
        ConfigurationError.
        """
        loaded = self._find(source.model)
        if loaded is None:
            self.awaited.add(source.model)
            raise Loading
        if loaded.encoder.dimensions != source.dimensions:
            raise DimensionMismatch(
                f"the model {source.model!r} makes vectors of {loaded.encoder.dimensions} "
                f"dimensions, the vectors of {source} have {source.dimensions}; enable it with a "
                "model that fits, or disable it with drop_vectors first"
            )
        return loaded

    def _find(self, name: str) -> Loaded | None:
        if self._wake is None:
            return self._models.get(self._connection, name)
        return self._models.get_nowait(self._connection, name, self._wake.set)

    def _loading(self, name: str) -> bool:
        try:
            return self._find(name) is None
        except Exception:
            if self._connection.closed:
                raise
            return False  # load raises it again, for each source
