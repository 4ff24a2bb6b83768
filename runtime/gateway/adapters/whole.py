"""Pure: whole answers that an endpoint is asked for as streams, so that one that hangs is known in time.

A whole answer says nothing until it is finished, however long that takes: one that never comes would hold its client
until the request's own time is over. Of a stream the first content is due within its limit, and each piece after it,
and an endpoint whose client leaves notices it at the next piece. Only engines are asked so that say the same in both
ways (`tests/clients/test_direct.py` compares them), and only for what their streams tell too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.gateway.attempt import Ask
from runtime.gateway.facts.programs import program_of
from runtime.gateway.routing.table import Target

ALIKE = frozenset({"worker", "llama.cpp"})
"""Programs that give the same answer as a stream."""
_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_STREAM: Mapping[str, object] = {"stream": True, "stream_options": {"include_usage": True}}
_OPENING = json.dumps(_STREAM, separators=(",", ":")).encode()[:-1] + b","
_APART = frozenset(
    {
        *("n", "best_of", "logprobs", "top_logprobs", "echo", "prompt_logprobs", "return_token_ids", "n_probs"),
        *("tools", "functions", "audio", "modalities", "return_tokens", "return_progress", "timings_per_token"),
    }
)
"""Parameters of answers that streams tell otherwise: more than one, with probabilities, or with calls, which older
servers refuse to stream and others hold back to their end."""


def asked_as_stream(ask: Ask, target: Target, seen: str) -> Ask:
    """Return a request for a whole answer as one for a stream that the gateway puts together; itself where it has to
    stay what it is.

    `seen` is the program that was recognised at the endpoint, where the files name none.
    """
    if program_of(target.identity.engine, seen) not in ALIKE or not _may_be_streamed(ask):
        return ask
    if not _STREAM.keys().isdisjoint(target.drop_params):
        return ask
    body = ask.body
    document = {**body.document, **_STREAM}
    if _STREAM.keys().isdisjoint(body.document) and body.raw.startswith(b"{"):
        raw = _OPENING + body.raw[1:]
    else:
        raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return replace(ask, body=replace(body, raw=raw, document=document, is_collected=True))


def _may_be_streamed(ask: Ask) -> bool:
    asked = ask.body.document
    if ask.body.is_stream or ask.body.is_collected or ask.reading is not None or ask.path not in _PATHS:
        return False
    if ask.steps is not None or ask.gathering is not None or ask.parts is not None or ask.is_one_call:
        return False
    if not _APART.isdisjoint(asked) and any(_is_wanted(name, asked) for name in _APART):
        return False
    return "messages" in asked or isinstance(asked.get("prompt"), str)


def _is_wanted(name: str, asked: Mapping[str, Any]) -> bool:
    value = asked.get(name)
    return bool(value) and not (name in ("n", "best_of") and value == 1)
