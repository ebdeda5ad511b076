"""What a fleet needs and takes: rows, tokens, hours, disk and connections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from embedworker import figures
from embedworker.cli.database import Connection
from embedworker.cli.sampling import sample
from embedworker.cli.switch_plan import COPIES, REAL, hours
from embedworker.errors import ConfigurationError
from embedworker.fleet.progress import CONNECTIONS, Connections, SourceProgress
from embedworker.queue.source import load_sources

if TYPE_CHECKING:
    from embedworker.settings import Settings

__all__ = ["Estimate", "check_connections", "estimate"]

SAMPLE = 64  # texts of a table that go through its model


class Estimate(NamedTuple):
    """Of one source: rows that wait, their tokens, seconds of the fleet, bytes that are new."""

    source: str
    name: str
    rows: int
    tokens: int
    seconds: float
    bytes: int
    texts_per_second: float

    def lines(self, workers: int) -> list[str]:
        """Return it as a person reads it."""
        return [
            f"{self.source} ({self.name})",
            f"  rows:    {figures.count(self.rows)} wait to be embedded",
            f"  tokens:  {figures.count(self.tokens)}, from a sample",
            f"  time:    {hours(self.seconds)} with workers: {workers}; one embeds "
            f"{self.texts_per_second:.1f} texts a second on this machine",
            f"  disk:    {figures.size(self.bytes)} of vectors and their index",
        ]

    def plain(self) -> dict[str, Any]:
        """Return it for a program."""
        return self._asdict()


def estimate(
    connection: Connection,
    found: Sequence[SourceProgress],
    settings: "Settings",
    workers: int,
    rate: float | None,
) -> list[Estimate]:
    """Put a sample of each source through its model.

    Raises ModelError when the model cannot be loaded here.
    """
    sources = {source.id: source for source in load_sources(connection)}
    made = []
    for one in found:
        measured = sample(connection, sources[one.id], sources[one.id].model, settings, SAMPLE)
        rows = one.pending or 0
        speed = max(measured.rate * workers, 1e-9)
        made.append(
            Estimate(
                one.source,
                one.name,
                rows,
                round(rows * measured.tokens),
                rows / min(speed, rate or speed),
                COPIES * REAL * measured.dimensions * rows,
                measured.rate,
            )
        )
    return made


def check_connections(found: Connections, workers: int) -> None:
    """Raise ConfigurationError, with the numbers, unless the server has the connections."""
    needed = workers * CONNECTIONS
    if needed > found.free:
        raise ConfigurationError(
            f"{workers} workers need {needed} connections and the server has {found.free} free: "
            f"max_connections is {found.most}, of which {found.kept} are reserved and {found.used} "
            f"in use; give --workers {found.free // CONNECTIONS} or less, close connections, or "
            "raise max_connections"
            if found.free >= CONNECTIONS
            else f"a worker needs {CONNECTIONS} connections and the server has {found.free} free: "
            f"max_connections is {found.most}, of which {found.kept} are reserved and {found.used} "
            "in use; close connections or raise max_connections"
        )
