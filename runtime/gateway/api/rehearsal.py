"""I/O: the header `x-orchestrate-simulate: fail=ENDPOINT[,ENDPOINT..]`: lets endpoints fail for one request, to see who
answers then. It takes the scope `admin`, counts for no breaker and reaches none of these endpoints."""

from __future__ import annotations

from sanic import Request

from runtime.gateway.errors import ApiError
from runtime.gateway.routing.table import Route
from runtime.gateway.services import Services

HEADER = "x-orchestrate-simulate"
_PREFIX = "fail="


def failing_of(request: Request, services: Services, route: Route) -> frozenset[str]:
    """Return the endpoints that are to fail for a request; raises `ApiError`."""
    services.guard.admit(request, "admin")
    given = request.headers.getone(HEADER)
    if not given.startswith(_PREFIX):
        raise ApiError(400, f"{HEADER} takes 'fail=ENDPOINT[,ENDPOINT..]'.", code="invalid_value", param=HEADER)
    names = frozenset(name.strip() for name in given[len(_PREFIX) :].split(","))
    known = {target.name for rung in route.rungs() for target in rung.targets()}
    if unknown := sorted(names - known):
        message = f"'{route.name}' has no endpoint {', '.join(map(repr, unknown))}; it has: {', '.join(sorted(known))}."
        raise ApiError(400, message, code="endpoint_not_found", param=HEADER)
    return names
