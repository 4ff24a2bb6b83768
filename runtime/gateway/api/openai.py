"""I/O: the OpenAI API: chat and text completions, and the models list."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import unquote

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import json_answer
from runtime.gateway.api.relaying import ask_of, body_of, not_found, relayed, route_of, table_of
from runtime.gateway.bodies import Body, parse_chat, parse_completion
from runtime.gateway.facts import names
from runtime.gateway.facts.cards import told
from runtime.gateway.facts.names import Named
from runtime.gateway.live import Live
from runtime.gateway.security.callers import may_name
from runtime.gateway.services import Services

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes. The handlers read bodies themselves: the limit is hot, and a slow upload has a deadline."""
    chat = _completions(services, "/v1/chat/completions", parse_chat)
    text = _completions(services, "/v1/completions", parse_completion)
    app.add_route(chat, "/v1/chat/completions", methods=["POST"], stream=True, name="chat")
    app.add_route(text, "/v1/completions", methods=["POST"], stream=True, name="completions")

    async def models(request: Request) -> HTTPResponse:
        table = table_of(services.live)
        known = names.listed(table, services.facts, partial(may_name, request))
        listed = [_model(named, services.live) for named in known]
        return json_answer(request, services.live, {"object": "list", "data": listed})

    async def model(request: Request, name: str) -> HTTPResponse:
        # Clients may or may not encode the slashes of an id; the router hands the rest of the path on as it came.
        wanted = unquote(name)
        known = names.find(table_of(services.live), services.facts, wanted, partial(may_name, request))
        if known is None:
            raise not_found(wanted)
        return json_answer(request, services.live, _model(known, services.live))

    app.add_route(models, "/v1/models", methods=["GET"], name="models")
    app.add_route(model, "/v1/models/<name:path>", methods=["GET"], name="model")


def _completions(services: Services, path: str, parse: Callable[[bytes], Body]) -> Handler:
    async def handle(request: Request) -> HTTPResponse | None:
        body = parse(await body_of(request, services))
        route = route_of(request, services.live, body.model, "chat")
        return await relayed(request, services, ask_of(request, route, path, body))

    return handle


def _model(known: Named, live: Live) -> dict[str, object]:
    card, created = known.card, int(live.started_at)
    named = {"id": card.id, "object": "model", "created": created, "owned_by": card.owner}
    return {**named, "kind": card.kind, "task": card.task, **told(known.facts)}
