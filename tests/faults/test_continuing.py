"""Streams that break off in the middle and that another endpoint goes on with, unseen by their client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from runtime.gateway.routing.breaker import Closed
from tests.fakes.continuing import TEXT, chunk, pieces, says
from tests.fakes.upstream import DONE, FINISH, ROLE, Behaviour, Exchange, answers, refuses, streams, word
from tests.runtime.gateway.harness import STREAM, LocalGateway, until

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
ADMIN = {"authorization": "Bearer admin-token"}
BROKEN = says("a", events=5)
"""The role and four pieces of text."""
BREAKS = {"reset", "ended early"}
"""A reset may look like an end, where nothing is on its way."""


async def start(lab: Any, *behaviours: Behaviour, api: str = "worker", **chat: Any) -> tuple[LocalGateway, list[Any]]:
    gateway, fakes = await lab(*behaviours, chat={"midstream": "continue", **chat})
    for letter in "abc"[1 : len(behaviours)]:
        gateway.document["helpers"][letter] |= {"api": api}
    await gateway.reload(gateway.document)
    return gateway, fakes


async def post(gateway: LocalGateway, path: str = CHAT_PATH, **body: Any) -> Any:
    subject = STREAM if path != TEXT_PATH else {"model": "chat", "prompt": "go:", "stream": True}
    async with gateway.client() as client:
        return await client.post(path, json={**subject, **body})


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def seamless(text: str, is_chat: bool = True) -> str:
    """Return the text of a stream; fails where it does not look like one that a single endpoint has given."""
    assert text.endswith("data: [DONE]\n\n"), text[-500:]
    assert '"error"' not in text and '"orchestrate"' not in text
    found = documents(text)
    assert len({(each["id"], each.get("created"), each.get("model")) for each in found if each["choices"]}) == 1
    choices = [choice for each in found for choice in each["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    if not is_chat:
        return "".join(choice["text"] for choice in choices)
    assert sum("role" in choice["delta"] for choice in choices) == 1
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def metrics(gateway: LocalGateway) -> str:
    async with gateway.client() as client:
        return str((await client.get("/metrics")).text)


@pytest.mark.parametrize("then", ["reset", "hang up", "end", "error"])
async def test_another_endpoint_goes_on_where_one_broke_off(lab: Any, then: str) -> None:
    gateway, (first, second) = await start(lab, says("a", events=5, then=then), says("b"))
    answer = await post(gateway, max_tokens=50, temperature=0.5)
    assert seamless(answer.text) == TEXT
    assert answer.text.count(": continued\n\n") == 1
    assert documents(answer.text)[-1]["id"] == "id-a"
    asked = second.seen[0].document
    assert asked["messages"] == [*STREAM["messages"], {"role": "assistant", "content": TEXT[:16].rstrip()}]
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert (asked["max_tokens"], asked["temperature"], asked["model"]) == (46, 0.5, "model-b")
    assert first.seen[0].document["max_tokens"] == 50
    assert gateway.counted("a")[1] == 1 and gateway.counted("b")[1] == 0
    assert 'orchestrate_continued_total{endpoint="b"} 1.0' in await metrics(gateway)
    async with gateway.client() as client:
        place = f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}"
        receipt = (await client.get(place, headers=ADMIN)).json()
    broken, whole = receipt["attempts"]
    assert (broken["endpoint"], whole["endpoint"], whole["outcome"]) == ("a", "b", "ok")
    assert broken["outcome"] in BREAKS
    assert (receipt["endpoint"], receipt["outcome"]) == ("b", "ok")


async def test_an_endpoint_that_stalls_is_replaced(lab: Any) -> None:
    gateway, (first, _) = await start(
        lab, says("a", events=3, then="silence"), says("b"), timeouts={"idle_s": 0.2, "total_s": 60}
    )
    assert seamless((await post(gateway)).text) == TEXT
    await asyncio.wait_for(first.seen[0].was_cut.wait(), 30.0)


async def test_the_second_may_break_off_too(lab: Any) -> None:
    gateway, (_, _, third) = await start(lab, BROKEN, says("b", events=4), says("c"), limits={"attempts": 3})
    answer = await post(gateway, stream_options={"include_usage": True}, max_completion_tokens=50)
    assert seamless(answer.text) == TEXT
    assert answer.text.count(": continued\n\n") == 2
    asked = third.seen[0].document
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant"]
    assert asked["max_completion_tokens"] == 50 - 4 - 3
    (usage,) = [each["usage"] for each in documents(answer.text) if each.get("usage")]
    made = 4 + 3 + len(pieces(TEXT)) - 7
    assert usage["estimated"] is True
    assert abs(usage["completion_tokens"] - made) <= 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 9 <= usage["prompt_tokens"] <= 12


async def test_text_completions_are_gone_on_with_by_any_engine(lab: Any) -> None:
    gateway, (_, second) = await start(lab, says("a", events=4), says("b"), api="openai")
    answer = await post(gateway, TEXT_PATH, max_tokens=40)
    assert seamless(answer.text, is_chat=False) == TEXT
    assert second.seen[0].document["prompt"] == "go:" + TEXT[:16].rstrip()
    assert second.seen[0].document["max_tokens"] == 36


@pytest.mark.parametrize("api", ["openai", "ollama", "mlx-lm-server"])
async def test_engines_that_are_not_known_to_go_on_are_passed_over(lab: Any, api: str) -> None:
    gateway, (_, second, third) = await start(lab, BROKEN, says("b"), says("c"))
    gateway.document["helpers"]["b"]["api"] = api
    await gateway.reload(gateway.document)
    assert seamless((await post(gateway)).text) == TEXT
    assert (len(second.seen), len(third.seen)) == (0, 1)


async def test_where_nobody_can_go_on_the_stream_ends_with_an_error(lab: Any) -> None:
    gateway, (_, second) = await start(lab, BROKEN, says("b"), api="openai")
    text = (await post(gateway)).text
    assert not second.seen
    assert text.count('"error"') == 1 and "[DONE]" not in text
    assert "a: reset" in text or "a: ended early" in text
    await until(lambda: gateway.in_flight == 0)


THINKS = streams(ROLE, chunk("b", is_chat=True, delta={"reasoning_content": "Hm."}), word(0), FINISH, DONE)


@pytest.mark.parametrize("other", [refuses(400), refuses(500), THINKS], ids=["400", "500", "thinks"])
async def test_one_that_does_not_go_on_leaves_it_to_the_next(lab: Any, other: Behaviour) -> None:
    gateway, (_, second, _) = await start(lab, BROKEN, other, says("c"), limits={"attempts": 3})
    assert seamless((await post(gateway)).text) == TEXT
    assert len(second.seen) == 1
    assert isinstance(gateway.standing("b").breaker, Closed)


CALL = {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("delta", "body"),
    [
        (CALL, {"tools": TOOLS}),
        ({"reasoning_content": "Hm, "}, {}),
        ({"refusal": "No"}, {}),
        ({"content": "One "}, {"logprobs": True}),
        ({"content": "One "}, {"response_format": {"type": "json_object"}}),
        ({"content": "One "}, {"n": 2}),
        ({"content": "One "}, {"tools": TOOLS, "tool_choice": "required"}),
    ],
)
async def test_what_cannot_be_gone_on_with_ends_with_an_error(
    lab: Any, delta: dict[str, Any], body: dict[str, Any]
) -> None:
    broken = streams(ROLE, chunk("a", is_chat=True, delta=delta), then="reset")
    gateway, (_, second) = await start(lab, broken, says("b"))
    text = (await post(gateway, **body)).text
    assert "broke off in the middle" in text and "[DONE]" not in text
    assert '"restart"' not in text
    assert not second.seen


async def test_thoughts_that_are_over_are_not_thought_again(lab: Any) -> None:
    thought = chunk("a", is_chat=True, delta={"reasoning_content": "Hm."})
    said = chunk("a", is_chat=True, delta={"content": TEXT[:9]})
    gateway, (_, second) = await start(lab, streams(ROLE, thought, said, then="reset"), says("b"))
    assert (await post(gateway, max_tokens=9)).text.endswith(DONE.decode())
    assert second.seen[0].document["reasoning_effort"] == "none"
    assert second.seen[0].document["max_tokens"] == 7


async def test_an_answer_that_is_whole_but_for_its_end_is_ended_by_the_gateway(lab: Any) -> None:
    finished = streams(ROLE, word(0), FINISH, then="reset")
    gateway, (first, second) = await start(lab, finished, says("b"))
    answer = await post(gateway, stream_options={"include_usage": True})
    assert seamless(answer.text) == "w0 "
    assert documents(answer.text)[-1]["usage"]["completion_tokens"] > 0
    first.behave = streams(ROLE, word(0), word(1), then="reset")
    full = (await post(gateway, max_tokens=2)).text
    assert '"finish_reason":"length"' in full and full.endswith(DONE.decode())
    assert not second.seen


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/api/chat", {}, '"done":true'),
        ("/v1/messages", {"max_tokens": 99}, "message_stop"),
        ("/v1/responses", {"input": "hi", "store": False, "messages": None}, "response.completed"),
    ],
)
async def test_clients_of_other_protocols_see_no_seam(lab: Any, path: str, body: dict[str, Any], end: str) -> None:
    gateway, (_, second) = await start(lab, BROKEN, says("b"))
    asked = {key: value for key, value in {**STREAM, **body}.items() if value is not None}
    async with gateway.client() as client:
        text = (await client.post(path, json=asked)).text
    assert len(second.seen) == 1
    assert end in text.replace('"done": true', '"done":true') and '"error"' not in text.replace('"error":null', "")
    found = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith(("data: {", "{"))]
    said = [
        each["message"]["content"] if "message" in each and "done" in each
        else each["delta"].get("text", "") if each.get("type") == "content_block_delta"
        else each["delta"] if each.get("type") == "response.output_text.delta"
        else ""
        for each in found
    ]  # fmt: skip
    assert "".join(said) == TEXT


async def test_a_client_that_leaves_frees_the_endpoint_that_goes_on(lab: Any) -> None:
    gateway, (_, second) = await start(lab, BROKEN, says("b", events=2, then="silence"))

    async def read() -> None:
        async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
            async for _ in answer.aiter_bytes():
                pass

    reading = asyncio.create_task(read())
    await until(lambda: second.seen and second.seen[0].is_begun)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await asyncio.wait_for(second.seen[0].was_cut.wait(), 30.0)
    await until(lambda: gateway.in_flight == 0)


async def test_without_a_break_nothing_is_different(lab: Any) -> None:
    gateway, (first, second) = await start(lab, answers(), answers())
    continued = (await post(gateway)).text
    gateway.document["roles"]["chat"]["midstream"] = "error"
    await gateway.reload(gateway.document)
    assert (await post(gateway)).text == continued
    before, after = first.seen
    assert before.document == after.document
    assert not second.seen


async def test_an_alias_over_both_goes_on_where_it_can_and_begins_anew_where_it_cannot(lab: Any) -> None:
    async def thinks(exchange: Exchange) -> None:
        await streams(ROLE, chunk("a", is_chat=True, delta={"reasoning_content": "Hm"}), then="reset")(exchange)

    gateway, (first, second) = await start(lab, BROKEN, says("b"))
    document = gateway.document
    endpoints = document["roles"]["chat"]["endpoints"]
    other = {"endpoints": {"second": endpoints.pop("b")}, "midstream": "restart"}
    document["roles"]["other"] = other
    document["aliases"] = {"both": ["chat", "other"]}
    await gateway.reload(document)
    assert seamless((await post(gateway, model="both")).text) == TEXT
    first.behave = thinks
    text = (await post(gateway, model="both")).text
    assert '"restart"' in text and text.endswith(DONE.decode())
    assert second.seen[-1].document["messages"] == STREAM["messages"]
