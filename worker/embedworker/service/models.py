"""The encoders of a process, loaded when first needed, and their numbers in the database."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

from psycopg.types.json import Jsonb

from embedworker.database.rows import fetch_one
from embedworker.database.statements import statement
from embedworker.endpoints import Endpoints
from embedworker.errors import ConfigurationError
from embedworker.extras import require
from embedworker.model import Encoder, open_encoder
from embedworker.model.cpu import cpu_quota, set_threads
from embedworker.queue.source import Connection
from embedworker.service.encoders import Card, Encoders, Opening
from embedworker.service.failpoints import failpoint
from embedworker.service.logs import redacted
from embedworker.service.model_cache import ModelCache
from embedworker.service.monitoring.health import Telemetry
from embedworker.settings import Settings

__all__ = ["Card", "Loaded", "Models", "open_card"]

log = logging.getLogger("embedworker.models")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model and the number of its fingerprint in ``embed.fingerprint``."""

    name: str
    encoder: Encoder
    fingerprint: int
    notes: Mapping[str, str | int]
    """those of the encoder when it was registered"""
    opening: Opening | None = None

    def call(self, action: Callable[[], T]) -> T:
        """Do something with the encoder, in turn with the other databases that use it."""
        return action() if self.opening is None else self.opening.call(action)


class Models:
    """Loads each model once. One that fails is tried again, less and less often.

    When another is loaded, those that nothing in the database uses any longer are forgotten.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        threads: int | None,
        telemetry: Telemetry | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry or Telemetry()
        self._threads = threads
        self._all = encoders or Encoders()
        self._encoders: dict[str, Opening] = {}
        # Once the number format is corrected, the notes in the database are, too.
        self._cache = ModelCache[Loaded](
            log, "model", lambda loaded: loaded.notes is loaded.encoder.notes
        )
        self._opening: dict[str, Opening] = {}

    @property
    def loading(self) -> bool:
        """Whether :meth:`get_nowait` will have another model soon."""
        return not all(opening.future.done() for opening in self._opening.values())

    def has_said(self, error: BaseException) -> bool:
        """Whether the log has this failure of a load already."""
        return self._cache.has_said(error)

    def get_nowait(
        self, connection: Connection, name: str, over: Callable[[], None] = lambda: None
    ) -> Loaded | None:
        """Do what :meth:`get` does, but load in another thread: None until that is ``over``."""
        opening = self._opening.get(name)
        known = name in self._encoders or self._cache.failed_recently(name)
        if opening is None and not known:
            opening = self._begin(connection, name)
            if opening is not None:
                opening.future.add_done_callback(lambda _: over())
        if opening is not None and not opening.future.done():
            return None
        return self.get(connection, name)

    def get(self, connection: Connection, name: str) -> Loaded:
        """Return the model, loading it if need be.

        Raises what loading it raised, ModelError or ConfigurationError as a rule; at once, while
        the last failure is recent.
        """

        def tried(error: Exception | None) -> None:
            self._telemetry.health.loaded(name, None if error is None else redacted(error))

        return self._cache.get(name, lambda: self._load(connection, name), tried)

    def use_threads(self) -> None:
        """Let torch use the threads of the setting in the calling thread."""
        if "torch" in sys.modules:
            set_threads(self._threads or cpu_quota())

    def forget_fingerprints(self) -> None:
        """Register the fingerprints again: the database may be another one by now."""
        self._cache.forget_all()

    def _load(self, connection: Connection, name: str) -> Loaded:
        card = self._card(connection, name)
        opening = self._opening.pop(name, None)
        if opening is None:
            opening = self._encoders.get(name) or self._find(card, beside=False)
        encoder = opening.future.result()
        if self._encoders.get(name) is not opening:
            opening.call(self.use_threads)  # the thread that loaded it has the number, not yet this
        self._encoders[name] = opening
        self._forget_unused(connection, name)
        fingerprint, notes = encoder.fingerprint, encoder.notes
        (number,) = fetch_one(
            connection.execute(
                statement("fingerprint_register"),
                {
                    **asdict(fingerprint),
                    "digest": fingerprint.digest,
                    "notes": Jsonb(dict(notes)),
                },
            )
        )
        return Loaded(name, encoder, int(number), notes, opening)

    def _begin(self, connection: Connection, name: str) -> Opening | None:
        try:
            card = self._card(connection, name)
        except ConfigurationError:
            return None  # get says it
        opening = self._opening[name] = self._find(card, beside=True)
        return opening

    def _find(self, card: Card, *, beside: bool) -> Opening:
        return self._all.find(card, lambda: self._open(card), beside=beside)

    @staticmethod
    def _card(connection: Connection, name: str) -> Card:
        card = connection.execute(statement("model_card"), {"name": name}).fetchone()
        if card is None:
            raise ConfigurationError(
                f"the database does not know the model {name!r}; add it with embed.add_model(…)"
            )
        return Card(*card)

    def _forget_unused(self, connection: Connection, name: str) -> None:
        used = {row[0] for row in connection.execute(statement("models_in_use"))}
        # One that is still being loaded cannot be stopped; forgotten, it would be loaded twice.
        opened = {other for other, opening in self._opening.items() if opening.future.done()}
        for other in (self._encoders.keys() | opened) - used - {name}:
            self._encoders.pop(other, None)
            self._opening.pop(other, None)
            self._cache.forget(other)
            log.info("model %s is used by nothing any more; it is forgotten", other)

    def _open(self, card: Card) -> Encoder:
        started = time.monotonic()
        name = card.name
        telemetry = self._telemetry
        telemetry.health.loading(name)
        try:
            failpoint("model-load")
            encoder = open_card(
                card,
                self._settings,
                threads=self._threads,
                questions=telemetry.lane == "questions",
            )
        finally:
            telemetry.health.opened(name)
        took = time.monotonic() - started
        telemetry.metrics.model_load.labels(telemetry.lane, name).set(took)
        log.info("model %s loaded in %.1f s: %s", name, took, dict(encoder.notes))
        return encoder


def open_card(
    card: Card, settings: Settings, *, threads: int | None = None, questions: bool = False
) -> Encoder:
    """Load a model, or reach its endpoint, as the settings say.

    ``questions``: for the lane of questions. It has one thread, and nobody waits longer for an
    answer than EMBEDWORKER_QUERY_TIMEOUT.
    """
    if card.endpoint is None:
        return open_encoder(
            card.name,
            query_prefix=card.query_prefix,
            passage_prefix=card.passage_prefix,
            dimensions=card.dimensions,
            cache_folder=settings.cache_dir,
            engine=settings.engine,
            device=settings.device,
            dtype=settings.dtype,
            threads=threads,
            token_budget=settings.batch_tokens,
        )
    require(f"the model {card.name!r}, which has an endpoint,", "remote")
    from embedworker.model.remote import RemoteEncoder

    timeout = settings.endpoint_timeout
    return RemoteEncoder(
        card.name,
        card.endpoint,
        Endpoints("" if settings.endpoints is None else settings.endpoints.get_secret_value()),
        dimensions=card.dimensions,
        max_tokens=card.max_tokens,
        query_prefix=card.query_prefix,
        passage_prefix=card.passage_prefix,
        texts=settings.endpoint_texts,
        requests=settings.endpoint_requests,
        timeout=min(timeout, settings.query_timeout) if questions else timeout,
    )
