"""F26, F31: edits under load, one after the other, and a gateway that is killed and started again."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import FakeUpstream, answers
from tests.runtime.gateway.harness import CHAT, STREAM, Conf, GatewayProcess, stack_document, until, words_of

CHAT_PATH = "/v1/chat/completions"
EDITS = 200
STREAMS = 6
WORDS = 15
SPARE_DESCRIPTORS = 24
"""Connections to endpoints that are kept for a while, and those of clients that have just left."""
GROWTH_MIB = 24.0
"""What the allocator may keep of the load; two hundred tables would be more."""


def edited(document: dict[str, Any], number: int, rng: random.Random) -> dict[str, Any]:
    """Return another valid stack with the same first endpoint."""
    chat = {
        **document["roles"]["chat"],
        "breaker": {"failure_threshold": rng.randint(1, 9)},
        "limits": {"attempts": rng.randint(1, 4), "max_in_flight": rng.randint(50, 99)},
        "timeouts": {"idle_s": rng.randint(30, 60)},
    }
    if rng.random() < 0.5:
        first = next(iter(chat["endpoints"]))
        chat["endpoints"] = {first: {**chat["endpoints"][first], "weight": rng.randint(1, 9)}}
    return {**document, "roles": {"chat": chat}, "aliases": {f"edit-{number}": ["chat"]}}


def descriptors(gateway: GatewayProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{gateway.process.pid}/fd").iterdir())


def memory_mib(gateway: GatewayProcess) -> float:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_f26_two_hundred_edits_under_load_lose_no_request_and_leave_nothing(tmp_path: Path) -> None:
    conf, rng = Conf(tmp_path), random.Random(26)
    counts = {"streamed": 0, "answered": 0}
    async with FakeUpstream(answers(words=WORDS, pause_s=0.03)) as first, FakeUpstream(answers(words=WORDS)) as second:
        document = stack_document({"a": first.url, "b": second.url})
        conf.write_stack(document)
        gateway = await GatewayProcess(conf).start()
        is_editing = True

        async def stream(client: httpx.AsyncClient) -> None:
            while is_editing:
                answer = await client.post(CHAT_PATH, json=STREAM)
                assert answer.status_code == 200, answer.text
                assert words_of(answer.text) == [f"w{index}" for index in range(WORDS)]
                assert answer.text.endswith("data: [DONE]\n\n")
                counts["streamed"] += 1

        async def ask(client: httpx.AsyncClient) -> None:
            while is_editing:
                answer = await client.post(CHAT_PATH, json=CHAT)
                assert answer.status_code == 200, answer.text
                counts["answered"] += 1
                await asyncio.sleep(0.02)

        async def is_served(client: httpx.AsyncClient, name: str) -> bool:
            return name in {model["id"] for model in (await client.get("/v1/models")).json()["data"]}

        try:
            async with gateway.client() as client:
                await until(gateway.config, what="the gateway answers")
                before: tuple[int, float] = (0, 0.0)
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(STREAMS):
                        tasks.create_task(stream(client))
                    tasks.create_task(ask(client))
                    for number in range(EDITS):
                        conf.write_stack(edited(document, number, rng))
                        await until(lambda name=f"edit-{number}": is_served(client, name), what=f"edit {number}")
                        if number == EDITS // 10:
                            before = descriptors(gateway), memory_mib(gateway)
                    after = descriptors(gateway), memory_mib(gateway)
                    is_editing = False
                assert after[0] <= before[0] + SPARE_DESCRIPTORS
                assert after[1] <= before[1] + GROWTH_MIB
                config = await gateway.config()
                # A file that is read while it is written may count as a bad one; nobody notices.
                assert config["is_current"]
                assert config["reloads"] >= EDITS
                assert [endpoint["state"] for endpoint in config["endpoints"]] == ["ready"] * len(config["endpoints"])
                assert sum(endpoint["in_flight"] for endpoint in config["endpoints"]) == 0
        finally:
            await gateway.stop()
    assert counts["streamed"] >= STREAMS and counts["answered"]


async def test_f31_a_gateway_that_was_killed_serves_again_as_soon_as_it_is_started(tmp_path: Path) -> None:
    conf = Conf(tmp_path)
    async with FakeUpstream() as fake:
        conf.write_stack(stack_document({"a": fake.url}))
        gateway = await GatewayProcess(conf).start()
        await gateway.stop()
        assert gateway.process.returncode == -9
        again = await GatewayProcess(conf, gateway.port).start()
        try:
            async with again.client() as client:
                answer = await client.post(CHAT_PATH, json=CHAT)
                assert answer.status_code == 200, "the first request after a start finds its routes"
        finally:
            await again.stop()
