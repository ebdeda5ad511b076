"""Every setting: its name, unit, default, environment variable and meaning.

    from embedworker.settings import load

    settings = load()                      # environment only
    settings = load(window=256, threads=2) # what a flag or an application says wins

A setting ``window`` is the variable ``EMBEDWORKER_WINDOW`` and the flag ``--window``. The database
alone has two variables: ``EMBEDWORKER_DATABASE_URL``, and ``DATABASE_URL`` when that is not set.
"""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from embedworker.errors import ConfigurationError
from embedworker.settings.database import DatabaseSettings
from embedworker.settings.model import ModelSettings
from embedworker.settings.passwords import obfuscate
from embedworker.settings.servers import (
    McpSettings,
    MetricsSettings,
    ServeSettings,
    WebSettings,
)
from embedworker.settings.values import ENVIRONMENT_PREFIX, is_service_link
from embedworker.settings.worker import WorkerSettings

__all__ = [
    "Settings",
    "forget_service_links",
    "load",
    "misspelt",
    "obfuscate",
    "variables",
]

NEARLY = 0.9  # of 1, as difflib measures


class Settings(
    # Pydantic lists the fields of the last class first.
    MetricsSettings,
    McpSettings,
    WebSettings,
    ServeSettings,
    WorkerSettings,
    ModelSettings,
    DatabaseSettings,
    BaseSettings,
):
    """All settings, checked once and never changed afterwards."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            hidden = name is not None and name.endswith("_url") and isinstance(value, str)
            yield name, obfuscate(value) if hidden else value


def load(**given: Any) -> Settings:
    """Return the settings of the environment; values in ``given`` that are not None win.

    Raises:
        ConfigurationError: one line for each setting that is wrong.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [_complaint(entry["loc"], entry["msg"]) for entry in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def variables() -> list[str]:
    """Return the variables of the environment that are read here."""
    known = {ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields}
    return [name for name in os.environ if name in known or name == "DATABASE_URL"]


def forget_service_links() -> None:
    """Remove the variables `…_PORT` of Kubernetes, which are addresses, from the environment."""
    for name in variables():
        if name.endswith("_PORT") and is_service_link(os.environ[name]):
            del os.environ[name]


def misspelt() -> dict[str, str]:
    """Return misspelt variables of the environment, and the setting that each resembles.

    Other variables with this prefix are no mistakes: for a service of this name, Kubernetes sets
    EMBEDWORKER_PORT_8100_TCP and EMBEDWORKER_SERVICE_HOST.
    """
    known = [ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields]
    return {
        variable: nearest[0]
        for variable in os.environ
        if variable.startswith(ENVIRONMENT_PREFIX)
        and variable not in known
        and not variable.startswith(f"{ENVIRONMENT_PREFIX}SERVICE_")
        and (nearest := get_close_matches(variable, known, 1, NEARLY))
    }


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    name = str(location[0])
    if name.lower() not in Settings.model_fields and not name.endswith("DATABASE_URL"):
        return f"unknown setting {name!r}; expected one of: {', '.join(Settings.model_fields)}"
    variable = name if name.isupper() else ENVIRONMENT_PREFIX + name.upper()
    reason = message.removeprefix("Value error, ")
    return f"{variable} is wrong: {reason[:1].lower()}{reason[1:]}"
