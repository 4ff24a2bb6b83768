"""I/O: how requests were routed: `GET /admin/receipts` and `GET /admin/receipts/ID`."""

from __future__ import annotations

import re
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers
from runtime.gateway.errors import ApiError
from runtime.gateway.services import Services
from schemas.receipt import Receipts

FEWEST, MOST, USUAL = 1, 1000, 50
_NUMBER = re.compile(r"[0-9]{1,4}")


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def receipts(request: Request) -> HTTPResponse:
        only_troubled = _flag(request, "troubled")
        found = services.receipts.latest(_limit(request), only_troubled=only_troubled)
        return _answer(request, Receipts(receipts=tuple(found)).model_dump_json())

    async def receipt(request: Request, request_id: str) -> HTTPResponse:
        found = services.receipts.find(request_id)
        if found is None:
            message = f"There is no receipt of this request; the last {MOST} requests that are over have one."
            raise ApiError(404, message, code="receipt_not_found")
        return _answer(request, found.model_dump_json())

    def _answer(request: Request, text: str) -> HTTPResponse:
        return HTTPResponse(text.encode(), 200, headers(request, services.live), JSON)

    app.add_route(receipts, "/admin/receipts", methods=["GET"], name="receipts")
    app.add_route(receipt, "/admin/receipts/<request_id:str>", methods=["GET"], name="receipt")


def _limit(request: Request) -> int:
    given = _said(request, "limit", str(USUAL))
    if _NUMBER.fullmatch(given) is None or not FEWEST <= int(given) <= MOST:
        raise ApiError(400, f"'limit' is a number from {FEWEST} to {MOST}.", code="invalid_value", param="limit")
    return int(given)


def _flag(request: Request, name: str) -> bool:
    given = _said(request, name, "false")
    if given not in ("true", "false"):
        raise ApiError(400, f"'{name}' is true or false.", code="invalid_value", param=name)
    return bool(given == "true")


def _said(request: Request, name: str, default: str) -> str:
    """Return what the query says of a parameter; raises `ApiError` where it says it more than once."""
    found: list[str] = request.get_args(keep_blank_values=True).getlist(name, [default])
    if len(found) > 1:
        raise ApiError(400, f"'{name}' is there more than once.", code="invalid_value", param=name)
    return found[0]
