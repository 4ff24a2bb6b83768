"""I/O: puts the guard before every handler of the application, and ends what a revoked key has asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

from sanic import HTTPResponse, Request, Sanic

from runtime.gateway.errors import ApiError, error_event
from runtime.gateway.security.guard import Guard, Stay
from runtime.gateway.security.scopes import Need, UnscopedRouteError, need_of

FAREWELL_S = 1.0
"""How long a client that does not read may take to be told that its key is no more."""

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


class GuardedApp(Sanic[Any, Any]):
    """An application whose routes all have a scope."""

    def __init__(self, name: str, guard: Guard, **options: Any) -> None:
        super().__init__(name, **options)
        self.ctx.guard = guard
        self.ctx.guarded = set()  # of (method, path); Sanic takes no attributes of ours

    def add_route(  # type: ignore[override]  # Sanic's options are handed on
        self, handler: Any, uri: str, methods: Iterable[str] = ("GET",), **options: Any
    ) -> Any:
        """Add a route that asks for the scope in the table; raises `UnscopedRouteError` where there is none."""
        name = options.pop("name", None) or handler.__name__
        # Named, so that Sanic does not look for it in the source of every handler; all errors are shaped by us.
        options.setdefault("error_format", "json")
        for number, method in enumerate(methods):
            need = need_of(method, uri)
            # Sanic takes no name twice, and each method is a route of its own here.
            unique = name if number == 0 else f"{name}_{method.lower()}"
            super().add_route(_guarded(handler, need, self.ctx.guard), uri, methods=[method], name=unique, **options)
            self.ctx.guarded.add((method, "/" + uri.lstrip("/")))
        return handler

    def require_scopes(self) -> None:
        """Raise `UnscopedRouteError` where a route was added without its guard; called before anything is served."""
        for route in self.router.routes:
            for method in route.methods:
                if (method, "/" + route.path.lstrip("/")) not in self.ctx.guarded:
                    raise UnscopedRouteError(method, "/" + route.path.lstrip("/"))


def _guarded(handler: Handler, need: Need, guard: Guard) -> Handler:
    async def admitted(request: Request, **arguments: Any) -> HTTPResponse | None:
        caller = request.ctx.caller = guard.admit(request, need)
        if not caller.digest or need == "open":
            return await handler(request, **arguments)
        stay = guard.enter(caller)
        try:
            return await handler(request, **arguments)
        except asyncio.CancelledError:
            if not stay.was_cancelled_here():
                raise
            await _send_away(request, stay)
            return None
        finally:
            guard.leave(caller, stay)

    return admitted


async def _send_away(request: Request, stay: Stay) -> None:
    """Tell a client that its key is no more: as an answer, or as the last event of its stream."""
    message = f"The key of this request has {'expired' if stay.reason == 'expired' else 'been revoked'}."
    response = request.stream.response if request.stream is not None else None
    if not request.responded or response is None:
        raise ApiError(401, message, code=f"{stay.reason}_api_key")
    try:
        async with asyncio.timeout(FAREWELL_S):
            said = error_event(message, f"{stay.reason}_api_key", 401)
            translate = getattr(request.ctx, "translate", None)
            await response.send(said if translate is None else translate(said))
    except TimeoutError:
        cast(asyncio.Transport, request.transport).abort()
