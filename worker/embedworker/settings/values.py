"""The kinds of values that settings have: each has a unit, or needs to be made whole."""

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticUseDefault

__all__ = [
    "ENVIRONMENT_PREFIX",
    "Folder",
    "Port",
    "Requests",
    "Seconds",
    "Texts",
    "Threads",
    "Unit",
    "Vectors",
    "Word",
    "is_service_link",
]

ENVIRONMENT_PREFIX = "EMBEDWORKER_"

# For a service that is named embedworker-metrics, Kubernetes sets EMBEDWORKER_METRICS_PORT to this.
_SERVICE_LINK = re.compile(r"^(?:tcp|udp|sctp)://")


class Unit(NamedTuple):
    """What a number counts, for the reference."""

    name: str


def is_service_link(value: object) -> bool:
    """Return whether this is the address that Kubernetes writes into a variable `…_PORT`."""
    return isinstance(value, str) and _SERVICE_LINK.match(value) is not None


def _no_service_link(value: object) -> object:
    if is_service_link(value):
        raise PydanticUseDefault
    return value


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Seconds = Annotated[float, Unit("s")]
Texts = Annotated[int, Unit("texts")]
Threads = Annotated[int, Unit("threads")]
Vectors = Annotated[int, Unit("vectors")]
Requests = Annotated[int, Unit("requests")]
Port = Annotated[int, Field(ge=0, le=65535), BeforeValidator(_no_service_link), Unit("port")]
Folder = Annotated[Path, AfterValidator(_absolute)]  # or a file
Word = BeforeValidator(_lower)  # is read in any case
