"""I/O: Ollama's API: chats, prompts and vectors by the roles, aliases and models of the stack.

What manages models there (pull, create, delete, ...) is refused: the stack files do that here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.adapters.vectors import PATH as EMBEDDINGS_PATH
from runtime.gateway.adapters.vectors import reading_of
from runtime.gateway.api.answers import json_answer
from runtime.gateway.api.openai import Handler
from runtime.gateway.api.relaying import ask_of, body_of, not_found, route_of, table_of
from runtime.gateway.api.translating import translated
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body, read_document
from runtime.gateway.errors import ApiError
from runtime.gateway.facts import names
from runtime.gateway.protocols.dialect import OLLAMA
from runtime.gateway.protocols.ollama import fields, listing, requests
from runtime.gateway.protocols.ollama.answers import Clock, Instead, Shape, Speech, Vector, Vectors, resident
from runtime.gateway.protocols.translation import Translation
from runtime.gateway.routing.table import Route
from runtime.gateway.security.callers import may_name
from runtime.gateway.services import Services
from schemas.prefer import HEADER as PREFER_HEADER

VERSION = "0.14.0"
"""The version of Ollama whose API this is: the first one that has all of it, `/v1/messages` being the newest part
(log probabilities came with 0.12.11, `/v1/responses` with 0.13.3; its release notes). Clients ask for a least one: VS
Code for 0.6.4, which brought the capabilities of `/api/show`."""
MANAGED = "Models are managed by the stack files: what runs here is declared there, and no client changes it."

FRESH_S = 2.0
"""How old may be what `/api/ps` says."""
ASKED_S = 1.0
"""How long it waits for servers that are asked."""

LOAD_S = 300.0
"""How long a request waits for a model that has to be brought into memory, where its client does not say: as long as
Ollama does (`OLLAMA_LOAD_TIMEOUT`). Its clients never ask again, as others do when they hear that a model loads."""

_MANAGEMENT = {
    "/api/pull": ["POST"],
    "/api/push": ["POST"],
    "/api/create": ["POST"],
    "/api/copy": ["POST"],
    "/api/delete": ["DELETE"],
    "/api/blobs/<digest:str>": ["POST", "HEAD"],
}
"""Methods by path."""


class _Understand(Protocol):
    def __call__(
        self, document: dict[str, Any], served: str, /, *, thinks: bool | None
    ) -> requests.Generation | requests.Residence: ...


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""
    chat = _generating(services, "chat", requests.chat)
    generate = _generating(services, "generate", requests.generate)
    app.add_route(chat, "/api/chat", methods=["POST"], stream=True, name="ollama_chat")
    app.add_route(generate, "/api/generate", methods=["POST"], stream=True, name="ollama_generate")
    embed = _embedding(services, requests.embed, is_listed=True)
    older = _embedding(services, requests.embeddings, is_listed=False)
    app.add_route(embed, "/api/embed", methods=["POST"], stream=True, name="ollama_embed")
    app.add_route(older, "/api/embeddings", methods=["POST"], stream=True, name="ollama_embeddings")
    _register_listings(app, services)

    async def managed(_request: Request, **_: str) -> HTTPResponse:
        raise ApiError(403, MANAGED, code="managed_by_stack_files")

    for path, methods in _MANAGEMENT.items():
        app.add_route(managed, path, methods=methods, stream=True, name=f"ollama_{path.split('/')[2]}")


def _register_listings(app: Sanic[Any, Any], services: Services) -> None:
    async def version(request: Request) -> HTTPResponse:
        return json_answer(request, services.live, {"version": VERSION})

    async def tags(request: Request) -> HTTPResponse:
        found = names.listed(table_of(services.live), services.facts, partial(may_name, request))
        models = [listing.tag(named, services.live.loaded_at) for named in found]
        return json_answer(request, services.live, {"models": models})

    async def processes(request: Request) -> HTTPResponse:
        table = table_of(services.live)
        # What is in memory changes by the second: who has not said for a while is asked.
        await services.fact_poller.refresh(FRESH_S, ASKED_S)
        found = names.loaded(table, services.facts, partial(may_name, request))
        models = [listing.process(named, time.time()) for named in found]
        return json_answer(request, services.live, {"models": models})

    async def show(request: Request) -> HTTPResponse:
        document = read_document(await body_of(request, services))
        asked = fields.model(document, "name")
        served = _served(request, services, asked)
        named = names.find(table_of(services.live), services.facts, served, partial(may_name, request))
        if named is None:
            raise not_found(asked, OLLAMA)
        return json_answer(request, services.live, listing.shown(named, services.live.loaded_at))

    for name, handler in (("version", version), ("tags", tags)):
        app.add_route(handler, f"/api/{name}", methods=["GET", "HEAD"], name=f"ollama_{name}")
    app.add_route(processes, "/api/ps", methods=["GET"], name="ollama_ps")
    app.add_route(show, "/api/show", methods=["POST"], stream=True, name="ollama_show")


def _generating(services: Services, shape: Shape, understand: _Understand) -> Handler:
    async def handle(request: Request) -> HTTPResponse | None:
        document = read_document(await body_of(request, services))
        asked = fields.model(document)
        served = _served(request, services, asked)
        route = route_of(request, services.live, served, "chat")
        thinks = names.of_route(route, services.facts).is_able("thinking")
        wish = understand(document, served, thinks=thinks)
        clock = Clock(time.monotonic, time.time)
        if isinstance(wish, requests.Generation):
            ask = _patient(request, ask_of(request, route, wish.path, wish.body))
            return await translated(request, services, ask, Speech(asked, shape, clock))
        said = partial(_resident, asked, shape, wish)
        if wish == "unload" or not _is_to_load(services, route):
            return json_answer(request, services.live, said())
        made = requests.loading(served)
        ask = _patient(request, ask_of(request, route, made.path, made.body))
        return await translated(request, services, ask, Instead(said))

    return handle


def _resident(asked: str, shape: Shape, reason: requests.Residence) -> dict[str, Any]:
    return resident(asked, shape, reason, time.time())


def _embedding(
    services: Services, understand: Callable[[dict[str, Any], str], Body | None], *, is_listed: bool
) -> Handler:
    async def handle(request: Request) -> HTTPResponse | None:
        began_at = time.monotonic()
        document = read_document(await body_of(request, services))
        asked = fields.model(document)
        served = _served(request, services, asked)
        route = route_of(request, services.live, served, "embedding")
        body = understand(document, served)
        translation: Translation
        if body is None:
            empty = {"model": asked, "embeddings": []} if is_listed else {"embedding": []}
            if not _is_to_load(services, route):
                return json_answer(request, services.live, empty)
            body, translation = requests.loading_vectors(served), Instead(lambda: empty)
        elif is_listed:
            translation = Vectors(asked, Clock(time.monotonic, time.time), began_at)
        else:
            translation = Vector()
        reading = reading_of(body, route.dimensions)
        ask = _patient(request, ask_of(request, route, EMBEDDINGS_PATH, body, reading))
        return await translated(request, services, ask, translation)

    return handle


def _served(request: Request, services: Services, asked: str) -> str:
    """Return the name here of a model; one that the key may not use looks as if it were not there."""
    routes = table_of(services.live).routes
    return listing.served_name(asked, lambda name: name in routes and may_name(request, name))


def _patient(request: Request, ask: Ask) -> Ask:
    """Return a request that waits for a load, unless its client says how long it wants to."""
    return ask if PREFER_HEADER in request.headers else replace(ask, wait_s=LOAD_S)


def _is_to_load(services: Services, route: Route) -> bool:
    """Tell whether a request has to bring the model into memory, as far as it is known where it is."""
    known = [(target, services.facts.of(target).is_loaded) for target in route.targets()]
    is_loaded = any(state for _, state in known)
    return not is_loaded and any(target.is_on_demand or state is False for target, state in known)
