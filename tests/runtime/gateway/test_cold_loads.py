"""Endpoints whose model is brought into memory by requests: a load is no failure, and clients hear how far it is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed
from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses
from tests.runtime.gateway.harness import (
    CHAT,
    STREAM,
    LocalGateway,
    instance,
    local_gateway,
    service_document,
    until,
    words_of,
)

PATH = "/v1/chat/completions"


class Cold:
    """A worker as our own: a request begins the load, `Prefer: wait` waits for it, a probe changes nothing."""

    def __init__(self, retry_after_s: int = 30) -> None:
        self.retry_after_s = retry_after_s
        self.phase = "cold"
        self.progress = 0.0
        self.loaded = asyncio.Event()

    def finish(self) -> None:
        self.phase = "ready"
        self.loaded.set()

    async def __call__(self, exchange: Exchange) -> None:
        headers = exchange.seen.headers
        if self.phase == "cold" and "x-orchestrate-probe" in headers:
            await self._refuse(exchange, "model_cold", retry_after="1")
            return
        if self.phase == "cold":
            self.phase = "loading"
        if self.phase == "loading" and "prefer" in headers:
            await self.loaded.wait()
        if self.phase == "loading":
            self.progress += 0.25
            await self._refuse(exchange, "model_loading", retry_after=str(self.retry_after_s))
            return
        await answers()(exchange)

    async def _refuse(self, exchange: Exchange, code: str, *, retry_after: str) -> None:
        loading = {"phase": self.phase, "progress": self.progress, "eta_s": 30.0}
        error = {"message": "The model is loading.", "type": "server_error", "param": None, "code": code}
        await exchange.answer(503, {"error": error, "loading": loading}, retry_after=retry_after)


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT, **headers: str) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(PATH, json=body, headers=headers)


async def test_a_client_that_nobody_else_can_answer_hears_how_far_the_load_is(lab: Any) -> None:
    gateway, (fake,) = await lab(Cold())
    for progress in (0.25, 0.5, 0.75):  # also while the endpoint's Retry-After runs
        answer = await ask(gateway)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_loading"
        assert answer.json()["loading"] == {"phase": "loading", "progress": progress, "eta_s": 30.0}
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    fake.behave.finish()
    assert (await ask(gateway)).status_code == 200  # no client is kept away by what was said before
    assert gateway.counted("a") == (0, 0)
    assert gateway.standing("a").last_error is None


async def test_while_it_loads_the_next_endpoint_answers_and_the_breaker_counts_nothing(lab: Any) -> None:
    gateway, (cold, good) = await lab(Cold(), answers(), chat={"breaker": {"failure_threshold": 1}})
    for _ in range(3):
        answer = await ask(gateway)
        assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert len(cold.seen) == 1  # the first request began the load; then it is left alone for as long as it said
    assert len(good.seen) == 3
    assert gateway.counted("a") == (0, 0)
    states = [endpoint["state"] for endpoint in (await gateway.config())["endpoints"]]
    assert states == ["loading", "ready"]


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_waits_is_answered_when_the_model_is_loaded(lab: Any, body: dict[str, Any]) -> None:
    # The wait lengthens the limit for the first content.
    gateway, (fake,) = await lab(Cold(), chat={"timeouts": {"first_token_s": 1.0}})
    asked = asyncio.create_task(ask(gateway, body, prefer="wait=60"))
    await until(lambda: any("prefer" in seen.headers for seen in fake.seen))
    await asyncio.sleep(1.5)
    assert not asked.done()
    fake.behave.finish()
    answer = await asked
    assert answer.status_code == 200
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    assert body is CHAT or words_of(answer.text) == ["w0", "w1", "w2"]
    assert gateway.counted("a") == (0, 0)


async def test_who_waits_joins_a_load_that_others_have_begun(lab: Any) -> None:
    gateway, (fake,) = await lab(Cold())
    assert (await ask(gateway)).status_code == 503
    waiting = [asyncio.create_task(ask(gateway, prefer="wait=60")) for _ in range(3)]
    await until(lambda: sum("prefer" in seen.headers for seen in fake.seen) == 3)
    fake.behave.finish()
    assert [(await answer).status_code for answer in waiting] == [200, 200, 200]
    assert gateway.standing("a").busy_until == 0.0  # the others need not wait for as long as it had said


async def test_who_comes_after_a_load_is_answered_by_it_and_not_by_the_next(lab: Any) -> None:
    gateway, (fake, _) = await lab(Cold(), answers())
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    fake.behave.finish()
    assert (await ask(gateway, {**CHAT, "model": "model-a"})).status_code == 200
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_nobody_waits_where_another_endpoint_can_answer(lab: Any) -> None:
    gateway, (cold, _) = await lab(Cold(), answers())
    answer = await ask(gateway, prefer="wait=60")
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert [("prefer" in seen.headers) for seen in cold.seen] == [False]


async def test_a_wait_that_is_too_short_ends_with_how_far_the_load_is(lab: Any) -> None:
    async def slow(exchange: Exchange) -> None:
        loading = {"phase": "loading", "progress": 0.1, "eta_s": 90.0}
        await exchange.answer(503, {"error": {"message": "loading"}, "loading": loading}, retry_after="60")

    gateway, (fake,) = await lab(slow)
    answer = await ask(gateway, prefer="wait=60")
    assert (answer.status_code, answer.json()["loading"]["progress"]) == (503, 0.1)
    first, second = [seen.headers.get("prefer") for seen in fake.seen]
    assert first is None
    assert 1 <= int(second.removeprefix("wait=")) < 60, "what is left of it"


@pytest.mark.parametrize("chat", [{}, {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1}}])
async def test_why_a_load_failed_is_told_to_all_who_ask(lab: Any, chat: dict[str, Any]) -> None:
    message = "The model could not be brought into memory: no room in /srv/models/m today. Next try in 200 s."
    error = {"message": message, "type": "server_error", "param": None, "code": "model_failed"}
    gateway, (fake,) = await lab(refuses(503, {"error": error}, retry_after="200"), chat=chat)
    for _ in range(2):
        answer = await ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
        said = answer.json()["error"]["message"]
        assert "a: model failed" in said
        assert "no room in [path] today. Next try in 200 s." in said
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(fake.seen) == 2
    assert gateway.counted("a") == (0, 0)


async def test_a_failed_load_is_left_alone_while_another_endpoint_answers(lab: Any) -> None:
    error = {"message": "no memory while loading", "type": "server_error", "param": None, "code": "model_failed"}
    gateway, (fake, _) = await lab(refuses(503, {"error": error}, retry_after="200"), answers())
    for _ in range(3):
        assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert len(fake.seen) == 1


async def test_a_cold_endpoint_whose_breaker_opened_comes_back_by_a_request(lab: Any) -> None:
    breaker = {"failure_threshold": 1, "reset_timeout_s": 0.1, "max_reset_timeout_s": 0.1}
    gateway, (fake, _) = await lab(refuses(500), answers(), chat={"breaker": breaker})
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert not isinstance(gateway.standing("a").breaker, Closed)
    cold = fake.behave = Cold(1)  # its worker was started anew

    async def is_waking() -> bool:
        assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
        return cold.phase == "loading"

    await until(is_waking, what="a client's request is its trial")
    cold.finish()

    async def is_back() -> bool:
        return (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"

    await until(is_back, what="it answers again")
    assert isinstance(gateway.standing("a").breaker, Closed)


async def test_what_a_load_lacks_is_told(lab: Any) -> None:
    message = "'big' needs 40 GiB and cannot be loaded now: of the 64 GiB 'coder' 30 GiB (in use) is held."
    error = {"message": message, "type": "server_error", "param": None, "code": "no_memory"}
    loading = {"phase": "cold", "progress": None, "eta_s": None}
    gateway, _ = await lab(refuses(503, {"error": error, "loading": loading}, retry_after="5"))
    answer = await ask(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_memory")
    assert message in answer.json()["error"]["message"]
    assert answer.json()["loading"]["phase"] == "cold"


async def test_probes_wake_no_model_and_hide_it_from_nobody(lab: Any) -> None:
    gateway, (fake, _) = await lab(Cold(1), answers(), chat={"health_check": {"interval_s": 0.05}})
    await until(lambda: sum(seen.headers.get("x-orchestrate-probe") == "1" for seen in fake.seen) >= 3)
    assert fake.behave.phase == "cold"
    (report, _) = (await gateway.config())["endpoints"]
    assert (report["state"], report["probe"]["outcome"], report["last_error"]) == ("cold", "cold", None)
    assert gateway.counted("a") == (0, 0)
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert fake.behave.phase == "loading"  # the request has asked the cold one first
    fake.behave.finish()
    await until(lambda: gateway.standing("a").asleep == "", what="a probe finds it loaded")


async def test_the_fallback_answers_while_a_service_loads(tmp_path: Path) -> None:
    document = service_document("main", extra=("spare",), chat={"fallback": {"local": "spare"}})
    document["services"]["main"] |= {"start": "on-demand", "idle_stop_s": 0.2}
    async with FakeUpstream(Cold(retry_after_s=1)) as main, FakeUpstream() as spare:
        async with local_gateway(tmp_path, document) as gateway:
            await gateway.publish(instance("main", main.url), instance("spare", spare.url))
            assert (await gateway.config())["endpoints"][0]["state"] == "cold"
            answer = await ask(gateway)
            assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "spare")
            main.behave.finish()

            async def main_answers() -> bool:
                return (await ask(gateway)).headers["x-orchestrate-endpoint"] == "main"

            await until(main_answers, what="the service that was asked for answers itself")
            assert gateway.standing("main").asleep == ""

            async def is_cold() -> bool:
                state = (await gateway.config())["endpoints"][0]["state"]
                return bool(state == "cold")

            await until(is_cold, what="nobody has used it for as long as it stays")


async def test_a_stream_that_waits_in_vain_gets_a_status(lab: Any) -> None:
    async def never(exchange: Exchange) -> None:
        if "prefer" in exchange.seen.headers:
            await asyncio.sleep(0.3)
        loading = {"phase": "loading", "progress": 0.5, "eta_s": 9.0}
        await exchange.answer(503, {"error": {"message": "loading"}, "loading": loading}, retry_after="9")

    gateway, _ = await lab(never)
    answer = await ask(gateway, STREAM, prefer="wait=30")
    assert answer.status_code == 503
    assert json.loads(answer.text)["loading"]["progress"] == 0.5
