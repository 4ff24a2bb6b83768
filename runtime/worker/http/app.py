"""I/O: the worker's HTTP surface, on Sanic: which paths a model of a kind has, who may ask, and who answers."""

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sanic import HTTPResponse, Request, Sanic
from sanic.response import json as json_response

from runtime.worker.body import parse_json
from runtime.worker.card import read_card
from runtime.worker.choices import Stream, Whole
from runtime.worker.described import FileCard, row_of
from runtime.worker.encode.engine import EncodeEngine
from runtime.worker.encode.request import parse_embedding, parse_rerank
from runtime.worker.encode.work import Reading, Work, embedding_work, rerank_work
from runtime.worker.engine import Engine
from runtime.worker.errors import RequestError
from runtime.worker.http.answers import answer_error, refusal
from runtime.worker.http.exchange import MAX_BODY_BYTES, answer_stream, answer_whole, read_body
from runtime.worker.on_demand.hosting import Call, Host, Loadable
from runtime.worker.on_demand.lending import OnDemand
from runtime.worker.openai import Envelope, Kind
from runtime.worker.request import Request as Wanted
from runtime.worker.request import parse_chat, parse_completion
from runtime.worker.settings import Settings
from schemas.messages import Phase
from schemas.model import ModelKind
from schemas.prefer import HEADER as PREFER_HEADER
from schemas.prefer import PROBE_HEADER, wait_s
from schemas.verdict import Verdict

MOST_DISCARDED = 2 * MAX_BODY_BYTES
"""Bytes of a refused body that are read so that its sender gets to see the answer."""
HEADER_TIMEOUT_S = 60
NEVER_S = 10 * 365 * 86400
"""Sanic cuts answers that take longer than its RESPONSE_TIMEOUT; every timer of an answer is our own."""

GENERATION_PATHS = ("/v1/chat/completions", "/v1/completions")
COUNT_PATH = "/tokenize"
"""vLLM's: how many tokens a prompt has. The tokens themselves are not told."""
EMBEDDING_PATH = "/v1/embeddings"
LOADED: frozenset[Phase] = frozenset({"warming", "ready", "recovering", "draining"})
"""Phases in which the whole model is in memory."""
RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
"""Jina's and vLLM's, Cohere's, and that of Text Embeddings Inference."""
ENCODING_PATHS = (EMBEDDING_PATH, *RERANK_PATHS)

App = Sanic[Any, Any]
_Parser = Callable[[dict[str, Any], str], Wanted]


def build_app(settings: Settings, host: Host[Engine]) -> App:
    """Build the application of a chat model; it serves from the first moment, also while the model loads."""
    app = _new_app(settings, host)
    _add_generation(app, settings.name, host)
    _add_counting(app, settings.name, host)
    _add_canary(app, host)
    _refuse_others(app, "chat", ENCODING_PATHS)
    return app


def build_encoding_app(settings: Settings, host: Host[EncodeEngine]) -> App:
    """Build the application of an embedding or reranking model; it serves from the first moment."""
    app = _new_app(settings, host)
    _add_ranking(app, settings.name, host)
    if settings.kind == "embedding":
        _add_embedding(app, settings.name, host)
        _refuse_others(app, settings.kind, (*GENERATION_PATHS, COUNT_PATH))
    else:
        _refuse_others(app, settings.kind, (*GENERATION_PATHS, COUNT_PATH, EMBEDDING_PATH))
    return app


def _new_app(settings: Settings, host: Host[Loadable]) -> App:
    app: App = Sanic("worker", configure_logging=False)
    app.config.update(
        ACCESS_LOG=False,
        REQUEST_MAX_SIZE=MOST_DISCARDED,
        REQUEST_TIMEOUT=HEADER_TIMEOUT_S,
        RESPONSE_TIMEOUT=NEVER_S,
        KEEP_ALIVE_TIMEOUT=120,
    )
    unguarded = {"/health"}
    if isinstance(host, OnDemand):
        unguarded.add(_add_unload(app, settings.token, host))
    _add_guard(app, settings.token, frozenset(unguarded))
    _add_reports(app, settings, host)
    app.error_handler.add(Exception, answer_error)
    return app


def _add_guard(app: App, token: str | None, unguarded: frozenset[str]) -> None:
    expected = f"Bearer {token}".encode()

    @app.on_request
    async def check_token(request: Request) -> HTTPResponse | None:
        if token is None or request.path in unguarded:
            return None
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if hmac.compare_digest(given, expected):
            return None
        response = refusal(401, "The worker's bearer token is missing or wrong.", code="invalid_api_key")
        response.headers["www-authenticate"] = "Bearer"
        return response


def _add_generation(app: App, model: str, host: Host[Engine]) -> None:
    def serve(kind: Kind, parser: _Parser) -> Callable[[Request], Any]:
        async def handler(request: Request) -> HTTPResponse | None:
            body = await read_body(request)
            async with (
                host.holding(_call_of(request)) as engine,
                engine.answering(lambda: parser(parse_json(body), model)) as (wanted, answer),
            ):
                prefix = "chatcmpl" if kind == "chat" else "cmpl"
                envelope = Envelope(kind, f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model)
                shape = envelope, wanted.choices, wanted.logprobs is not None
                readers = answer.new_reader, answer.new_thoughts
                if wanted.is_stream:
                    await answer_stream(request, Stream(*shape, wanted.include_usage, *readers), answer)
                    return None
                return await answer_whole(Whole(*shape, *readers), answer, has_token_ids=wanted.token_ids)

        return handler

    # Streamed bodies are read by the handler, behind the guard: nobody without the token makes the worker keep one.
    handlers = serve("chat", parse_chat), serve("completion", parse_completion)
    for name, path, handler in zip(("chat", "completions"), GENERATION_PATHS, handlers, strict=True):
        app.add_route(handler, path, methods=["POST"], stream=True, name=name)


def _add_counting(app: App, model: str, host: Host[Engine]) -> None:
    def parse(body: bytes) -> Wanted:
        document = parse_json(body)
        parser = parse_completion if "prompt" in document and "messages" not in document else parse_chat
        return parser(document, model)

    async def handler(request: Request) -> HTTPResponse:
        body = await read_body(request)
        async with host.holding(_call_of(request)) as engine:
            tokens, most = await engine.counted(lambda: parse(body))
        return json_response({"count": tokens, "max_model_len": most})

    app.add_route(handler, COUNT_PATH, methods=["POST"], stream=True, name="tokenize")


def _add_embedding(app: App, model: str, host: Host[EncodeEngine]) -> None:
    def prepare(body: bytes, reading: Reading) -> Work:
        return embedding_work(parse_embedding(parse_json(body), model), reading, model)

    app.add_route(_encoding(host, prepare), EMBEDDING_PATH, methods=["POST"], stream=True, name="embeddings")


def _add_ranking(app: App, model: str, host: Host[EncodeEngine]) -> None:
    def prepare(body: bytes, reading: Reading) -> Work:
        return rerank_work(parse_rerank(parse_json(body), model), reading, model)

    for number, path in enumerate(RERANK_PATHS):
        app.add_route(_encoding(host, prepare), path, methods=["POST"], stream=True, name=f"rerank{number}")


def _encoding(host: Host[EncodeEngine], prepare: Callable[[bytes, Reading], Work]) -> Callable[[Request], Any]:
    async def handler(request: Request) -> HTTPResponse:
        body = await read_body(request)
        async with host.holding(_call_of(request)) as engine:
            answer = await engine.answer(lambda reading: prepare(body, reading))
        return HTTPResponse(answer, content_type="application/json")

    return handler


def _refuse_others(app: App, kind: ModelKind, paths: Iterable[str]) -> None:
    """Name the right paths to who asks a model for what its kind cannot do."""
    own = {"chat": GENERATION_PATHS, "embedding": (EMBEDDING_PATH, RERANK_PATHS[0]), "reranking": RERANK_PATHS[:1]}

    async def refuse(request: Request) -> HTTPResponse:
        await read_body(request)
        article = "an" if kind == "embedding" else "a"
        message = f"This worker serves {article} {kind} model; it answers {' and '.join(own[kind])}."
        return refusal(404, message, code="wrong_kind")

    for number, path in enumerate(paths):
        app.add_route(refuse, path, methods=["POST"], stream=True, name=f"other{number}")


def _add_reports(app: App, settings: Settings, host: Host[Loadable]) -> None:
    card: FileCard | None = None

    @app.get("/health")
    async def health(_: Request) -> HTTPResponse:
        is_alive = host.is_alive
        return json_response({"status": "ok" if is_alive else "failed"}, status=200 if is_alive else 503)

    @app.get("/ready")
    async def ready(_: Request) -> HTTPResponse:
        readiness = host.readiness()
        is_open = readiness.takes_requests
        headers = {} if is_open else {"retry-after": "1"}
        return json_response(readiness.model_dump(), status=200 if is_open else 503, headers=headers)

    @app.get("/status")
    async def status(_: Request) -> HTTPResponse:
        return json_response(host.status().model_dump())

    @app.get("/v1/models")
    async def models(_: Request) -> HTTPResponse:
        nonlocal card
        if card is None:
            directory = Path(settings.model_dir)
            card = await asyncio.to_thread(read_card, directory, settings.kind, settings.max_context)
        status = host.status()
        row = row_of(
            settings.name,
            host.started_at,
            card,
            host.describe(),
            is_loaded=status.phase in LOADED,
            memory_bytes=status.memory.active_bytes,
            expires_at=host.expires_at(),
        )
        return json_response({"object": "list", "data": [row.model_dump(exclude_none=True)]})


def _add_canary(app: App, host: Host[Engine]) -> None:
    async def judge(request: Request) -> HTTPResponse:
        body = await read_body(request)
        try:
            verdict = Verdict.from_json(body)
        except ValidationError:
            raise RequestError("The body is no verdict of a canary.") from None
        async with host.holding(Call(is_probe=True)) as engine:
            engine.judge(verdict)
        return json_response({})

    app.add_route(judge, "/canary", methods=["POST"], stream=True, name="canary")


def _add_unload(app: App, token: str | None, host: OnDemand[Loadable]) -> str:
    """Return the path, which has a key of its own: neighbours may belong to another stack."""

    async def unload(request: Request) -> HTTPResponse:
        """Drop the idle model: for a neighbour on this node, which knows the key from the registry that they share, or
        for who has the worker's token, as the orchestrator that needs the memory for what always runs.
        """
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        is_own = token is not None and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())
        is_done = await host.unload(None if is_own else given)
        if is_done is None:
            return refusal(401, "The key of this worker is missing or wrong.", code="invalid_api_key")
        if not is_done:
            return refusal(409, "The model is in use.", code="model_in_use")
        return json_response({"unloaded": True})

    # Nobody's body is kept: it says nothing.
    app.add_route(unload, "/unload", methods=["POST"], stream=True, name="unload")
    return "/unload"


def _call_of(request: Request) -> Call:
    is_probe = request.headers.get(PROBE_HEADER) is not None
    return Call(wait_s(request.headers.get(PREFER_HEADER)), is_probe)
