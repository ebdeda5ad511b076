"""Places where a test can end or stop the process: EMBEDWORKER_FAILPOINT="after-claim:kill".

Actions: ``kill`` ends it as kill -9 does, at the first passing; ``hang`` waits until the file named
by EMBEDWORKER_FAILPOINT_GATE exists, and makes that name with the ending ``.reached`` to say so.
Without the variable a failpoint does nothing.
"""

import os
import signal
import time
from pathlib import Path

__all__ = ["failpoint"]

_NAME, _, _ACTION = os.environ.get("EMBEDWORKER_FAILPOINT", "").partition(":")
_GATE_POLL = 0.01  # seconds


def failpoint(name: str) -> None:
    """Do what the environment asks for at the place ``name``."""
    if name != _NAME:
        return
    if _ACTION == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    gate = Path(os.environ["EMBEDWORKER_FAILPOINT_GATE"])
    gate.with_suffix(".reached").touch()
    while not gate.exists():
        time.sleep(_GATE_POLL)
