"""What a client is told through the gateway is what the backend says itself: the difference is zero.

Each request goes to the backend, through the gateway, and to the backend again (not to mlx-lm's stock server, which
already tells the same request in two ways: with how much of the prompt it had kept); greedily, so that the same is said
each time, and one after the other. What may differ is listed in `MAY_DIFFER` and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.clients.programs.scenarios import FRANCE, PERSON, WEATHER
from tests.clients.serving import LLAMA, WORKER, Backend, Direct, Serving

MAY_DIFFER = {
    "id": "made for each answer",
    "created": "when it was answered",
    "model": "the name that the client asked for, not the backend's own",
    "timings": "llama.cpp's clocks",
}
"""Fields with why they need not be equal."""
EMULATED = {
    (LLAMA.name, "n"): "asked for in several requests: llama.cpp's own usage counts the tokens of one choice only",
    (LLAMA.name, "tools"): "by a schema: llama.cpp leaves tools out where the model's template knows none",
    (LLAMA.name, "tools, streamed"): "as above",
    (LLAMA.name, "an error: temperature"): "no error there",
}
"""What a backend cannot do and the gateway does in its place, so that there is nothing to compare."""

ROUTE = "/v1/chat/completions"
TOOLS = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 48}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
USAGE = {"stream_options": {"include_usage": True}}

CHATS: dict[str, dict[str, Any]] = {
    "chat": {},
    "stop": {"stop": ["capital"], "max_tokens": 16},
    "a system message and turns": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello!"},
            *FRANCE,
        ]
    },
    "stream": {"stream": True},
    "stream with usage": {"stream": True, **USAGE},
}
RICH: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": True, "top_logprobs": 3, "max_tokens": 4},
    "logprobs, streamed": {"logprobs": True, "max_tokens": 4, "stream": True},
    "n": {"n": 2},
    "tools": TOOLS,
    "tools, streamed": {**TOOLS, "stream": True},
    "json_schema": {"response_format": FORMAT, "max_tokens": 40},
    "json_schema, streamed": {"response_format": FORMAT, "max_tokens": 40, "stream": True},
    "an error: temperature": {"temperature": 99},
}
TEXTS: dict[str, dict[str, Any]] = {
    "completion": {"prompt": "The capital of France is"},
    "completion, streamed": {"prompt": "The capital of France is", "stream": True},
}
VECTORS: dict[str, dict[str, Any]] = {
    "one text": {"input": "a cat"},
    "several": {"input": ["a cat", "quantum physics"]},
    "base64": {"input": ["a cat"], "encoding_format": "base64"},
}


def cases() -> list[Any]:
    found: list[tuple[Backend, str, str, dict[str, Any]]] = []
    for backend in (WORKER, LLAMA):
        chats = CHATS | RICH
        found += [
            (backend, ROUTE, name, {"messages": FRANCE, **more})
            for name, more in chats.items()
            if (backend.name, name) not in EMULATED
        ]
        found += [(backend, "/v1/completions", name, more) for name, more in TEXTS.items()]
        if backend.embedding:
            found += [(backend, "/v1/embeddings", name, more) for name, more in VECTORS.items()]
    return [pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2]}") for case in found]


@pytest.mark.parametrize(("backend", "path", "name", "asked"), cases())
def test_the_gateway_tells_what_the_backend_says(
    stack: Serving, backend: Backend, path: str, name: str, asked: Mapping[str, Any]
) -> None:
    role = backend.embedding if path.endswith("embeddings") else backend.model
    direct = stack.direct(role)
    body = dict(asked) if path.endswith("embeddings") else {"max_tokens": 8, "temperature": 0, **asked}

    def ask(place: Direct) -> object:
        url, head = f"{place.url}{path}", place.headers
        answer = httpx.post(url, json={**body, "model": place.model}, headers=head, timeout=120, trust_env=False)
        return answer.status_code, without_names(said(answer))

    ask(direct)  # from here on the prompt is known there: a prompt computed anew differs in the last digits of logprobs
    first = ask(direct)
    through = ask(Direct(stack.url, role, {}))
    again = ask(direct)
    assert first == again, "the backend itself answers the same request in two ways"
    differences = list(compare(first, through))
    print(f"{backend.name} {path} {name}: {len(differences)} differences")
    assert differences == []


def said(answer: httpx.Response) -> Any:
    """Return the document, or the documents of a stream in their order."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()
    lines = [line.removeprefix("data:").strip() for line in answer.text.splitlines() if line.startswith("data:")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def without_names(value: Any) -> Any:
    """Leave out what may differ, wherever it is."""
    if isinstance(value, dict):
        return {key: without_names(each) for key, each in value.items() if key not in MAY_DIFFER}
    if isinstance(value, list):
        return [without_names(each) for each in value]
    return value


def compare(one: Any, other: Any, at: str = "") -> list[str]:
    """Return where two answers differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [
            line for key in keys for line in compare(one.get(key, "absent"), other.get(key, "absent"), f"{at}.{key}")
        ]
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        if len(one) != len(other):
            return [f"{at}: {len(one)} items, {len(other)} through the gateway: {one} {other}"]
        pairs = enumerate(zip(one, other, strict=True))
        return [line for index, (a, b) in pairs for line in compare(a, b, f"{at}[{index}]")]
    return [] if one == other else [f"{at}: {one!r}, {other!r} through the gateway"]
