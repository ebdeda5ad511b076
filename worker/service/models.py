"""The encoders of a process, loaded when first needed, and their numbers in the database."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass

from psycopg.types.json import Jsonb

from worker.database.rows import one
from worker.database.statements import statement
from worker.errors import ConfigurationError, ModelError
from worker.model import Encoder, open_encoder
from worker.model.cpu import cpu_quota, set_threads
from worker.queue.source import Connection
from worker.service.health import Telemetry
from worker.service.logs import sayable
from worker.service.patience import Patience
from worker.settings import Settings

__all__ = ["Loaded", "Models"]

log = logging.getLogger("embedworker.models")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model and the number of its fingerprint in ``embed.fingerprint``."""

    name: str
    encoder: Encoder
    fingerprint: int


class Models:
    """Loads each model once. One that fails is tried again, less and less often.

    When another is loaded, those that nothing in the database uses any longer are forgotten.
    """

    def __init__(
        self, settings: Settings, *, threads: int | None, telemetry: Telemetry | None = None
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry or Telemetry()
        self._threads = threads
        self._lock = threading.Lock()
        self._encoders: dict[str, Encoder] = {}
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, tuple[float, Exception, Patience]] = {}
        self._opening: dict[str, Future[Encoder]] = {}

    @property
    def loading(self) -> bool:
        """Whether :meth:`ready` will have another model soon."""
        return not all(opening.done() for opening in self._opening.values())

    def ready(
        self, connection: Connection, name: str, over: Callable[[], None] = lambda: None
    ) -> Loaded | None:
        """Do what :meth:`get` does, but load in another thread: None until that is ``over``."""
        opening = self._opening.get(name)
        tried_at = self._failed[name][0] if name in self._failed else 0.0
        if opening is None and name not in self._encoders and time.monotonic() >= tried_at:
            opening = self._begin(connection, name)
            if opening is not None:
                opening.add_done_callback(lambda _: over())
        if opening is not None and not opening.done():
            return None
        return self.get(connection, name)

    def get(self, connection: Connection, name: str) -> Loaded:
        """Return the model, loading it if need be.

        Raises ModelError or ConfigurationError; at once, while the last failure is recent.
        """
        with self._lock:
            found = self._loaded.get(name)
            if found is not None:
                return found
            again_at, error, patience = self._failed.get(name, (0.0, None, None))
            if error is not None and time.monotonic() < again_at:
                raise error
            patience = patience or Patience(log, f"model {name}", longest=60.0)
            try:
                loaded = self._load(connection, name)
            except (ModelError, ConfigurationError) as failure:
                patience.say(failure)
                self._telemetry.health.loaded(name, sayable(failure))
                self._failed[name] = (time.monotonic() + patience.next_pause(), failure, patience)
                raise
            patience.success()
            self._telemetry.health.loaded(name, None)
            self._failed.pop(name, None)
            self._loaded[name] = loaded
            return loaded

    def renew(self) -> None:
        """Register the fingerprints anew: the database may be another one by now."""
        with self._lock:
            self._loaded.clear()

    def _load(self, connection: Connection, name: str) -> Loaded:
        card = self._card(connection, name)
        opening = self._opening.pop(name, None)
        if opening is not None:
            self._encoders[name] = opening.result()
            if "torch" in sys.modules:  # the thread that loaded it has the number, not yet this one
                set_threads(self._threads or cpu_quota())
        elif name not in self._encoders:
            self._encoders[name] = self._open(name, *card)
        self._forget_unused(connection, name)
        encoder = self._encoders[name]
        fingerprint = encoder.fingerprint
        (number,) = one(
            connection.execute(
                statement("fingerprint_register"),
                {
                    **asdict(fingerprint),
                    "digest": fingerprint.digest,
                    "notes": Jsonb(dict(encoder.notes)),
                },
            )
        )
        return Loaded(name, encoder, int(number))

    def _begin(self, connection: Connection, name: str) -> Future[Encoder] | None:
        try:
            card = self._card(connection, name)
        except ConfigurationError:
            return None  # get says it
        opening = self._opening[name] = Future[Encoder]()

        def run() -> None:
            try:
                opening.set_result(self._open(name, *card))
            except BaseException as error:
                opening.set_exception(error)

        # One for each, or a model whose download hangs would keep the others from being loaded.
        # Not a pool's: those take nothing any more once the main thread has ended, whose others may
        # go on.
        threading.Thread(target=run, name=f"load {name}").start()
        return opening

    @staticmethod
    def _card(connection: Connection, name: str) -> tuple[int, str, str]:
        card = connection.execute(statement("model_card"), {"name": name}).fetchone()
        if card is None:
            raise ConfigurationError(
                f"the database does not know the model {name!r}; add it with embed.add_model(…)"
            )
        _, dimensions, _, query_prefix, passage_prefix, *_ = card
        return dimensions, query_prefix, passage_prefix

    def _forget_unused(self, connection: Connection, name: str) -> None:
        used = {row[0] for row in connection.execute(statement("models_in_use"))}
        # One that is still being loaded cannot be stopped; forgotten, it would be loaded twice.
        opened = {other for other, opening in self._opening.items() if opening.done()}
        for other in (self._encoders.keys() | opened) - used - {name}:
            self._encoders.pop(other, None)
            self._opening.pop(other, None)
            self._loaded.pop(other, None)
            log.info("model %s is used by nothing any more; it is forgotten", other)

    def _open(self, name: str, dimensions: int, query_prefix: str, passage_prefix: str) -> Encoder:
        started = time.monotonic()
        chosen = self._settings
        telemetry = self._telemetry
        telemetry.health.loading(name)
        try:
            encoder = open_encoder(
                name,
                query_prefix=query_prefix,
                passage_prefix=passage_prefix,
                dimensions=dimensions,
                cache_folder=chosen.cache_dir,
                engine=chosen.engine,
                device=chosen.device,
                dtype=chosen.dtype,
                threads=self._threads,
                token_budget=chosen.batch_tokens,
            )
        finally:
            telemetry.health.opened(name)
        took = time.monotonic() - started
        telemetry.metrics.model_load.labels(telemetry.lane, name).set(took)
        log.info("model %s loaded in %.1f s: %s", name, took, dict(encoder.notes))
        return encoder
