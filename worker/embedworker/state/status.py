"""How far a source is. Imports no database client, because every command imports this."""

from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["SourceStatus"]


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """One row of the view ``embed.status``."""

    source: str
    name: str
    model: str
    state: str
    coverage: str | None
    rows: int | None
    embedded: int | None
    pending: int | None
    stale: int | None
    dead: int | None
    removing: int | None
    oldest_wait: timedelta | None
    rows_per_second: float | None
    eta: timedelta | None
    truncated: int | None
    split: int | None
    paused: bool
    index_state: str
    error: str | None
    counted_at: datetime | None
    estimated: bool | None
    words: bool
    storage: str | None
    row_bytes: int | None
    index_bytes: int

    @property
    def title(self) -> str:
        """The table, with the name of the source where that is another."""
        bare = self.source.rpartition(".")[2].strip('"')
        return self.source if self.name == bare else f"{self.source} ({self.name})"
