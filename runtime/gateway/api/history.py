"""I/O: past requests and errors: `GET /requests` and `GET /errors`, as JSON or as comma-separated values."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers
from runtime.gateway.errors import ApiError
from runtime.gateway.observe.history_file import Wanted
from runtime.gateway.observe.past import as_csv
from runtime.gateway.services import Services
from schemas.history import PastError, PastRequest

MOST = 1000
USUAL_REQUESTS, USUAL_ERRORS = 200, 50
CSV = "text/csv; charset=utf-8"
_NUMBER = re.compile(r"[0-9]{1,4}")
_STATUS = re.compile(r"[1-5][0-9]{2}")
LONGEST_ROLE = 200


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def requests(request: Request) -> HTTPResponse:
        is_csv, wanted = _is_csv(request), _wanted(request, USUAL_REQUESTS)
        try:
            found = await services.history.requests(wanted)
        except sqlite3.Error as error:
            raise _unreadable() from error
        if is_csv:
            return _answer(request, as_csv(PastRequest, found.requests), CSV)
        return _answer(request, found.model_dump_json(), JSON)

    async def errors(request: Request) -> HTTPResponse:
        is_csv, wanted = _is_csv(request), _wanted(request, USUAL_ERRORS)
        try:
            found = await services.history.errors(wanted)
        except sqlite3.Error as error:
            raise _unreadable() from error
        if is_csv:
            return _answer(request, as_csv(PastError, found.errors), CSV)
        return _answer(request, found.model_dump_json(), JSON)

    def _answer(request: Request, text: str, kind: str) -> HTTPResponse:
        return HTTPResponse(text.encode(errors="replace"), 200, headers(request, services.live), kind)

    app.add_route(requests, "/requests", methods=["GET"], name="past_requests")
    app.add_route(errors, "/errors", methods=["GET"], name="past_errors")


def _wanted(request: Request, usual: int) -> Wanted:
    limit, status = _said(request, "limit"), _said(request, "status")
    if limit is not None and (_NUMBER.fullmatch(limit) is None or not 1 <= int(limit) <= MOST):
        raise ApiError(400, f"'limit' is a number from 1 to {MOST}.", code="invalid_value", param="limit")
    if status is not None and _STATUS.fullmatch(status) is None:
        raise ApiError(400, "'status' is an HTTP status, such as 503.", code="invalid_value", param="status")
    role = _said(request, "role")
    if role is not None and len(role) > LONGEST_ROLE:
        raise ApiError(400, "'role' is the name of a role.", code="invalid_value", param="role")
    return Wanted(usual if limit is None else int(limit), role, None if status is None else int(status))


def _is_csv(request: Request) -> bool:
    given = _said(request, "format")
    if given not in (None, "json", "csv"):
        raise ApiError(400, "'format' is json or csv.", code="invalid_value", param="format")
    return given == "csv"


def _said(request: Request, name: str) -> str | None:
    """Return what the query says of a parameter; raises `ApiError` where it says it more than once."""
    found: list[str] = request.get_args(keep_blank_values=True).getlist(name, [])
    if len(found) > 1:
        raise ApiError(400, f"'{name}' is there more than once.", code="invalid_value", param=name)
    return found[0] if found else None


def _unreadable() -> ApiError:
    return ApiError(503, "The request history cannot be read now.", code="history_unavailable", retry_after_s=1.0)
