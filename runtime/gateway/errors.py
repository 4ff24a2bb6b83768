"""Pure: what clients are told when something is wrong, in OpenAI's shape, and the cleaning of texts of others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from schemas.on_demand import Loading

OVERFLOW_CODE = "context_length_exceeded"
"""OpenAI's code of a prompt that is longer than what a model can read."""
LONGEST_TEXT = 500
"""Characters of an upstream's text that clients may see."""

_LONGEST_CLEANED = 4 * LONGEST_TEXT
"""Characters that are looked at: the patterns below may need quadratic time for a text made to hurt them."""

_DEEPEST = 64
"""Levels of an upstream's error that clients may see as it is."""

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>)\]}]+", re.IGNORECASE)
_IPV4 = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b")
_GROUPS = r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4})*"
_IPV6 = re.compile(
    rf"\[?(?:\b{_GROUPS}::(?:{_GROUPS})?|\b(?:[0-9a-f]{{1,4}}:){{4,7}}[0-9a-f]{{1,4}}|(?<![\w:])::{_GROUPS})\]?(?::\d{{1,5}}\b)?",
    re.IGNORECASE,
)
_HOST_PORT = re.compile(r"\b[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*:\d{2,5}\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w/.])(?:~|[A-Za-z]:)?[/\\][\w.@+~-]+(?:[/\\][\w.@+~-]*)+")
_CREDENTIAL = re.compile(r"\b(?:Bearer\s+\S+|(?:sk|hf|key|tok)[-_][\w-]{6,})", re.IGNORECASE)
_REPLACEMENTS = (
    (_CREDENTIAL, "[credential]"),
    (_URL, "[address]"),
    (_IPV4, "[address]"),
    (_IPV6, "[address]"),
    (_HOST_PORT, "[address]"),
    (_PATH, "[path]"),
)


class ApiError(Exception):
    """A request ends with an error; the API layer turns it into an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        loading: Loading | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        """Sent as Retry-After, rounded up to whole seconds."""
        self.loading = loading
        """How far the load of the model is; told beside the error."""

    def body(self) -> bytes:
        """Return the JSON document."""
        body = error_body(self.status, self.message, code=self.code, param=self.param)
        if self.loading is None:
            return body
        return body[:-1] + b', "loading": ' + self.loading.model_dump_json().encode() + b"}"


def error_type(status: int) -> str:
    """Return OpenAI's `type` of an error with this status."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status < 500:
            return "invalid_request_error"
        case _:
            return "server_error"


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None, kind: str | None = None
) -> bytes:
    """Write an error as JSON; `kind` is its type where it is not the usual one of the status."""
    error = {"message": message, "type": kind or error_type(status), "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False).encode(errors="replace")


def error_event(message: str, code: str, status: int = HTTPStatus.BAD_GATEWAY) -> bytes:
    """Write an error as the last event of a stream; `status` is the one that says what type of error it is."""
    return b"data: " + error_body(status, message, code=code) + b"\n\n"


def clean(text: str) -> str:
    """Take addresses, paths and credentials out of a text that somebody else wrote, and shorten it."""
    text = text[:_LONGEST_CLEANED]
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= LONGEST_TEXT else printable[:LONGEST_TEXT] + "..."


def _phrase(status: int) -> str:
    """Return what a status is called; proxies and overloaded APIs answer with some that no standard names."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def cleaned_error(status: int, raw: bytes) -> bytes:
    """Return an upstream's error body as clients may see it: unchanged where it is in shape and gives nothing away."""
    document, error = _error_in(raw)
    if error is None:
        return error_body(status, clean(_any_text(document) or _phrase(status)), code="upstream_error")
    if _is_in_shape(error) and _is_clean(document):
        return raw
    kind = error.get("type")
    body = error_body(
        status,
        clean(error["message"]),
        # Engines write the status there too, as a number; clients compare it with texts.
        code=_clean_word(error.get("code")),
        param=_clean_word(error.get("param")),
        kind=clean(kind) if isinstance(kind, str) and kind else None,
    )
    _, _, loading = told_of_load(raw)
    if loading is None or not _is_clean(loading.model_dump()):
        return body
    return json.dumps({**json.loads(body), "loading": loading.model_dump()}).encode()


def overflow_error(raw: bytes) -> bytes:
    """Return the error of a prompt that is too long, whatever the endpoint calls it: clients know OpenAI's code."""
    document, error = _error_in(raw)
    text = _any_text(document) if error is None else error["message"]
    message = clean(text or "The prompt is longer than what the model can read.")
    return error_body(
        HTTPStatus.BAD_REQUEST, message, code=OVERFLOW_CODE, param=_clean_word((error or {}).get("param"))
    )


def _error_in(raw: bytes) -> tuple[object, dict[str, Any] | None]:
    """Return an upstream's document, and the error in it where that is an object with a message."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None, None
    error = document.get("error") if isinstance(document, dict) else None
    return document, error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def _is_in_shape(error: Mapping[str, Any]) -> bool:
    return isinstance(error.get("type"), str) and all(
        key in error and isinstance(error[key], str | None) for key in ("param", "code")
    )


def _clean_word(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None


def told_of_load(raw: bytes) -> tuple[str | None, str | None, Loading | None]:
    """Return the error's code and message, and how far the load is, of an endpoint that brings its model into memory.

    `raw` is the body as clients may see it; None for what it does not say.
    """
    try:
        document = json.loads(raw)
        error = document["error"]
        code, message = error.get("code"), error.get("message")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None, None, None
    try:
        loading = Loading.model_validate(document.get("loading"))
    except ValidationError:
        loading = None
    return code if isinstance(code, str) else None, message if isinstance(message, str) else None, loading


def _any_text(document: object) -> str | None:
    """Find the message in the shapes that other servers use: `error`, `message` or `detail` as text."""
    if not isinstance(document, dict):
        return None
    texts = (document.get(key) for key in ("error", "message", "detail"))
    return next((text for text in texts if isinstance(text, str) and text), None)


def _is_clean(document: object) -> bool:
    """Tell whether no text in a document gives anything away; one that is too deep to be read by all others may."""
    layer = [document]
    for _ in range(_DEEPEST):
        inner: list[object] = []
        for node in layer:
            if isinstance(node, str):
                if clean(node) != node:
                    return False
            elif isinstance(node, dict):
                inner += (*node, *node.values())
            elif isinstance(node, list):
                inner += node
        layer = inner
        if not layer:
            return True
    return False
