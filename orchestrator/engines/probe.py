"""I/O: ask an engine whether it serves: whether it is alive, and for a real token through its OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from orchestrator.engines.catalogue import ENGINES, upstream_model
from orchestrator.readiness import prove
from schemas.unit import EngineSpec

TOKEN_TIMEOUT_S = 120.0
"""For the first token: a large model that has just been loaded may read its weights from disk only now."""
REASON_CHARS = 300
PROMPT = "Say hello."


async def is_alive(http: httpx.AsyncClient, spec: EngineSpec, url: str, token: str | None) -> bool:
    """Tell whether an engine has its model loaded, as far as it says; cheap enough for every look. Never raises."""
    engine = ENGINES[spec.engine]
    headers = {"authorization": f"Bearer {token}"} if token and engine.has_key else {}
    try:
        answer = await http.get(f"{url}{engine.alive_path}", headers=headers)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


async def probe(http: httpx.AsyncClient, spec: EngineSpec, url: str, token: str | None) -> str | None:
    """Ask for one token; return None once there is one, else why not, in words. Never raises.

    A model without a chat template is asked to complete a text instead; models of other kinds for a vector or a score.
    """
    if spec.model.kind != "chat":
        token = token if ENGINES[spec.engine].has_key else None
        return (await prove(http, url, spec.model.kind, upstream_model(spec), token)).fault or None
    body = {"model": upstream_model(spec), "max_tokens": 1, "temperature": 0, "stream": False}
    chat = {**body, "messages": [{"role": "user", "content": PROMPT}]}
    token = token if ENGINES[spec.engine].has_key else None
    reason = await _ask(http, f"{url}/v1/chat/completions", chat, token)
    if reason is None or not reason.startswith("HTTP 4"):
        return reason
    if await _ask(http, f"{url}/v1/completions", {**body, "prompt": PROMPT}, token) is None:
        return None
    return reason


async def _ask(http: httpx.AsyncClient, url: str, body: Mapping[str, Any], token: str | None) -> str | None:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = await http.post(url, json=body, headers=headers, timeout=TOKEN_TIMEOUT_S)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if answer.status_code != httpx.codes.OK:
        return f"HTTP {answer.status_code}: {answer.text[:REASON_CHARS]}"
    try:
        content = answer.json()
        tokens = (content.get("usage") or {}).get("completion_tokens", 0)
        return None if tokens or _said(content["choices"][0]) else "it answered without a token"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return f"it did not answer as OpenAI's API does: {answer.text[:REASON_CHARS]}"


def _said(choice: Mapping[str, Any]) -> bool:
    message = choice.get("message") or {}
    return any(message.get(key) for key in ("content", "reasoning", "reasoning_content")) or bool(choice.get("text"))
