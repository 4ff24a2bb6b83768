"""Pure: in which words the clients of a path are told what is wrong: OpenAI's, Ollama's or Anthropic's.

The path decides, so that every error on it has its shape: an unknown path, a wrong method, a missing key, a body that
is no JSON. Shapes: `{"error": {"message", "type", "param", "code"}}` for OpenAI; `{"error": "text"}` for Ollama (ollama
`server/routes.go`, and `StatusError` in `api/types.go`); `{"type": "error", "error": {"type", "message"},
"request_id"}` for Anthropic, whose types by status are those of its page "Errors".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.gateway.errors import error_body
from schemas.model import ModelKind
from schemas.on_demand import Loading

_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Wrong(NamedTuple):
    """What is wrong, in no dialect yet."""

    status: int
    message: str
    code: str | None
    param: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How clients of one protocol are spoken to where no model answers."""

    write: Callable[[Wrong], bytes]
    models_path: str
    """Where its clients see which models there are."""
    paths: Mapping[ModelKind, str]
    """Where its clients send requests of each kind."""
    id_header: str = ""
    """The header in which its clients look for a request's id, beside ours; empty where they look for none."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What it calls parameters that endpoints know by the names of OpenAI's chats, for errors that name one."""

    def error(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        loading: Loading | None = None,
        request_id: str = "",
    ) -> bytes:
        """Write an error as JSON; `loading` is how far the load of the model is, and is told beside the error."""
        written = self.write(Wrong(status, message, code, param, request_id))
        return written if loading is None else _beside(written, loading.model_dump_json().encode())

    def translated(self, status: int, raw: bytes, request_id: str = "") -> bytes:
        """Return an error that was written in OpenAI's shape."""
        if self.write is _openai and not self.names:
            return raw
        document = json.loads(raw)
        error = document["error"]
        message, param = error["message"], error.get("param")
        name = self.names.get(param.partition("[")[0]) if isinstance(param, str) else None
        if name is not None:
            message, param = message.replace(f"'{param}'", f"'{name}'"), name
        written = self.write(Wrong(status, message, error.get("code"), param, request_id))
        loading = document.get("loading")
        return written if loading is None else _beside(written, json.dumps(loading).encode())


def _openai(wrong: Wrong) -> bytes:
    return error_body(wrong.status, wrong.message, code=wrong.code, param=wrong.param)


def _ollama(wrong: Wrong) -> bytes:
    return _json({"error": wrong.message})


def _anthropic(wrong: Wrong) -> bytes:
    error = {"type": anthropic_type(wrong.status), "message": wrong.message}
    return _json({"type": "error", "error": error, "request_id": wrong.request_id or None})


_PATHS: Mapping[ModelKind, str] = {
    "chat": "/v1/chat/completions",
    "embedding": "/v1/embeddings",
    "reranking": "/v1/rerank",
}

OPENAI = Dialect(_openai, "/v1/models", _PATHS)
"""Also that of everything that is no protocol of others."""
OLLAMA = Dialect(_ollama, "/api/tags", {**_PATHS, "chat": "/api/chat", "embedding": "/api/embed"})
_RESPONSES_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
RESPONSES = Dialect(_openai, "/v1/models", {**_PATHS, "chat": "/v1/responses"}, names=_RESPONSES_NAMES)
ANTHROPIC = Dialect(_anthropic, "/v1/models", {**_PATHS, "chat": "/v1/messages"}, "request-id")


def dialect_of(path: str) -> Dialect:
    """Return the dialect of the clients that ask for a path."""
    if path.startswith("/api/"):
        return OLLAMA
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    if path.startswith("/v1/responses"):
        return RESPONSES
    return OPENAI


def anthropic_type(status: int) -> str:
    """Return Anthropic's `type` of an error with this status."""
    return _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def _beside(written: bytes, loading: bytes) -> bytes:
    return written[:-1] + b', "loading": ' + loading + b"}"


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode(errors="replace")
