"""What SIGTERM, SIGHUP and Ctrl-C do to a command that runs until then."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from types import FrameType

__all__ = ["stop_on_signals"]

log = logging.getLogger("embedworker")

# Seconds in which a second signal is the first one again: timeout(1) sends SIGTERM to the process
# and then to its group, within a millisecond.
SAME_SIGNAL = 0.5


def stop_on_signals(
    stop: Callable[[], None],
    *,
    is_child: bool = False,
    reload: Callable[[], None] | None = None,
) -> None:
    """End in order at the first signal, and at once at a second one that comes later.

    With ``reload``, SIGHUP calls that instead.

    A child never ends at once: its parent does, and the child follows it (``end_with_parent``). A
    signal for the whole process group reaches the child twice, from the group and from its parent.

    ``stop`` and ``reload`` run in a thread. A handler runs in the main thread, which may hold the
    lock of the event that ``stop`` sets: 1 of 10 ends after SIGSTOP and SIGCONT then never came.
    """
    first: float | None = None
    heard: SimpleQueue[Callable[[], None]] = SimpleQueue()  # its put may be called in a handler

    def act() -> None:
        while True:
            heard.get()()

    def end(name: str) -> None:
        if not is_child:  # the parent has logged it
            log.info("%s: ending in order", name)
        stop()

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            heard.put(partial(end, signal.Signals(number).name))
        elif not is_child and time.monotonic() - first > SAME_SIGNAL:
            os._exit(1)

    threading.Thread(target=act, name="signals", daemon=True).start()
    terminal = [signal.SIGINT]
    if reload is not None:
        signal.signal(signal.SIGHUP, lambda *_: heard.put(reload))
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        terminal.append(signal.SIGHUP)
    signal.signal(signal.SIGTERM, on_signal)
    for number in terminal:
        signal.signal(number, signal.SIG_IGN if is_child else on_signal)
