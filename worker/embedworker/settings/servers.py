"""What listens on a port: metrics, `serve`, `web` and `mcp`; and the log."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr

from embedworker.settings.values import Folder, Port, Requests, Seconds, Texts, Unit, Word

__all__ = ["McpSettings", "MetricsSettings", "ServeSettings", "WebSettings"]


class MetricsSettings(BaseModel):
    """The metrics port of `run`, and the form of the log."""

    metrics_port: Port | None = Field(
        default=None,
        description="Port on which `run` answers /metrics, /healthz and /readyz, 0 for any free "
        "port; not set: none",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of the metrics port; 0.0.0.0 for all addresses of this machine",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="Bearer token for /metrics, of at least 16 characters; required if other "
        "machines can reach the address",
    )
    metrics_token_file: Folder | None = Field(
        default=None, description="File with tokens for /metrics, one per line"
    )
    stalled_after: Seconds = Field(
        default=60.0,
        gt=0,
        description="Time after which a worker that embeds nothing while rows wait is not ready",
    )
    log_format: Annotated[Literal["human", "json"], Word] = Field(
        default="human", description="Format of log lines: human, json"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Word] = Field(
        default="info", description="Lowest level of logged lines"
    )


class ServeSettings(BaseModel):
    """The endpoint of `serve`."""

    query_prefix: str | None = Field(
        default=None, description="Prefix of a question in `serve`; not set: from the catalogue"
    )
    passage_prefix: str | None = Field(
        default=None, description="Prefix of a passage in `serve`; not set: from the catalogue"
    )
    serve_default_role: Annotated[Literal["query", "passage"], Word] = Field(
        default="query",
        description="What `serve` takes a text for where the request does not say: query, passage",
    )
    serve_alias: str | None = Field(
        default=None,
        min_length=1,
        description="Second name under which `serve` answers for its model",
    )
    serve_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address on which `serve` listens; it needs a token if other machines can "
        "reach it",
    )
    serve_port: Port = Field(
        default=8100,
        description="Port on which `serve` listens, 0 for any free port",
    )
    serve_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that clients of `serve` must send, of at least 16 characters",
    )
    serve_token_file: Folder | None = Field(
        default=None, description="File with tokens for `serve`, one per line"
    )
    serve_body: Annotated[int, Unit("bytes")] = Field(
        default=8 * 1024 * 1024, ge=1, description="Largest body of a request to `serve`"
    )
    serve_inputs: Texts = Field(default=2048, ge=1, description="Most texts in one request")
    serve_characters: Annotated[int, Unit("characters")] = Field(
        default=1_000_000, ge=1, description="Most characters in one request"
    )
    serve_waiting: Requests = Field(
        default=64,
        ge=1,
        description="Most requests that wait for the model; `serve` answers further ones with 429",
    )


class WebSettings(BaseModel):
    """The page of `web`."""

    web_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address on which `web` listens"
    )
    web_port: Port = Field(
        default=8200,
        description="Port on which it does, 0 for any that is free",
    )
    web_token: SecretStr | None = Field(
        default=None,
        description="Token that opens the page, of at least 16 characters; not set: `web` makes "
        "one at each start and prints it",
    )
    web_token_file: Folder | None = Field(
        default=None, description="File with such tokens, a line each"
    )
    web_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*/?$",
        description="Path of the page behind a proxy, such as /embedworker",
    )
    web_allow_actions: Annotated[bool, Unit("true or false")] = Field(
        default=False, description="Whether people may pause, resume, sweep and retry on the page"
    )


class McpSettings(BaseModel):
    """What `mcp` shows, and where it listens."""

    mcp_tables: str = Field(
        default="",
        description="Tables that `mcp` shows to assistants, separated by commas; not set: all that "
        "are enabled and that the login may read",
    )
    mcp_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address on which `mcp --http` listens; it needs a token if other machines can "
        "reach it",
    )
    mcp_port: Port = Field(
        default=8300,
        description="Port on which it does, 0 for any that is free",
    )
    mcp_token: SecretStr | None = Field(
        default=None,
        description="Bearer token that clients of `mcp --http` must send, of at least 16 "
        "characters",
    )
    mcp_token_file: Folder | None = Field(
        default=None, description="File with tokens for `mcp --http`, one per line"
    )
