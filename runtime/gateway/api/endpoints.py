"""I/O: each endpoint's statistics, and what somebody does to one by hand: isolate it, close its breaker, probe it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, headers, read_body
from runtime.gateway.endpoints import NoSuchEndpointError, choose_endpoints, instance_of, statistics
from runtime.gateway.errors import ApiError
from runtime.gateway.routing import by_hand
from runtime.gateway.routing.table import RoutingTable, Target
from runtime.gateway.services import Services
from schemas.admin import EndpointBreak, EndpointChoice, EndpointsReport

Choice = TypeVar("Choice", bound=EndpointChoice)

LARGEST_CHOICE = 16 * 1024
"""Bytes of a request that names an endpoint."""


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    def report(request: Request, table: RoutingTable | None, targets: Iterable[Target] | None = None) -> HTTPResponse:
        only = None if targets is None else {target.identity for target in targets}
        found = () if table is None else statistics(table, services.pool, services.now(), only)
        if only and not found:
            raise ApiError(404, "The endpoint has just left the stack.", code="endpoint_not_found", param="endpoint")
        document = EndpointsReport(stack=services.live.stack, pid=services.live.pid, endpoints=found)
        return HTTPResponse(document.model_dump_json().encode(), 200, headers(request, services.live), JSON)

    async def chosen(request: Request, shape: type[Choice]) -> tuple[RoutingTable, list[Target], Choice]:
        raw = await read_body(request, LARGEST_CHOICE)
        try:
            choice = shape.from_json(raw)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            message = f'The body must name an endpoint, as in {{"endpoint": "name"}}: {where}: {fault["msg"]}.'
            raise ApiError(400, message, code="bad_request", param=where or None) from error
        table = services.live.table
        if table is None:
            raise ApiError(503, "There is no good configuration yet; GET /admin/config says why.", retry_after_s=1.0)
        try:
            return table, choose_endpoints(table, choice), choice
        except NoSuchEndpointError as error:
            raise ApiError(404, str(error), code="endpoint_not_found", param="endpoint") from error

    async def endpoints(request: Request) -> HTTPResponse:
        return report(request, services.live.table)

    async def isolate(request: Request) -> HTTPResponse:
        table, targets, _ = await chosen(request, EndpointChoice)
        for target in targets:
            by_hand.isolate(services.pool, target.identity)
        await services.isolations.save()
        return report(request, table, targets)

    async def break_(request: Request) -> HTTPResponse:
        table, targets, wanted = await chosen(request, EndpointBreak)
        for target in targets:
            by_hand.break_for(services.pool, target.identity, wanted.seconds)
        return report(request, table, targets)

    async def close(request: Request) -> HTTPResponse:
        table, targets, _ = await chosen(request, EndpointChoice)
        for target in targets:
            by_hand.close(services.pool, target.identity)
        services.holds.wake()
        await services.isolations.save()
        return report(request, table, targets)

    async def probe(request: Request) -> HTTPResponse:
        table, targets, _ = await chosen(request, EndpointChoice)
        for target in targets:
            if target.identity not in services.pool.standings:
                continue  # it has left while others were asked
            if not await services.prober.ask_now(target):
                message = f"'{target.name}' at {instance_of(target.identity)} is being tried already; ask again soon."
                raise ApiError(409, message, code="trial_under_way", retry_after_s=1.0)
        return report(request, table, targets)

    app.add_route(endpoints, "/admin/endpoints", methods=["GET"], name="endpoints")
    app.add_route(isolate, "/admin/endpoints/isolate", methods=["POST"], name="isolate", stream=True)
    app.add_route(break_, "/admin/endpoints/break", methods=["POST"], name="break", stream=True)
    app.add_route(close, "/admin/endpoints/close", methods=["POST"], name="close", stream=True)
    app.add_route(probe, "/admin/endpoints/probe", methods=["POST"], name="probe_endpoint", stream=True)
