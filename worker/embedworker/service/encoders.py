"""The encoders of a process: each is loaded once, however many databases use it."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

from embedworker.model import Encoder
from embedworker.service.threads import Thread

__all__ = ["Card", "Encoders", "Opening"]

T = TypeVar("T")

END_LOOK = 0.2  # seconds between looks at whether the program ends while a model is loaded


class Card(NamedTuple):
    """One row of the query ``model_card``."""

    name: str
    dimensions: int
    max_tokens: int
    query_prefix: str
    passage_prefix: str
    endpoint: str | None


class Opening:
    """An encoder that is being loaded, or the error that its load ended with."""

    def __init__(self, name: str, *, shared: bool) -> None:
        self.future: Future[Encoder] = Future()
        self._executor = ThreadPoolExecutor(1, f"model {name}") if shared else None

    @property
    def failed(self) -> bool:
        """Whether the load ended with an error."""
        return self.future.done() and self.future.exception() is not None

    def call(self, action: Callable[[], T]) -> T:
        """Do something with the encoder, and return what that returns.

        Where databases share it, one thread takes their calls in the order they came. A thread for
        each database would have a pool of processor threads of its own.
        """
        if self._executor is None:
            return action()
        return self._executor.submit(copy_context().run, action).result()


class Encoders:
    """Finds the encoder of a card, and forgets those that no database holds any longer.

    ``shared``: several databases use them, each from threads of its own.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._openings: WeakValueDictionary[Card, Opening] = WeakValueDictionary()

    def find(self, card: Card, load: Callable[[], Encoder], *, beside: bool) -> Opening:
        """Return the encoder of a card; begin to load it if nobody did.

        ``beside``: in another thread. Else it is loaded at the return, unless another loads it.
        """
        with self._lock:
            found = self._openings.get(card)
            if found is not None and not found.failed:
                return found
            opening = self._openings[card] = Opening(card.name, shared=self._shared)

        def run() -> None:
            try:
                opening.future.set_result(load())
            except BaseException as error:
                opening.future.set_exception(error)

        if beside:
            # One for each, or a model whose download hangs would keep the others from being loaded.
            # Not a pool's: those take nothing any more once the main thread has ended, whose others
            # may go on.
            loading = Thread(target=run, name=f"load {card.name}")
            loading.start()
            threading.Thread(target=_end_with_program, args=(loading,), daemon=True).start()
        else:
            run()
        return opening


def _end_with_program(loading: threading.Thread) -> None:
    """Break a load off when the program ends: Python waits for its thread, minutes for a download.

    A daemon thread would not be waited for, but libraries of C abort the process when theirs ends.
    """
    program = threading.main_thread()
    while loading.is_alive():
        program.join(END_LOOK)
        if not program.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(loading.ident or 0), ctypes.py_object(SystemExit)
            )
            loading.join(END_LOOK)
