"""Pure: what every protocol's clients are told when something is wrong, and what each status means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runtime.gateway.openapi.shapes import Described
from runtime.gateway.protocols.dialect import ANTHROPIC, OLLAMA, dialect_of
from schemas.on_demand import Loading


class OpenAIErrorContent(Described):
    """What is wrong."""

    message: str
    type: str
    """`invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The parameter that is meant, as in `messages[0].content`."""
    code: str | None
    """One word for programs, such as `model_not_found`."""


class OpenAIError(Described):
    """An error in OpenAI's shape."""

    error: OpenAIErrorContent
    loading: Loading | None = None
    """How far the load of the model is that is waited for."""


class AnthropicErrorContent(Described):
    """What is wrong."""

    type: str
    """Such as `invalid_request_error`, `authentication_error`, `not_found_error`, `overloaded_error`, `api_error`."""
    message: str


class AnthropicError(Described):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorContent
    request_id: str | None
    loading: Loading | None = None


class OllamaError(Described):
    """An error in Ollama's shape."""

    error: str
    loading: Loading | None = None


def shape_of(path: str) -> type[Described]:
    """Return the shape of the errors of a path."""
    dialect = dialect_of(path)
    return OllamaError if dialect is OLLAMA else AnthropicError if dialect is ANTHROPIC else OpenAIError


MEANINGS: Mapping[str, str] = {
    "400": "The request cannot be read, or a parameter cannot be taken; it is named.",
    "401": "A key is missing, wrong, expired or revoked.",
    "403": "The key may not do this, the page of another site may not ask, or the stack files manage this.",
    "404": "There is no such model, endpoint or receipt, or it is not for this key.",
    "408": "The request body took too long to arrive.",
    "409": "The endpoint is being tried already.",
    "413": "The request body is too large.",
    "421": "The Host header names nobody that is known here.",
    "429": "The key has made its requests of this minute, or too many requests wait.",
    "4XX": "What the endpoint has refused, passed on with its status.",
    "500": "The gateway has failed.",
    "503": "Nobody can answer now, or the gateway has no usable configuration yet.",
    "5XX": "What the endpoint says that it cannot do, passed on with its status.",
}
"""By status."""

RETRIED = frozenset({"409", "429", "503"})
"""Statuses that come with Retry-After where somebody knows when asking again will help."""
