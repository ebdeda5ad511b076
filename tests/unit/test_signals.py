"""A signal that comes at a bad moment."""

import subprocess
import sys

PROGRAM = """
import os, signal, threading
from embedworker.cli.signals import stop_on_signals

stopped = threading.Event()
stop_on_signals(stopped.set)
with stopped._cond:  # where a wait begins and ends
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(1000))
print(stopped.wait(10))
"""


def test_the_main_thread_may_hold_the_lock_of_what_the_signal_sets() -> None:
    """It waited for itself without end: the worker did not stop at SIGTERM."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "True\n"
