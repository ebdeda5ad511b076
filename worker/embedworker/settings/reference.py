"""Every setting as a row of the reference in the documentation."""

from typing import NamedTuple, get_args

from embedworker.settings import Settings
from embedworker.settings.values import ENVIRONMENT_PREFIX, Unit

__all__ = ["Description", "describe"]

_COMPUTED_DEFAULTS = {
    "cache_dir": "embedworker in the user's cache folder",
    "index_memory": "a quarter of the memory, at most 2GiB",
}


class Description(NamedTuple):
    """One row of the reference table of settings."""

    name: str
    variable: str
    default: str
    unit: str
    meaning: str


def describe() -> list[Description]:
    """Return every setting in order of the class."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = _COMPUTED_DEFAULTS.get(name, field.default)
        if isinstance(default, float):
            default = f"{default:g}"
        marks = field.metadata.copy()
        for part in get_args(field.annotation):  # the port of `Port | None`
            marks += getattr(part, "__metadata__", ())
        rows.append(
            Description(
                name=name,
                variable=ENVIRONMENT_PREFIX + name.upper(),
                default="not set" if default is None else str(default),
                unit="".join(mark.name for mark in marks if isinstance(mark, Unit)),
                meaning=field.description or "",
            )
        )
    return rows
