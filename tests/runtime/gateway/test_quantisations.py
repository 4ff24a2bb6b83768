"""Several quantisations of one model, side by side on one server: each an endpoint of its own."""

from __future__ import annotations

from pathlib import Path

import httpx

from runtime.gateway.routing.breaker import Closed, Open
from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses
from tests.runtime.gateway.harness import CHAT, LocalGateway, local_gateway, stack_document

SMALL, LARGE = "qwen3:8b-q4_K_M", "qwen3:8b-q8_0"


async def only_large(exchange: Exchange) -> None:
    await (answers("large") if exchange.seen.document["model"] == LARGE else refuses(500))(exchange)


async def ask(gateway: LocalGateway, model: str) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post("/v1/chat/completions", json={**CHAT, "model": model})


async def test_each_has_a_breaker_and_a_name_of_its_own(tmp_path: Path) -> None:
    async with FakeUpstream(only_large) as fake:
        document = stack_document({"pc": fake.url})
        document["helpers"]["pc"]["models"] = {SMALL: {}, LARGE: {}}
        document["roles"]["chat"] = {
            "endpoints": {
                "small": {"helper": "pc", "model": SMALL, "priority": 1},
                "large": {"helper": "pc", "model": LARGE, "priority": 2},
            }
        }
        document["aliases"] = {"qwen3:8b": [SMALL, LARGE]}
        async with local_gateway(tmp_path, document) as gateway:
            gateway.gateway.prober.close()  # only requests say here who is well
            for attempts in ("2", "2", "2", "1"):
                answer = await ask(gateway, "chat")
                marks = answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]
                assert (answer.status_code, marks) == (200, ("large", attempts))
            states = {identity.model: one.breaker for identity, one in gateway.gateway.services.pool.standings.items()}
            assert isinstance(states[SMALL], Open) and isinstance(states[LARGE], Closed)
            assert {name: (await ask(gateway, name)).status_code for name in (SMALL, LARGE)} == {SMALL: 503, LARGE: 200}
            assert (await ask(gateway, "qwen3:8b")).headers["x-orchestrate-endpoint"] == "large"
            fake.behave = answers()
            assert (await ask(gateway, LARGE)).status_code == 200
        assert {seen.document["model"] for seen in fake.seen if "x-orchestrate-probe" not in seen.headers} == {
            SMALL,
            LARGE,
        }
