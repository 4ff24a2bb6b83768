"""Second endpoints that are asked too, streams that are given anew, and conversations that return to their replica."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from runtime.gateway.routing.breaker import Closed, Open
from runtime.gateway.routing.pace import LEAST_SAMPLES
from tests.fakes.encoders import embeds, vector
from tests.fakes.upstream import DONE, FINISH, ROLE, Exchange, answers, refuses, stalls, streams, word
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, until

EMBED = {"model": "embedding", "input": "one"}
CHAT_PATH = "/v1/chat/completions"


async def start(
    lab: Any, first: Any, second: Any, hedge_s: float | str | None, first_limit_s: float | None = None
) -> Any:
    """Start two embedding helpers, the second one asked when the first does not answer."""
    endpoints: dict[str, dict[str, Any]] = {
        name: {"helper": name, "model": f"model-{name}", "priority": place + 1} for place, name in enumerate("ab")
    }
    if first_limit_s is not None:
        endpoints["a"]["timeout_s"] = first_limit_s
    limits = {} if hedge_s is None else {"hedge_s": hedge_s}
    roles = {
        "chat": {"endpoints": {"c": {"helper": "c", "model": "model-c"}}},
        "embedding": {"endpoints": endpoints, "dimensions": 4, "limits": limits, "timeouts": {"total_s": 60}},
    }
    gateway, fakes = await lab(first, second, answers(), roles=roles)
    return gateway, fakes


async def embed(gateway: LocalGateway) -> Any:
    async with gateway.client() as client:
        return await client.post("/v1/embeddings", json=EMBED)


async def metrics(gateway: LocalGateway) -> str:
    async with gateway.client() as client:
        return (await client.get("/metrics")).text


async def test_the_second_endpoint_answers_when_the_first_takes_long_and_the_loser_is_freed(lab: Any) -> None:
    gateway, (slow, fast, _) = await start(lab, stalls, embeds(4), 0.05)
    answer = await embed(gateway)
    assert answer.json()["data"][0]["embedding"] == vector("one", 4)
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("b", "2")
    await until(lambda: slow.seen and slow.seen[0].was_cut.is_set(), what="the loser is freed")
    await until(lambda: gateway.in_flight == 0)
    assert isinstance(gateway.standing("a").breaker, Closed)
    assert gateway.standing("a").breaker.failures == 0, "to be outrun is no failure"
    assert len(fast.seen) == 1
    text = await metrics(gateway)
    assert 'orchestrate_hedges_total{outcome="won",role="embedding"} 1.0' in text
    assert 'orchestrate_attempts_total{endpoint="a",outcome="outrun"} 1.0' in text


async def test_nobody_else_is_asked_while_the_first_is_quick_or_hedging_is_not_wanted(lab: Any) -> None:
    gateway, (_, other, _) = await start(lab, embeds(4), embeds(4), 50.0)
    assert (await embed(gateway)).headers["x-orchestrate-endpoint"] == "a"
    assert not other.seen


async def test_without_the_key_nobody_is_asked_twice(lab: Any) -> None:
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await gate.wait()
        await embeds(4)(exchange)

    gateway, (first, other, _) = await start(lab, late, embeds(4), None)
    asking = asyncio.create_task(embed(gateway))
    await until(lambda: first.seen)
    gate.set()
    assert (await asking).headers["x-orchestrate-endpoint"] == "a"
    assert not other.seen


async def test_p95_begins_once_enough_answers_were_seen(lab: Any) -> None:
    gateway, (first, other, _) = await start(lab, embeds(4), embeds(4), "p95")
    for _ in range(LEAST_SAMPLES):
        gateway.standing("a").pace.answered(0.02)
    first.behave = stalls
    assert (await embed(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert len(other.seen) == 1
    await until(lambda: gateway.in_flight == 0)
    assert len(gateway.standing("a").pace._recent) == LEAST_SAMPLES + 1, "the slow answers are not missing"


async def test_the_first_one_may_still_win(lab: Any) -> None:
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await gate.wait()
        await embeds(4)(exchange)

    gateway, (_, other, _) = await start(lab, late, stalls, 0.05)
    asking = asyncio.create_task(embed(gateway))
    await until(lambda: other.seen)
    gate.set()
    assert (await asking).headers["x-orchestrate-endpoint"] == "a"
    await asyncio.wait_for(other.seen[0].was_cut.wait(), 30.0)
    assert 'orchestrate_hedges_total{outcome="lost",role="embedding"} 1.0' in await metrics(gateway)


async def test_what_is_told_beside_an_answer_is_of_the_endpoint_that_gave_it(lab: Any) -> None:
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await gate.wait()
        await embeds(4)(exchange)

    gateway, (_, other, _) = await start(lab, late, stalls, 0.05)
    gateway.document["roles"]["embedding"]["endpoints"]["a"]["drop_params"] = ["user"]
    await gateway.reload()
    async with gateway.client() as client:
        asking = asyncio.create_task(client.post("/v1/embeddings", json={**EMBED, "user": "me"}))
        await until(lambda: other.seen)
        gate.set()
        answer = await asking
        assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-dropped"]) == ("a", "user")
        receipt = (await client.get(f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}")).json()
    told = sorted((each["endpoint"], each["outcome"], *each["dropped"]) for each in receipt["attempts"])
    assert told == [("a", "ok", "user"), ("b", "outrun")]


async def test_a_second_endpoint_that_fails_does_not_take_the_first_ones_answer_away(lab: Any) -> None:
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await gate.wait()
        await embeds(4)(exchange)

    gateway, _ = await start(lab, late, refuses(500), 0.05)
    asking = asyncio.create_task(embed(gateway))
    await until(lambda: gateway.standing("b").breaker.failures == 1, what="the second one has failed")
    gate.set()
    assert (await asking).headers["x-orchestrate-endpoint"] == "a"


async def test_when_both_fail_the_client_is_told_of_both(lab: Any) -> None:
    gate = asyncio.Event()

    async def fails_late(exchange: Exchange) -> None:
        await gate.wait()
        await refuses(500)(exchange)

    gateway, (_, other, _) = await start(lab, fails_late, refuses(502), 0.05)
    asking = asyncio.create_task(embed(gateway))
    await until(lambda: other.seen)
    gate.set()
    answer = await asking
    assert answer.status_code == 503
    assert "a: server error" in answer.json()["error"]["message"]
    assert "b: server error" in answer.json()["error"]["message"]
    await until(lambda: gateway.in_flight == 0)


async def test_an_endpoint_that_hangs_behind_hedges_is_found_out(lab: Any) -> None:
    gateway, (hung, fast, _) = await start(lab, stalls, embeds(4), 0.01, first_limit_s=1.0)
    standing = gateway.standing("a")

    async def is_open() -> bool:
        assert (await embed(gateway)).headers["x-orchestrate-endpoint"] == "b"
        return isinstance(standing.breaker, Open)

    await until(is_open, what="its breaker is open")
    assert standing.last_error in {"no first content: deadline", "connect timeout: 1 s"}
    await until(lambda: gateway.in_flight == 0)
    for exchange in hung.seen:
        await asyncio.wait_for(exchange.was_cut.wait(), 30.0)
    asked = len(hung.seen)
    assert (await embed(gateway)).headers["x-orchestrate-attempts"] == "1"
    assert len(hung.seen) == asked
    assert standing.waited_out == 0
    assert len(fast.seen) > 3


async def test_an_endpoint_that_is_only_slower_than_others_stays_closed(lab: Any) -> None:
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await gate.wait()
        await embeds(4)(exchange)

    gateway, _ = await start(lab, late, embeds(4), 0.01)
    standing = gateway.standing("a")
    asked = [(await embed(gateway)).headers for _ in range(8)]
    assert {headers["x-orchestrate-endpoint"] for headers in asked} == {"b"}
    assert (standing.waited_out, standing.in_flight) == (3, 3), "no more than would open it"
    assert gateway.gateway.services.pool.may_retry(gateway.gateway.services.live.table.routes["embedding"])  # type: ignore[union-attr]
    gate.set()
    await until(lambda: gateway.in_flight == 0)
    assert isinstance(standing.breaker, Closed)
    assert (standing.breaker.failures, standing.outrun, standing.stats.answers) == (0, 0, 3)
    for headers in asked:
        async with gateway.client() as client:
            receipt = (await client.get(f"/admin/receipts/{headers['x-orchestrate-request-id']}")).json()
        told = sorted((each["endpoint"], each["outcome"]) for each in receipt["attempts"])
        assert told == [("a", "outrun"), ("b", "ok")], "each of them once"


async def test_a_client_that_leaves_frees_both(lab: Any) -> None:
    gateway, (first, second, _) = await start(lab, stalls, stalls, 0.05)
    asking = asyncio.create_task(embed(gateway))
    await until(lambda: first.seen and second.seen)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    for fake in (first, second):
        await asyncio.wait_for(fake.seen[0].was_cut.wait(), 30.0)
    await until(lambda: gateway.in_flight == 0)


BROKEN = streams(ROLE, word(7), word(8), then="reset")


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


async def stream(gateway: LocalGateway) -> str:
    async with gateway.client() as client:
        return (await client.post(CHAT_PATH, json=STREAM)).text


async def test_a_broken_stream_is_given_anew_where_the_files_say_so(lab: Any) -> None:
    gateway, (_, good) = await lab(BROKEN, answers(), chat={"midstream": "restart"})
    text = await stream(gateway)
    found = events(text)
    place = next(index for index, document in enumerate(found) if "orchestrate" in document)
    assert found[place] == {
        "object": "chat.completion.chunk",
        "choices": [],
        "orchestrate": {"restart": {"endpoint": "b", "attempt": 2}},
    }

    def words(documents: list[Any]) -> str:
        choices = [choice for document in documents for choice in document["choices"]]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    assert words(found[:place]) == "w7 w8 "
    assert words(found[place:]) == "w0 w1 w2 "
    assert text.endswith("data: [DONE]\n\n")
    assert '"error"' not in text
    assert gateway.standing("a").breaker.failures == 1
    assert len(good.seen) == 1
    assert 'orchestrate_restarts_total{endpoint="b"} 1.0' in await metrics(gateway)


async def test_without_the_key_it_ends_with_an_error(lab: Any) -> None:
    gateway, (_, good) = await lab(BROKEN, answers())
    text = await stream(gateway)
    assert "broke off in the middle" in text
    assert "[DONE]" not in text
    assert not good.seen


async def test_when_nobody_is_left_to_give_it_anew_it_ends_with_one_error(lab: Any) -> None:
    gateway, fakes = await lab(BROKEN, BROKEN, chat={"midstream": "restart"})
    text = await stream(gateway)
    assert [len(fake.seen) for fake in fakes] == [1, 1]
    assert text.count('"restart"') == 1
    assert text.count('"error"') == 1
    assert text.endswith("\n\n")
    assert "[DONE]" not in text


async def test_a_whole_answer_is_never_given_twice(lab: Any) -> None:
    whole = streams(ROLE, word(0), FINISH, DONE)
    gateway, (_, other) = await lab(whole, answers(), chat={"midstream": "restart"})
    assert '"restart"' not in await stream(gateway)
    async with gateway.client() as client:
        gateway_answer = await client.post(CHAT_PATH, json=CHAT)
    assert gateway_answer.status_code == 200
    assert len(other.seen) <= 1


@pytest.mark.slow
async def test_replicas_that_report_their_caches_get_their_conversations_back(lab: Any) -> None:
    """Two replicas that keep what they have read: most turns find the beginning of their prompt there."""
    kept: dict[int, set[str]] = {}
    cached, asked = 0, 0

    async def caches(exchange: Exchange) -> None:
        nonlocal cached, asked
        texts = [message["content"] for message in exchange.seen.document["messages"]]
        mine = kept.setdefault(exchange.writer.get_extra_info("sockname")[1], set())
        found = max((index for index in range(len(texts) + 1) if "\n".join(texts[:index]) in mine), default=0)
        mine.update("\n".join(texts[: index + 1]) for index in range(len(texts)))
        if len(texts) > 2:
            asked += 1
            cached += found >= len(texts) - 2
        usage = {"prompt_tokens": 10 * len(texts), "prompt_tokens_details": {"cached_tokens": 10 * found}}
        choice = {"index": 0, "message": {"role": "assistant", "content": "well " * 60}, "finish_reason": "stop"}
        await exchange.answer(200, {"choices": [choice], "usage": usage})

    endpoints = {name: {"helper": name, "model": f"model-{name}", "priority": 1} for name in "ab"}
    gateway, fakes = await lab(caches, caches, chat={"endpoints": endpoints})
    async with gateway.client() as client:

        async def converse(number: int) -> None:
            messages = [{"role": "system", "content": "Everybody is told this. " * 100}]
            for turn in range(5):
                messages.append({"role": "user", "content": f"conversation {number}, turn {turn} " * 12})
                answer = await client.post(CHAT_PATH, json={"model": "chat", "messages": messages})
                assert answer.status_code == 200
                messages.append(answer.json()["choices"][0]["message"])

        for batch in range(5):
            await asyncio.gather(*(converse(4 * batch + place) for place in range(4)))
    assert asked == 20 * 4
    assert cached >= 0.75 * asked, f"{cached} of {asked}"
    assert min(len(fake.seen) for fake in fakes) >= 0.25 * 100, "the common beginning gathers nobody"
    text = await metrics(gateway)
    counted = {
        line.split()[0]: float(line.split()[1]) for line in text.splitlines() if "orchestrate_prefix" in line[:20]
    }
    assert counted["orchestrate_prefix_found_total"] >= 0.75 * asked
