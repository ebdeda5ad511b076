"""Which model is used, where it comes from and where it runs."""

from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import BaseModel, Field, SecretStr, field_validator

from embedworker.endpoints import Endpoints
from embedworker.errors import ConfigurationError
from embedworker.settings.values import Folder, Requests, Seconds, Texts, Word

__all__ = ["ModelSettings"]


def _user_cache() -> Path:
    return platformdirs.user_cache_path("embedworker", appauthor=False)


class ModelSettings(BaseModel):
    """The model, its engine, its device and its endpoints."""

    cache_dir: Folder = Field(
        default_factory=_user_cache,
        description="Folder of downloaded and unpacked models",
    )
    model: str = Field(
        default="dragonkue/multilingual-e5-small-ko-v2",
        min_length=1,
        description="Model name, folder, or bundled:multilingual-e5-small",
    )
    engine: Annotated[Literal["torch", "openvino"], Word] = Field(
        default="torch",
        description="Engine of the model: torch, or openvino, which is faster on a processor and "
        "needs `pip install 'embedworker[openvino]'`",
    )
    endpoints: SecretStr | None = Field(
        default=None,
        description="Endpoints that models may use, separated by spaces: http://HOST:PORT, or "
        "https://HOST=KEY with the key for it",
    )
    endpoint_texts: Texts = Field(
        default=32, ge=1, description="Texts of one request to an endpoint"
    )
    endpoint_requests: Requests = Field(
        default=4,
        ge=1,
        description="Requests for passages that a worker has under way at an endpoint",
    )
    endpoint_timeout: Seconds = Field(
        default=30.0,
        gt=0,
        description="Time for one request to an endpoint; a question has at most "
        "EMBEDWORKER_QUERY_TIMEOUT",
    )
    device: Annotated[str, Word] = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|xpu|cuda(:\d+)?)$",
        description="Where the model runs: auto, cpu, cuda, cuda:1, mps, xpu",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Word] = Field(
        default="auto",
        description="Number format of the model: auto (bfloat16 where the hardware has it), "
        "float32, bfloat16",
    )

    @field_validator("endpoints")
    @classmethod
    def _addresses(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                Endpoints(value.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return value
