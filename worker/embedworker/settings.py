"""Every setting: its name, unit, default, environment variable and meaning.

    from embedworker.settings import load

    settings = load()                      # environment only
    settings = load(window=256, threads=2) # what a flag or an application says wins

A setting ``window`` is the variable ``EMBEDWORKER_WINDOW`` and the flag ``--window``. The database
alone has two variables: ``EMBEDWORKER_DATABASE_URL``, and ``DATABASE_URL`` when that is not set.
"""

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

import platformdirs
from pydantic import (
    AliasChoices,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from embedworker.endpoints import Endpoints
from embedworker.errors import ConfigurationError
from embedworker.machine import memory

__all__ = [
    "Description",
    "Settings",
    "describe",
    "forget_service_links",
    "index_memory",
    "load",
    "misspelt",
    "obfuscate",
    "variables",
]

ENVIRONMENT_PREFIX = "EMBEDWORKER_"
NEARLY = 0.9  # of 1, as difflib measures

DEFAULT_MODEL = "dragonkue/multilingual-e5-small-ko-v2"
DEFAULT_LEASE = 60.0  # seconds
DEFAULT_POLL_MIN = 0.05  # seconds
DEFAULT_POLL_MAX = 2.0  # seconds
DEFAULT_WINDOW = 1024  # texts
DEFAULT_QUERY_THREADS = 1  # threads
DEFAULT_MAX_ATTEMPTS = 5  # attempts
DEFAULT_BACKOFF_MAX = 300.0  # seconds
DEFAULT_BATCH_TIMEOUT = 300.0  # seconds
DEFAULT_ENDPOINT_TEXTS = 32  # texts
DEFAULT_ENDPOINT_REQUESTS = 4  # requests
DEFAULT_ENDPOINT_TIMEOUT = 30.0  # seconds
DEFAULT_LOCK_TIMEOUT = 1.0  # seconds
DEFAULT_ANSWER_TIMEOUT = 15.0  # seconds
DEFAULT_QUERY_TIMEOUT = 5.0  # seconds
DEFAULT_SWEEP_INTERVAL = 86400.0  # seconds
DEFAULT_INDEX_AFTER_ROWS = 1000  # vectors
DEFAULT_WORDS_INDEX_AFTER_ROWS = 5000  # vectors; from 10,000 on nothing else finds rows by words
DEFAULT_NICE = 19  # steps of nice(2)
DEFAULT_METRICS_HOST = "127.0.0.1"
DEFAULT_SERVE_HOST = "127.0.0.1"
DEFAULT_SERVE_PORT = 8100
DEFAULT_SERVE_BODY = 8 * 1024 * 1024  # bytes
DEFAULT_SERVE_INPUTS = 2048  # texts
DEFAULT_SERVE_CHARACTERS = 1_000_000  # characters
DEFAULT_SERVE_WAITING = 64  # requests
DEFAULT_WEB_HOST = "127.0.0.1"
DEFAULT_WEB_PORT = 8200
DEFAULT_MCP_HOST = "127.0.0.1"
DEFAULT_MCP_PORT = 8300
DEFAULT_STALLED_AFTER = 60.0  # seconds

MOST_INDEX_MEMORY = 2 * 1024**3  # bytes, of the default
LEAST_INDEX_MEMORY = 1024**2  # bytes; the server takes no less

# Beyond these a claim fails in the database, or holds more text than any memory.
MOST_WINDOW = 100_000  # texts
LONGEST_LEASE = 86_400.0  # seconds

# For a service that is named embedworker-metrics, Kubernetes sets EMBEDWORKER_METRICS_PORT to this.
_SERVICE_LINK = re.compile(r"^(?:tcp|udp|sctp)://")

_HIDDEN = "***"
_PASSWORD_IN_DSN = re.compile(r"(\b(?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])+)")
# A URL without its "://" is neither form, and is shown in the error that says so.
_PASSWORD_IN_NEITHER = re.compile(r":.*@", re.DOTALL)


def obfuscate(url: str) -> str:
    """Return a database URL or ``key=value`` DSN with every password replaced by ``***``."""
    if "://" not in url:
        shown = _PASSWORD_IN_DSN.sub(rf"\g<1>{_HIDDEN}", url)
        return _PASSWORD_IN_NEITHER.sub(f":{_HIDDEN}@", shown)
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if "@" in query:  # a raw ? in a password looks like this: nothing of it is safe to show
        return f"{scheme}://{_HIDDEN}"
    # The last @ ends the credentials, so that a raw @ or / in a password stays hidden with it.
    credentials, at, server = place.rpartition("@")
    user, colon, _ = credentials.partition(":")
    pairs = parse_qsl(query, keep_blank_values=True)
    hidden = [(key, _HIDDEN if "password" in key else value) for key, value in pairs]
    shown = f"{scheme}://{user}{f':{_HIDDEN}' if colon else ''}{at}{server}"
    return f"{shown}?{urlencode(hidden, safe='*/:,')}" if hidden else shown


def _user_cache() -> Path:
    return platformdirs.user_cache_path("embedworker", appauthor=False)


def index_memory() -> ByteSize:
    """Return the default for ``index_memory``, in bytes: at most a quarter of the memory."""
    return ByteSize(min(memory() // 4, MOST_INDEX_MEMORY))


class Settings(BaseSettings):
    """All settings, checked once and never changed afterwards."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices(f"{ENVIRONMENT_PREFIX}DATABASE_URL", "DATABASE_URL"),
        description="Where PostgreSQL is: postgresql://…, postgresql+psycopg://… or key=value. Not "
        "set: the embedded server. DATABASE_URL is used when this variable is not set",
    )
    listen_url: str | None = Field(
        default=None,
        description="Direct connection for LISTEN and for building indexes when the database URL "
        "goes through a transaction pooler; not set: the database URL",
    )
    loopback_host: str | None = Field(
        default=None,
        description="Host under which the database server reaches itself for embed.query; not set: "
        "found by `migrate`",
    )
    data_dir: Path | None = Field(
        default=None,
        description="Folder of the embedded server; not set: embedworker in the user's data folder "
        "(as root: below /var/lib/embedworker)",
    )
    cache_dir: Path = Field(
        default_factory=_user_cache,
        description="Folder of downloaded and unpacked models",
    )
    model: str = Field(
        default=DEFAULT_MODEL,
        min_length=1,
        description="Model name, folder, or bundled:multilingual-e5-small",
    )
    engine: Literal["torch", "openvino"] = Field(
        default="torch",
        description="Engine of the model: torch, or openvino, which is faster on a processor and "
        "needs `pip install 'embedworker[openvino]'`",
    )
    endpoints: SecretStr | None = Field(
        default=None,
        description="Endpoints that models may use, separated by spaces: http://HOST:PORT, or "
        "https://HOST=KEY with the key for it",
    )
    endpoint_texts: int = Field(
        default=DEFAULT_ENDPOINT_TEXTS, ge=1, description="Texts of one request to an endpoint"
    )
    endpoint_requests: int = Field(
        default=DEFAULT_ENDPOINT_REQUESTS,
        ge=1,
        description="Requests for passages that a worker has under way at an endpoint",
    )
    endpoint_timeout: float = Field(
        default=DEFAULT_ENDPOINT_TIMEOUT,
        gt=0,
        description="Time for one request to an endpoint; a question has at most "
        "EMBEDWORKER_QUERY_TIMEOUT",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|xpu|cuda(:\d+)?)$",
        description="Where the model runs: auto, cpu, cuda, cuda:1, mps, xpu",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Number format of the model: auto (bfloat16 where the hardware has it), "
        "float32, bfloat16",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Threads for bulk embedding; not set: one for each processor that the worker "
        "may use",
    )
    query_threads: int = Field(
        default=DEFAULT_QUERY_THREADS, ge=1, description="Threads for questions"
    )
    nice: int = Field(
        default=DEFAULT_NICE,
        ge=0,
        le=19,
        description="Nice value of the bulk process, so that questions stay quick",
    )
    window: int = Field(
        default=DEFAULT_WINDOW,
        ge=1,
        le=MOST_WINDOW,
        description="Texts that a worker claims at once and sorts by length",
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Padded tokens in one model call; not set: chosen for the device",
    )
    lease: float = Field(
        default=DEFAULT_LEASE,
        ge=1,
        le=LONGEST_LEASE,
        description="Time after which other workers may take the rows of a silent worker",
    )
    poll_min: float = Field(
        default=DEFAULT_POLL_MIN, gt=0, description="Shortest wait between polls of an empty queue"
    )
    poll_max: float = Field(
        default=DEFAULT_POLL_MAX, gt=0, description="Longest wait between polls of an empty queue"
    )
    max_attempts: int = Field(
        default=DEFAULT_MAX_ATTEMPTS, ge=1, description="Attempts before a row is dead"
    )
    backoff_max: float = Field(
        default=DEFAULT_BACKOFF_MAX, gt=0, description="Longest wait before a row is tried again"
    )
    batch_timeout: float = Field(
        default=DEFAULT_BATCH_TIMEOUT, gt=0, description="Longest time for one window at the model"
    )
    query_timeout: float = Field(
        default=DEFAULT_QUERY_TIMEOUT, gt=0, description="Longest wait for a question's vector"
    )
    lock_timeout: float = Field(
        default=DEFAULT_LOCK_TIMEOUT,
        gt=0,
        description="Longest wait of the worker for a database lock",
    )
    answer_timeout: float = Field(
        default=DEFAULT_ANSWER_TIMEOUT,
        gt=0,
        description="Silence of the server after which the worker checks the statement over a "
        "second connection. If the server does not execute it any more, the worker reconnects",
    )
    sweep_interval: float = Field(
        default=DEFAULT_SWEEP_INTERVAL,
        gt=0,
        description="Time between sweeps, which find what triggers cannot see; varies by a tenth",
    )
    index_after_rows: int = Field(
        default=DEFAULT_INDEX_AFTER_ROWS,
        ge=0,
        description="Vectors in a table before the worker builds its HNSW index",
    )
    words_index_after_rows: int = Field(
        default=DEFAULT_WORDS_INDEX_AFTER_ROWS,
        ge=0,
        description="Vectors in a table before the worker builds the index over its words. Smaller "
        "tables are read in whole",
    )
    index_memory: ByteSize = Field(
        default_factory=index_memory,
        ge=LEAST_INDEX_MEMORY,
        description="Largest memory of an index build on the server, such as 512MB or 4GiB. The "
        "default is for this machine: set less if the server has less memory",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port on which `run` answers /metrics, /healthz and /readyz, 0 for any free "
        "port; not set: none",
    )
    metrics_host: str = Field(
        default=DEFAULT_METRICS_HOST,
        min_length=1,
        description="Address of the metrics port; 0.0.0.0 for all addresses of this machine",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="Bearer token for /metrics, of at least 16 characters; required if other "
        "machines can reach the address",
    )
    metrics_token_file: Path | None = Field(
        default=None, description="File with tokens for /metrics, one per line"
    )
    query_prefix: str | None = Field(
        default=None, description="Prefix of a question in `serve`; not set: from the catalogue"
    )
    passage_prefix: str | None = Field(
        default=None, description="Prefix of a passage in `serve`; not set: from the catalogue"
    )
    serve_host: str = Field(
        default=DEFAULT_SERVE_HOST,
        min_length=1,
        description="Address on which `serve` listens; it needs a token if other machines can "
        "reach it",
    )
    serve_port: int = Field(
        default=DEFAULT_SERVE_PORT,
        ge=0,
        le=65535,
        description="Port on which `serve` listens, 0 for any free port",
    )
    serve_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that clients of `serve` must send, of at least 16 characters",
    )
    serve_token_file: Path | None = Field(
        default=None, description="File with tokens for `serve`, one per line"
    )
    serve_body: int = Field(
        default=DEFAULT_SERVE_BODY, ge=1, description="Largest body of a request to `serve`"
    )
    serve_inputs: int = Field(
        default=DEFAULT_SERVE_INPUTS, ge=1, description="Most texts in one request"
    )
    serve_characters: int = Field(
        default=DEFAULT_SERVE_CHARACTERS, ge=1, description="Most characters in one request"
    )
    serve_waiting: int = Field(
        default=DEFAULT_SERVE_WAITING,
        ge=1,
        description="Most requests that wait for the model; `serve` answers further ones with 429",
    )
    web_host: str = Field(
        default=DEFAULT_WEB_HOST, min_length=1, description="Address on which `web` listens"
    )
    web_port: int = Field(
        default=DEFAULT_WEB_PORT,
        ge=0,
        le=65535,
        description="Port on which it does, 0 for any that is free",
    )
    web_token: SecretStr | None = Field(
        default=None,
        description="Token that opens the page, of at least 16 characters; not set: `web` makes "
        "one at each start and prints it",
    )
    web_token_file: Path | None = Field(
        default=None, description="File with such tokens, a line each"
    )
    web_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*/?$",
        description="Path of the page behind a proxy, such as /embedworker",
    )
    web_allow_actions: bool = Field(
        default=False, description="Whether people may pause, resume, sweep and retry on the page"
    )
    mcp_tables: str = Field(
        default="",
        description="Tables that `mcp` shows to assistants, separated by commas; not set: all that "
        "are enabled and that the login may read",
    )
    mcp_host: str = Field(
        default=DEFAULT_MCP_HOST,
        min_length=1,
        description="Address on which `mcp --http` listens; it needs a token if other machines can "
        "reach it",
    )
    mcp_port: int = Field(
        default=DEFAULT_MCP_PORT,
        ge=0,
        le=65535,
        description="Port on which it does, 0 for any that is free",
    )
    mcp_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that clients of `mcp --http` must send, of at least 16 "
        "characters",
    )
    mcp_token_file: Path | None = Field(
        default=None, description="File with tokens for `mcp --http`, one per line"
    )
    stalled_after: float = Field(
        default=DEFAULT_STALLED_AFTER,
        gt=0,
        description="Time after which a worker that embeds nothing while rows wait is not ready",
    )
    log_format: Literal["human", "json"] = Field(
        default="human", description="Format of log lines: human, json"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level of logged lines"
    )

    @field_validator(
        "data_dir",
        "cache_dir",
        "metrics_token_file",
        "serve_token_file",
        "web_token_file",
        "mcp_token_file",
    )
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else folder.expanduser().absolute()

    @field_validator("endpoints")
    @classmethod
    def _addresses(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                Endpoints(value.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("log_level", "log_format", "engine", "dtype", "device", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("metrics_port", "serve_port", "web_port", "mcp_port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and _SERVICE_LINK.match(value):
            return cls.model_fields[str(info.field_name)].default
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.poll_min > self.poll_max:
            raise ValueError(
                f"EMBEDWORKER_POLL_MIN ({self.poll_min:g} s) is greater than "
                f"EMBEDWORKER_POLL_MAX ({self.poll_max:g} s); expected the smaller first"
            )
        return self

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
        if name.endswith("_PORT") and _SERVICE_LINK.match(os.environ[name]):
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


class Description(NamedTuple):
    """One row of the reference table of settings."""

    name: str
    variable: str
    default: str
    unit: str
    meaning: str


_SECONDS = "s"
_UNITS = {
    "answer_timeout": _SECONDS,
    "backoff_max": _SECONDS,
    "batch_timeout": _SECONDS,
    "batch_tokens": "tokens",
    "endpoint_requests": "requests",
    "endpoint_texts": "texts",
    "endpoint_timeout": _SECONDS,
    "index_after_rows": "vectors",
    "words_index_after_rows": "vectors",
    "index_memory": "bytes",
    "lease": _SECONDS,
    "lock_timeout": _SECONDS,
    "max_attempts": "attempts",
    "mcp_port": "port",
    "nice": "nice(2) steps",
    "poll_max": _SECONDS,
    "poll_min": _SECONDS,
    "query_threads": "threads",
    "query_timeout": _SECONDS,
    "serve_body": "bytes",
    "serve_characters": "characters",
    "serve_inputs": "texts",
    "serve_port": "port",
    "serve_waiting": "requests",
    "stalled_after": _SECONDS,
    "sweep_interval": _SECONDS,
    "threads": "threads",
    "web_allow_actions": "true or false",
    "web_port": "port",
    "window": "texts",
}
_COMPUTED_DEFAULTS = {
    "cache_dir": "embedworker in the user's cache folder",
    "index_memory": "a quarter of the memory, at most 2GiB",
}


def describe() -> list[Description]:
    """Return every setting in order of the class, for the reference in the documentation."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = _COMPUTED_DEFAULTS.get(name, field.default)
        if isinstance(default, float):
            default = f"{default:g}"
        rows.append(
            Description(
                name=name,
                variable=ENVIRONMENT_PREFIX + name.upper(),
                default="not set" if default is None else str(default),
                unit=_UNITS.get(name, ""),
                meaning=field.description or "",
            )
        )
    return rows
