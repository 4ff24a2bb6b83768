"""Probes: real tokens from real servers, asked for by the gateway itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway import prober
from runtime.gateway.routing.breaker import Closed, HalfOpen
from tests.fakes.upstream import DONE, FINISH, ROLE, Exchange, FakeUpstream, answers, refuses, stalls, streams, word
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, local_gateway, stack_document, until

CHAT_PATH = "/v1/chat/completions"
SOON = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1, "max_reset_timeout_s": 0.1}}


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json=body)


def probes(*fakes: FakeUpstream) -> int:
    return sum(seen.headers.get("x-request-id") == "probe" for fake in fakes for seen in fake.seen)


async def no_more_probes(*fakes: FakeUpstream) -> None:
    """Wait until no probe comes in three times the interval of those that came; one may still be on its way."""

    async def is_quiet() -> bool:
        before = probes(*fakes)
        await asyncio.sleep(0.6)
        return probes(*fakes) == before

    await until(is_quiet, what="nobody is probed")


async def test_an_endpoint_that_may_take_long_to_its_first_token_returns(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "PROBE_S", 0.15)

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.4)
        await answers()(exchange)

    gateway, (bad, _) = await lab(refuses(500), answers(), chat={**SOON, "timeouts": {"first_token_s": 60}})
    assert (await ask(gateway, STREAM)).headers["x-orchestrate-endpoint"] == "b"
    bad.behave = slow
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed))


async def test_a_probe_asks_for_one_token_in_the_endpoints_own_words(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat=SOON)
    await ask(gateway)
    await until(lambda: probes(fake) > 0)
    seen = next(seen for seen in fake.seen if seen.headers["x-request-id"] == "probe")
    assert (seen.path, seen.document["model"], seen.document["max_tokens"]) == (CHAT_PATH, "model-a", 1)
    assert seen.document["stream"] is True
    text = ""

    async def is_counted() -> bool:
        nonlocal text
        async with gateway.client() as client:
            text = (await client.get("/metrics")).text
        return 'orchestrate_probes_total{endpoint="a",outcome="server error"}' in text

    await until(is_counted, what="the probe is counted")
    assert 'orchestrate_first_content_seconds_count{role="a"}' not in text, "probes are no requests"


async def test_without_another_endpoint_a_request_need_not_wait_for_the_probe(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1}})
    gateway.gateway.prober.close()  # before there is anything to probe
    await ask(gateway)
    fake.behave = answers()

    async def is_served() -> bool:
        return (await ask(gateway)).status_code == 200

    await until(is_served)
    assert probes(fake) == 0


async def test_an_idle_endpoint_is_checked_only_where_the_files_say_so(lab: Any) -> None:
    gateway, (fake, other) = await lab(answers(), answers(), chat={"health_check": {"interval_s": 0.2}})
    await until(lambda: probes(fake) >= 3 and probes(other) >= 3)
    document = {**gateway.document, "roles": {"chat": {**gateway.document["roles"]["chat"]}}}
    del document["roles"]["chat"]["health_check"]
    await gateway.reload(document)
    await ask(gateway)
    await no_more_probes(fake, other)


async def test_the_interval_may_come_from_the_policy(lab: Any) -> None:
    more = {"policies": {"lan": {"health_check": {"interval_s": 0.2}}}}
    _, (fake,) = await lab(answers(), chat={"policy": "lan"}, **more)
    await until(lambda: probes(fake) >= 2)


async def test_an_idle_endpoint_that_dies_is_left_before_a_client_asks(lab: Any) -> None:
    checked = {"health_check": {"interval_s": 0.2}, "breaker": {"failure_threshold": 3, "reset_timeout_s": 60}}
    gateway, (fake, _) = await lab(answers(), answers(), chat=checked)
    await until(lambda: probes(fake) >= 1)
    await fake.stop()
    await until(lambda: gateway.standing("a").failed_checks > 0)
    answer = await ask(gateway)
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("b", "1")
    (report, _) = (await gateway.config())["endpoints"]
    assert (report["state"], report["health"], report["is_serving"]) == ("unready", "unknown", False)
    assert gateway.counted("a") == (0, 0), "no request has failed"
    async with gateway.client() as client:
        endpoints = (await client.get("/admin/endpoints")).json()["endpoints"]
    assert [one["failed_checks"] > 0 for one in endpoints] == [True, False]
    await fake.start(fake.port)
    await until(lambda: not gateway.standing("a").failed_checks)
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_an_endpoint_that_can_be_checked_no_more_is_left_to_clients(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"health_check": {"interval_s": 0.2}})
    await until(lambda: gateway.standing("a").failed_checks)
    fake.behave = refuses(400)
    await until(lambda: not gateway.standing("a").is_probed)
    assert (await gateway.config())["endpoints"][0]["state"] == "ready"


async def test_pollers_end_with_their_table(lab: Any, tmp_path: Path) -> None:
    gateway, (fake,) = await lab(refuses(500), chat=SOON)
    await ask(gateway)
    await until(lambda: probes(fake) > 0)
    for number in range(50):
        await gateway.reload({**gateway.document, "aliases": {f"edit-{number}": ["chat"]}})

    def pollers() -> int:
        names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        return names.count("Prober._run")

    await until(lambda: pollers() == 1, what="the earlier ones have ended")
    async with FakeUpstream() as other:
        await gateway.reload(stack_document({"b": other.url}, chat=SOON))
        await no_more_probes(fake)  # nobody asks what no table names


async def test_an_endpoint_that_refuses_probes_is_tried_by_clients(lab: Any) -> None:
    async def only_texts(exchange: Exchange) -> None:
        await (refuses(400) if exchange.seen.path == CHAT_PATH else answers())(exchange)

    gateway, (fake,) = await lab(refuses(500), chat=SOON)
    text = {"model": "chat", "prompt": "once"}
    async with gateway.client() as client:
        assert (await client.post("/v1/completions", json=text)).status_code == 503
        fake.behave = only_texts

        async def is_served() -> bool:
            return (await client.post("/v1/completions", json=text)).status_code == 200

        await until(is_served)
    assert isinstance(gateway.standing("a").breaker, Closed)


async def test_a_probe_that_hangs_is_given_up_and_one_at_a_time_is_made(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "PROBE_S", 0.3)

    async def hangs(exchange: Exchange) -> None:
        await (stalls if exchange.seen.headers["x-request-id"] == "probe" else refuses(500))(exchange)

    gateway, (fake,) = await lab(hangs, chat={**SOON, "timeouts": {"first_token_s": 0.3}})
    await ask(gateway)
    await until(lambda: probes(fake) >= 1 and isinstance(gateway.standing("a").breaker, HalfOpen))
    assert (await ask(gateway)).status_code == 503, "its trial is on the way"
    assert gateway.standing("a").in_flight <= 1
    fake.behave = streams(ROLE, word(0), FINISH, DONE)
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed))


async def test_many_endpoints_are_probed_a_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober, "MOST_AT_ONCE", 3)
    most = now = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1
        await answers()(exchange)

    async with FakeUpstream(slow) as fake:
        document = stack_document({"a": fake.url}, chat={"health_check": {"interval_s": 0.2}})
        document["helpers"]["a"]["models"] = {f"m{number}": {} for number in range(20)}
        document["roles"]["chat"]["endpoints"] = {
            f"e{number}": {"helper": "a", "model": f"m{number}"} for number in range(20)
        }
        async with local_gateway(tmp_path, document):
            await until(lambda: {seen.document["model"] for seen in fake.seen} == {f"m{n}" for n in range(20)})
    assert most <= 3
