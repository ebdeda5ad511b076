"""A client's JSON as a request, or the reason why not.

Unknown fields are refused: a misspelt ``input_type`` would otherwise give, without a word, the
vectors of the wrong prefix.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from embedworker.serving.refusal import Refusal

__all__ = ["ROLES", "Limits", "Request", "Role", "model_and_role", "parse"]

Role = Literal["query", "passage"]

# The words that other APIs have for the two; none is "query" (see parse).
ROLES: Final[Mapping[str, Role]] = {
    "query": "query",
    "search_query": "query",
    "passage": "passage",
    "document": "passage",
    "search_document": "passage",
}
FIELDS: Final = ("input", "model", "encoding_format", "dimensions", "user", "input_type")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may have."""

    inputs: int
    characters: int
    """of all inputs together"""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants. ``model`` is the name it used, which comes back in the answer."""

    model: str
    role: Role
    inputs: list[str]
    base64: bool


def parse(
    body: bytes, *, models: Sequence[str], default_role: Role, dimensions: int, limits: Limits
) -> Request:
    """Read a body for the one model that is served, under any of its names.

    Without ``input_type`` and suffix an input has the ``default_role``.

    Raises Refusal.
    """
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        raise _bad("the body is not JSON; expected an object with model and input") from None
    if not isinstance(sent, dict):
        raise _bad("the body is not a JSON object; expected one with model and input")
    unknown = sorted(set(sent) - set(FIELDS))
    if unknown:
        raise _bad(
            f"unrecognized request argument: {', '.join(map(repr, unknown))[:200]}; there are:"
            f" {', '.join(FIELDS)}"
        )
    for name in ("model", "encoding_format", "user", "input_type"):
        if not isinstance(sent.get(name), str | None):
            raise _bad(f"{name} is not a text", name)
    name, role = model_and_role(sent.get("model") or "", models)
    role = _role(sent.get("input_type"), role)
    encoding = sent.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _bad("encoding_format is neither 'float' nor 'base64'", "encoding_format")
    wanted = sent.get("dimensions")
    if wanted is not None and wanted != dimensions:
        raise _bad(
            f"the model {models[0]!r} makes vectors of {dimensions} dimensions and no others; leave"
            " dimensions out",
            "dimensions",
        )
    inputs = _inputs(sent.get("input"), limits)
    return Request(name, role or default_role, inputs, encoding == "base64")


def model_and_role(name: str, models: Sequence[str]) -> tuple[str, Role | None]:
    """Split a model's name from the role behind it: ``NAME``, ``NAME:query``, ``NAME:passage``.

    Raises Refusal unless it is one of the names of the model that is served.
    """
    if name in models:
        return name, None
    base, _, suffix = name.rpartition(":")
    if base in models and suffix in ROLES:
        return name, ROLES[suffix]
    there = " and ".join(f"{m!r}, '{m}:query', '{m}:passage'" for m in models)
    raise Refusal(
        404 if name else 400,
        f"the model {name[:200]!r} is not served here; there are {there}"
        if name
        else f"model is missing; expected {models[0]!r}",
        param="model",
        code="model_not_found" if name else None,
    )


def _role(input_type: str | None, of_suffix: Role | None) -> Role | None:
    if not input_type:
        return of_suffix
    role = ROLES.get(input_type)
    if role is None:
        raise _bad(f"input_type is none of {', '.join(ROLES)}", "input_type")
    if of_suffix not in (None, role):
        raise _bad(f"the model's suffix says {of_suffix!r}, input_type {role!r}", "input_type")
    return role


def _inputs(given: Any, limits: Limits) -> list[str]:
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not inputs:
        raise _bad("input is missing or empty; expected a text, or a list of texts", "input")
    if any(isinstance(item, int | float | list) for item in inputs):
        raise _bad(
            "input holds token numbers, which mean nothing to this model's tokenizer; send text"
            " (for LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
            "input",
        )
    if len(inputs) > limits.inputs:
        raise _bad(
            f"input holds {len(inputs)} texts; at most {limits.inputs} may be in one request",
            "input",
        )
    for place, text in enumerate(inputs):
        if not isinstance(text, str):
            raise _bad(f"input[{place}] is not a text", "input")
        if not text.strip():
            raise _bad(f"input[{place}] is empty", "input")
        if not _is_unicode(text):
            raise _bad(f"input[{place}] holds half a surrogate pair", "input")
    characters = sum(map(len, inputs))
    if characters > limits.characters:
        raise _bad(
            f"input holds {characters} characters; at most {limits.characters} may be in one"
            " request",
            "input",
        )
    return inputs


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bad(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, message, param=param)
