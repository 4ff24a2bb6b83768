"""I/O: answers the clients of other protocols through the relay, which knows OpenAI's only."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus

from sanic import Request
from sanic.response import HTTPResponse

from runtime.gateway.api.answers import JSON, Answer, id_marks, request_id
from runtime.gateway.api.relaying import StreamClient, carried, marks_of
from runtime.gateway.attempt import ODD_ANSWER, Ask, BadAnswerError
from runtime.gateway.errors import ApiError
from runtime.gateway.live import Live
from runtime.gateway.protocols.dialect import dialect_of
from runtime.gateway.protocols.translation import Translation
from runtime.gateway.services import Services
from runtime.gateway.upstream import UpstreamError

LARGEST_TRANSLATED_HERE = 256 * 1024
"""Bytes of an answer that is translated on the event loop; larger ones would keep all others waiting."""


async def translated(request: Request, services: Services, ask: Ask, translation: Translation) -> HTTPResponse | None:
    """Answer a client through the relay in its own protocol; None where the answer was streamed.

    `ask` is in OpenAI's words. The error of an answer that is none has the shape of the request's path.
    """
    ask = replace(ask, may_restart=False)
    answer = await carried(request, services, ask, TranslatingClient(request, services.live, translation))
    if answer is None:
        return None
    dialect = dialect_of(request.path)
    marks = marks_of(request, services.live, answer) | id_marks(request, dialect)
    if answer.status != HTTPStatus.OK:
        body = dialect.translated(answer.status, answer.body, request_id(request))
        return Answer(body, answer.status, marks, JSON)
    try:
        if len(answer.body) > LARGEST_TRANSLATED_HERE:
            body = await asyncio.to_thread(translation.whole, answer.body)
        else:
            body = translation.whole(answer.body)
    except (BadAnswerError, *ODD_ANSWER) as error:
        message = f"The endpoint '{answer.endpoint}' gave an answer that cannot be read."
        raise ApiError(502, message, code="upstream_error") from error
    return Answer(body, HTTPStatus.OK, marks, JSON)


class TranslatingClient(StreamClient):
    """The client's side of a stream in another protocol."""

    def __init__(self, request: Request, live: Live, translation: Translation) -> None:
        super().__init__(request, live, translation.content_type)
        self._translation = translation
        self._more_marks = id_marks(request, dialect_of(request.path))
        # Whoever ends the stream from outside (a revoked key) says so in the same protocol.
        request.ctx.translate = translation.feed

    async def send(self, data: bytes) -> None:
        """Send events of OpenAI's stream; raises `UpstreamError` for those that make no sense."""
        try:
            said = self._translation.feed(data)
        except (BadAnswerError, *ODD_ANSWER) as error:
            raise UpstreamError("bad answer", f"an event that cannot be read ({type(error).__name__})") from error
        await super().send(said)
