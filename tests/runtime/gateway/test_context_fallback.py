"""Prompts that are longer than what a role can read go to the role that reads more, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed
from runtime.gateway.routing.outcome import CONTEXT_OVERFLOW, judge_error_event, judge_status
from tests.fakes.upstream import ROLE, Behaviour, answers, event, refuses, streams
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, instance, service_document, words_of


def error(status: int, message: str, **more: Any) -> Behaviour:
    return refuses(status, {"error": {"message": message, "type": "t", "code": None, **more}})


OPENAI = error(400, "Too long.", type="invalid_request_error", code="context_length_exceeded")
ENGINES = {
    "openai": OPENAI,
    "vllm": error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."),
    "vllm of old": refuses(400, {"object": "error", "message": "This model's maximum context length is 4096 tokens."}),
    "vllm 0.16": error(400, "You passed 25 input tokens. However, the model's context length is only 24 tokens."),
    "llama.cpp": error(400, "the request exceeds the available context size", type="exceed_context_size_error"),
    "llama.cpp of old": error(500, "the request exceeds the available context size. try increasing it"),
    "sglang": error(400, "The input (9 tokens) is longer than the model's context length (8 tokens)."),
    "ollama": refuses(500, {"error": "the input length exceeds the context length"}),
    "lm studio": refuses(400, {"error": "The number of tokens to keep from the initial prompt is greater than the "
                               "context length. Try to load the model with a larger context length"}),
}  # fmt: skip
STREAMS = {
    "status": OPENAI,
    "lm studio": streams(ROLE, b"event: error\n" + event({"error": {"message": "Trying to keep the first 9 tokens when "
                                                          "context the overflows."}})),
    "llama.cpp": streams(event({"error": {"type": "exceed_context_size_error", "message": "too long"}})),
}  # fmt: skip


def over(*names: str, **more: Any) -> dict[str, Any]:
    endpoints = {name: {"helper": name, "model": f"model-{name}", "priority": n + 1} for n, name in enumerate(names)}
    return {"endpoints": endpoints, **more}


async def start(lab: Any, *behaviours: Behaviour, **roles: Any) -> tuple[LocalGateway, list[Any]]:
    gateway, fakes = await lab(*behaviours)
    gateway.document["roles"] = roles
    await gateway.reload(gateway.document)
    return gateway, fakes


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_prompt_that_is_too_long_is_answered_by_the_role_that_reads_more(lab: Any, engine: str) -> None:
    roles = {"chat": over("a", "b", context_fallback="long"), "long": over("c")}
    gateway, (first, second, long) = await start(lab, ENGINES[engine], answers(), answers("long"), **roles)
    answer = await ask(gateway)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "long"
    marks = {name: answer.headers[f"x-orchestrate-{name}"] for name in ("endpoint", "fallback", "attempts")}
    assert marks == {"endpoint": "c", "fallback": "long", "attempts": "2"}
    # Nothing is wrong with the endpoint, and nobody else of its role was asked.
    standing = gateway.standing("a")
    assert isinstance(standing.breaker, Closed) and standing.breaker.failures == 0 and standing.in_flight == 0
    assert (len(first.seen), len(second.seen), len(long.seen)) == (1, 0, 1)


@pytest.mark.parametrize("way", STREAMS)
async def test_a_stream_goes_on_there_before_its_first_content(lab: Any, way: str) -> None:
    roles = {"chat": over("a", context_fallback="long"), "long": over("b")}
    gateway, _ = await start(lab, STREAMS[way], answers(words=2), **roles)
    answer = await ask(gateway, STREAM)
    assert words_of(answer.text) == ["w0", "w1"]
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-fallback"]) == ("b", "long")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (422, '{"error": "`inputs` must have less than 512 tokens. given: 600", "error_type": "validation"}'),
        (413, '{"error": "the input length exceeds the context length"}'),
        (500, '{"error": "input length exceeds maximum context length"}'),
        (400, "the decoder prompt (length 9) is longer than the maximum model length of 8."),
        (400, "requested tokens (516) exceed context window of 512"),
    ],
)
def test_every_engine_s_words_for_it_are_known(status: int, text: str) -> None:
    assert judge_status(status, None, text) is CONTEXT_OVERFLOW
    assert judge_status(503, None, text) is not CONTEXT_OVERFLOW
    assert judge_error_event("server_error", text) is CONTEXT_OVERFLOW


async def test_without_such_a_role_the_error_is_passed_on_as_it_came(lab: Any) -> None:
    gateway, (_, second) = await start(lab, OPENAI, answers(), chat=over("a", fallback={"role": "b"}), b=over("b"))
    answer = await ask(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "x-orchestrate-fallback" not in answer.headers
    assert not second.seen


async def test_another_refusal_stays_one(lab: Any) -> None:
    roles = {"chat": over("a", context_fallback="long"), "long": over("b")}
    gateway, (_, second) = await start(lab, error(400, "'temperature' must be a number."), answers(), **roles)
    assert (await ask(gateway)).status_code == 400
    assert not second.seen


async def test_a_chain_is_walked_to_its_end_whose_error_is_told(lab: Any) -> None:
    roles = {
        "chat": over("a", context_fallback="long"),
        "long": over("b", context_fallback="longest"),
        "longest": over("c"),
    }
    gateway, (_, _, last) = await start(lab, OPENAI, ENGINES["vllm"], answers("yes"), **roles)
    answer = await ask(gateway)
    assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "longest")
    last.behave = ENGINES["llama.cpp"]
    answer = await ask(gateway)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded"), "whatever the engine calls it"
    assert error["message"] == "the request exceeds the available context size"
    assert answer.headers["x-orchestrate-endpoint"] == "c"


async def test_both_ways_of_falling_back_may_lead_to_each_other(lab: Any) -> None:
    """A role for long prompts that is down leaves short ones to the other role, and nothing turns in circles."""
    roles = {"chat": over("a", context_fallback="long"), "long": over("b", fallback={"role": "chat"})}
    gateway, (short, _) = await start(lab, answers("short"), refuses(500), **roles)
    answer = await ask(gateway, {**CHAT, "model": "long"})
    assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "chat")
    short.behave = OPENAI
    asked = len(short.seen)
    answer = await ask(gateway)
    assert answer.status_code == 503
    assert "a: context overflow" in answer.json()["error"]["message"]
    assert "'chat' can answer now" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert len(short.seen) == asked + 1  # not asked again, although the other role falls back to it


async def test_the_role_for_long_prompts_falls_back_in_its_own_way(lab: Any) -> None:
    roles = {
        "chat": over("a", context_fallback="long"),
        "long": over("b", fallback={"role": "far"}),
        "far": over("c"),
    }
    gateway, _ = await start(lab, OPENAI, refuses(503), answers("far"), **roles)
    answer = await ask(gateway)
    assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "far")


async def test_many_long_prompts_do_not_use_up_the_retries(lab: Any) -> None:
    roles = {"chat": over("a", context_fallback="long"), "long": over("b")}
    gateway, _ = await start(lab, OPENAI, answers("long", pause_s=0.02), **roles)
    answers_ = await asyncio.gather(*(ask(gateway) for _ in range(24)))
    assert [answer.status_code for answer in answers_] == [200] * 24


async def test_an_alias_goes_on_where_its_roles_do(lab: Any) -> None:
    roles = {"chat": over("a", context_fallback="long"), "long": over("b")}
    gateway, _ = await start(lab, OPENAI, answers("long"), **roles)
    gateway.document["aliases"] = {"gpt": ["chat"]}
    await gateway.reload(gateway.document)
    answer = await ask(gateway, {**CHAT, "model": "gpt"})
    assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "long")
    # Who asks for a model wants that one.
    assert (await ask(gateway, {**CHAT, "model": "model-a"})).status_code == 400


async def test_of_an_alias_the_first_that_is_loaded_and_healthy_answers(lab: Any) -> None:
    """One whose model has to be loaded first comes after all others, and is asked where nobody else is left."""
    gateway, (cold, warm) = await lab(answers("cold"), answers("warm"))
    document = service_document("cold", "warm", aliases={"gpt": ["cold", "warm"]})
    document["services"]["cold"]["start"] = "on-demand"
    await gateway.reload(document)
    await gateway.publish(*(instance(name, fake.url) for name, fake in (("cold", cold), ("warm", warm))))

    async def answered() -> str:
        answer = await ask(gateway, {**CHAT, "model": "gpt"})
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-orchestrate-endpoint"])

    assert await answered() == "warm"
    assert not cold.seen
    warm.behave = refuses(500)
    assert await answered() == "cold"
    # Now that it is loaded it is the first again.
    warm.behave = answers("warm")
    assert await answered() == "cold"
    cold.behave = warm.behave = refuses(500)
    answer = await ask(gateway, {**CHAT, "model": "gpt"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_endpoint_available")
    cold.behave = warm.behave = refuses(404, {"error": {"message": "The model does not exist.", "type": "t"}})
    answer = await ask(gateway, {**CHAT, "model": "gpt"})
    assert answer.status_code == 503
    await gateway.publish()
    answer = await ask(gateway, {**CHAT, "model": "gpt"})
    assert (answer.status_code, json.loads(answer.text)["error"]["code"]) == (503, "no_endpoint_available")
