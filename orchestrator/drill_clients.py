"""I/O: the clients of a drill: small real requests to a gateway, as an application sends them, and what came back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping

import httpx

from orchestrator.ask import QUESTION
from orchestrator.drill import Phase, Seen
from orchestrator.gateway_api import GatewayApi
from orchestrator.proof import PATHS, proof_body
from schemas.model import ModelKind

ANSWER_TOKENS = 4
ANSWER_S = 120.0
"""How long a client waits for one answer."""
PAUSE_S = 0.05
"""Between two requests of a client: a drill is no load test."""
FAILED_PAUSE_S = 0.5
"""After one that failed: refusals come at once, and one tells as much as a hundred."""


async def ask_for(
    gateway: GatewayApi, roles: Mapping[str, ModelKind], phase: Phase, seconds: float, clients: int
) -> None:
    """Let some clients of each role ask for so long, one request after the other, and note what they see."""
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for role, kind in roles.items():
            for _ in range(clients):
                group.create_task(_client(gateway, role, kind, phase, end))


async def _client(gateway: GatewayApi, role: str, kind: ModelKind, phase: Phase, end: float) -> None:
    async with gateway.make() as http:
        while time.monotonic() < end:
            seen = await _one(http, gateway, role, kind)
            phase.seen.append(seen)
            await asyncio.sleep(FAILED_PAUSE_S if seen.fault else PAUSE_S)


async def _one(http: httpx.AsyncClient, gateway: GatewayApi, role: str, kind: ModelKind) -> Seen:
    begun = time.monotonic()
    timeout = httpx.Timeout(ANSWER_S, connect=5.0)
    try:
        if kind == "chat":
            body: dict[str, object] = {"model": role, "messages": [{"role": "user", "content": QUESTION}]}
            body |= {"max_tokens": ANSWER_TOKENS, "stream": True}
            url = f"{gateway.url}/v1/chat/completions"
            async with http.stream("POST", url, json=body, headers=gateway.headers, timeout=timeout) as answer:
                raw = await answer.aread()
            fault = _stream_fault(answer.status_code, raw)
        else:
            url = f"{gateway.url}{PATHS[kind]}"
            answer = await http.post(url, json=proof_body(kind, role), headers=gateway.headers, timeout=timeout)
            fault = "" if answer.is_success else _refusal(answer.status_code, answer.content)
    except httpx.HTTPError as error:
        return Seen(role, time.monotonic() - begun, 0, fault=f"no answer: {error or type(error).__name__}")
    headers = answer.headers
    return Seen(
        role,
        time.monotonic() - begun,
        answer.status_code,
        headers.get("x-orchestrate-endpoint", ""),
        headers.get("x-orchestrate-fallback", ""),
        int(headers.get("x-orchestrate-attempts", "0")),
        fault,
    )


def _stream_fault(status: int, raw: bytes) -> str:
    """Say what is wrong with a stream that is over; nothing where it is whole."""
    if status != httpx.codes.OK:
        return _refusal(status, raw)
    data = [line.removeprefix(b"data:").strip() for line in raw.splitlines() if line.startswith(b"data:")]
    failed = next((text for text in data if text.startswith(b'{"error"')), None)
    if failed is not None:
        return f"broke off: {_message(failed)}"
    return "" if data and data[-1] == b"[DONE]" else "broke off without [DONE]"


def _refusal(status: int, raw: bytes) -> str:
    return f"status {status}: {_message(raw)}"


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "no reason given"
