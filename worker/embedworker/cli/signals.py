"""What SIGTERM, SIGHUP and Ctrl-C do to a command that runs until then."""

import logging
import os
import signal
import time
from collections.abc import Callable
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
    """
    first: float | None = None

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            if not is_child:  # the parent has logged it
                log.info("%s: ending in order", signal.Signals(number).name)
            stop()
        elif not is_child and time.monotonic() - first > SAME_SIGNAL:
            os._exit(1)

    terminal = [signal.SIGINT]
    if reload is not None:
        signal.signal(signal.SIGHUP, lambda *_: reload())
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        terminal.append(signal.SIGHUP)
    signal.signal(signal.SIGTERM, on_signal)
    for number in terminal:
        signal.signal(number, signal.SIG_IGN if is_child else on_signal)
