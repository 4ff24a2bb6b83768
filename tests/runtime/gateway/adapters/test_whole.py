"""Which requests for whole answers are asked for as streams, and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.gateway.adapters.whole import asked_as_stream
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import Body
from runtime.gateway.routing.table import EndpointIdentity, Route, Target
from schemas.policy import Breaker, Timeouts

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "chat", "prompt": "once"}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def asked(
    document: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    engine: str = "mlx",
    seen: str = "",
    raw: bytes = b"",
    drop_params: tuple[str, ...] = (),
) -> tuple[Ask, Ask]:
    identity = EndpointIdentity("http", "h", 80, "", engine, "m")
    target = Target("a", "chat", identity, 1, None, Breaker(), Timeouts(), None, "m", drop_params=drop_params)
    body = Body(raw or json.dumps(document).encode(), document, "chat", is_stream=document.get("stream") is True)
    ask = Ask(Route("chat", ((target,),), (), 3, 600.0), path, body, "req-1")
    return ask, asked_as_stream(ask, target, seen)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (CHAT, "/v1/chat/completions"),
        ({**CHAT, "stream": False, "stream_options": None}, "/v1/chat/completions"),
        ({**CHAT, "n": 1, "logprobs": False, "tools": [], "max_tokens": 5}, "/v1/chat/completions"),
        (TEXT, "/v1/completions"),
        ({**TEXT, "n": 1, "best_of": 1, "echo": False}, "/v1/completions"),
    ],
)
def test_a_whole_answer_is_asked_for_as_a_stream_with_its_usage(document: dict[str, Any], path: str) -> None:
    _, made = asked(document, path=path)
    assert made.body.is_collected
    assert not made.body.is_stream, "its client still gets one document"
    assert json.loads(made.body.raw) == made.body.document == {**document, **STREAM}


def test_bytes_of_a_request_are_kept() -> None:
    raw = b'{"model":"chat",  "messages":[{"role":"user","content":"\\u00e9"}], "seed":1e2}'
    _, made = asked(json.loads(raw), raw=raw)
    assert made.body.raw == b'{"stream":true,"stream_options":{"include_usage":true},' + raw[1:]


def test_of_two_keys_of_one_name_none_is_left() -> None:
    raw = b' {"str\\u0065am": false, "model": "chat", "messages": []}'
    _, made = asked(json.loads(raw), raw=raw)
    assert made.body.raw.count(b"str") == 2, "`stream` and `stream_options`"
    assert json.loads(made.body.raw)["stream"] is True


@pytest.mark.parametrize(
    ("document", "more"),
    [
        ({**CHAT, "stream": True}, {}),
        ({**CHAT, "n": 2}, {}),
        ({**CHAT, "logprobs": True}, {}),
        ({**CHAT, "tools": [{"type": "function"}]}, {}),
        ({**CHAT, "return_token_ids": True}, {}),
        ({"model": "chat", "prompt": ["a", "b"]}, {"path": "/v1/completions"}),
        ({"model": "chat", "prompt": [1, 2]}, {"path": "/v1/completions"}),
        ({**TEXT, "best_of": 2}, {"path": "/v1/completions"}),
        ({**TEXT, "logprobs": 1}, {"path": "/v1/completions"}),
        (CHAT, {"path": "/tokenize"}),
        (CHAT, {"drop_params": ("stream_options",)}),
        (CHAT, {"engine": "openai"}),
        (CHAT, {"engine": "openai", "seen": "lm studio"}),
        (CHAT, {"engine": "ollama", "seen": "worker"}),
    ],
)
def test_what_streams_tell_otherwise_is_asked_for_as_it_came(document: dict[str, Any], more: dict[str, Any]) -> None:
    ask, made = asked(document, **more)
    assert made is ask


@pytest.mark.parametrize(
    ("engine", "seen"),
    [("mlx", ""), ("worker", ""), ("llama-server", ""), ("openai", "llama.cpp"), ("openai", "worker")],
)
def test_engines_that_say_the_same_in_both_ways(engine: str, seen: str) -> None:
    _, made = asked(CHAT, engine=engine, seen=seen)
    assert made.body.is_collected
