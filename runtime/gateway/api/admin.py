"""I/O: the admin API: what the gateway serves, and reading the files now.

From this machine it is open. From another one, where the orchestrator may be, it asks for the stack's worker token.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers
from runtime.gateway.errors import ApiError
from runtime.gateway.live import config_report
from runtime.gateway.services import Services

_BEARER = "bearer "


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    def report(request: Request) -> HTTPResponse:
        found = config_report(services.live, services.pool, services.holds.held, services.now())
        return HTTPResponse(found.model_dump_json().encode(), 200, headers(request, services.live), JSON)

    async def config(request: Request) -> HTTPResponse:
        _admit(request, services.worker_token)
        return report(request)

    async def reload(request: Request) -> HTTPResponse:
        _admit(request, services.worker_token)
        await services.reloader.reload()
        return report(request)

    app.add_route(config, "/admin/config", methods=["GET"], name="config")
    app.add_route(reload, "/admin/config/reload", methods=["POST"], name="reload", ignore_body=True)


def _admit(request: Request, token: str | None) -> None:
    """Let this machine in, and who has the worker token; raises `ApiError` with status 401 or 403 for anybody else.

    The peer is the socket's: no header can name another one.
    """
    if is_this_machine(request.transport.get_extra_info("peername")):
        return
    if token is None:
        raise ApiError(403, "The admin API is closed to other machines: there is no worker token.", code="forbidden")
    given = request.headers.getall("authorization", [])
    if len(given) != 1 or not given[0].lower().startswith(_BEARER):
        raise ApiError(401, "The admin API asks other machines for the stack's worker token.", code="unauthorized")
    # Compared as bytes: a header may hold anything, and only ASCII texts can be compared in constant time.
    if not secrets.compare_digest(given[0][len(_BEARER) :].strip().encode(errors="surrogatepass"), token.encode()):
        raise ApiError(401, "This is not the stack's worker token.", code="unauthorized")


def is_this_machine(peer: object) -> bool:
    """Tell whether a socket's peer, as `getpeername` gives it, is a loopback address."""
    if not isinstance(peer, tuple) or not peer:
        return False
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
