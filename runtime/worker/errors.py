"""Pure: what can go wrong with a request, as data that becomes an OpenAI-shaped answer."""

from typing import Any

from schemas.on_demand import Loading


class RequestError(Exception):
    """The request is at fault; the client can mend it.

    `param` names the field (`messages[0].role`), `code` is OpenAI's where it has one.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class UnavailableError(Exception):
    """The worker cannot take the request now; the client can come back after `retry_after_s`."""

    def __init__(self, message: str, *, code: str, retry_after_s: int, loading: Loading | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s
        self.loading = loading
        """How far the load is that it takes, or none; told beside the error."""


class GenerationError(Exception):
    """The worker failed while it generated; the request may be sent again."""


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Build the error object that every OpenAI client reads."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def kind_of(status: int) -> str:
    """Return OpenAI's error `type` for an HTTP status."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
