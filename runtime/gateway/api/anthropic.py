"""I/O: the Anthropic API: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

The headers `anthropic-version` and `anthropic-beta` are let pass: what is asked stands in the body.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import replace
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from runtime.gateway.api.relaying import ask_of, body_of, route_of
from runtime.gateway.api.translating import translated
from runtime.gateway.attempt import Steps
from runtime.gateway.counting import count_steps
from runtime.gateway.protocols.anthropic.messages import MessageTranslation
from runtime.gateway.protocols.anthropic.request import parse_count, parse_messages
from runtime.gateway.protocols.anthropic.tokens import CountTranslation
from runtime.gateway.routing.table import Target
from runtime.gateway.services import Services
from runtime.gateway.usage import prompt_tokens

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
CHAT_PATH = "/v1/chat/completions"

# Unique among the processes that ever run here.
_PREFIX = secrets.token_hex(8)
_numbers = itertools.count(1)


def register(app: Sanic[Any, Any], services: Services) -> None:
    """Add the routes."""

    async def messages(request: Request) -> HTTPResponse | None:
        wanted = parse_messages(await body_of(request, services))
        route = route_of(request, services.live, wanted.body.model, "chat")
        ask = ask_of(request, route, CHAT_PATH, wanted.body)
        translation = MessageTranslation(wanted, f"msg_{_PREFIX}{next(_numbers):08x}")
        return await translated(request, services, ask, translation)

    async def count_tokens(request: Request) -> HTTPResponse | None:
        body = parse_count(await body_of(request, services))
        route = route_of(request, services.live, body.model, "chat")
        ask = ask_of(request, route, CHAT_PATH, body)

        def steps(target: Target) -> Steps:
            seen = services.facts.of(target).source
            return count_steps(ask, target.identity.engine, seen, lambda: prompt_tokens(body.document))

        return await translated(request, services, replace(ask, steps=steps), CountTranslation())

    app.add_route(messages, PATH, methods=["POST"], stream=True, name="messages")
    app.add_route(count_tokens, COUNT_PATH, methods=["POST"], stream=True, name="count_tokens")
