"""I/O: asks the gateway one question, the way a client would, to show that a stack answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx

from orchestrator.proof import DOCUMENTS, PATHS, QUERY, proof_body
from orchestrator.readiness import ClientMaker, prove
from schemas.kinds import role_kinds
from schemas.model import ModelKind
from schemas.prefer import HEADER, wait_preference
from schemas.stack import Stack

QUESTION = "What is the capital of France?"
ANSWER_TIMEOUT_S = 120.0
MAX_TOKENS = 64
SHOWN_NUMBERS = 3
WAIT_S = 60.0
"""What a model that is loaded on demand gets before its answer begins."""


class NoAnswerError(Exception):
    """The gateway did not answer the question."""


def role_to_ask(stack: Stack) -> tuple[str, ModelKind]:
    """Return the role to ask, with its kind: `chat` if that is one for chat, else the first such, else the first."""
    kinds = role_kinds(stack)
    name = min(kinds, key=lambda name: (kinds[name] != "chat", name != "chat"))
    return name, kinds[name]


def request_body(model: str, question: str) -> dict[str, object]:
    """Return the body of the chat request."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def curl_line(url: str, model: str, kind: ModelKind = "chat", *, is_keyed: bool = False) -> str:
    """Return a command that asks the same by hand; `is_keyed`: with a key that is in the variable KEY."""
    shown = "-H 'content-type: application/json'" + (' -H "authorization: Bearer $KEY"' if is_keyed else "")
    if kind != "chat":
        body = json.dumps(proof_body(kind, model))
        return f"curl {url}{PATHS[kind]} {shown} -d '{body}'"
    body = json.dumps(request_body(model, QUESTION))
    return f"curl {url}/v1/chat/completions {shown} -d '{body}'"


async def ask(make: ClientMaker, url: str, model: str, question: str) -> AsyncIterator[str]:
    """Yield the pieces of the answer as they come, to a client that `make` gives; raises `NoAnswerError`."""
    body = {**request_body(model, question), "stream": True}
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=5.0)
    try:
        async with (
            make() as http,
            http.stream(
                "POST",
                f"{url}/v1/chat/completions",
                json=body,
                timeout=timeout,
                headers={HEADER: wait_preference(WAIT_S)},
            ) as answer,
        ):
            if answer.status_code != 200:
                text = (await answer.aread()).decode("utf-8", "replace")
                raise NoAnswerError(f"{url} answered {answer.status_code}: {text[:500]}")
            async for line in answer.aiter_lines():
                for piece in _pieces(line):
                    yield piece
    except httpx.HTTPError as error:
        raise NoAnswerError(f"{url} did not answer: {error or type(error).__name__}") from error


async def ask_encoder(make: ClientMaker, url: str, model: str, kind: ModelKind) -> tuple[str, str]:
    """Return what an embedding or reranking role was asked, and what it answered; raises `NoAnswerError`."""
    async with make() as http:
        proof = await prove(http, url, kind, model, None, WAIT_S)
    if proof.fault:
        raise NoAnswerError(f"{url}: {proof.fault}")
    if kind == "embedding":
        start = ", ".join(f"{number:.4f}" for number in proof.vector[:SHOWN_NUMBERS])
        return QUERY, f"[{start}, ...], {len(proof.vector)} numbers"
    best, score = proof.ranked[0]
    return f"{QUERY} (of {len(DOCUMENTS)} texts)", f"{DOCUMENTS[best]} ({score:.3f})"


def _pieces(line: str) -> list[str]:
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return []
    event = json.loads(data)
    if "error" in event:
        raise NoAnswerError(str(event["error"].get("message", event["error"])))
    return [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
