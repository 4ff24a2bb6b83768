"""F26, F27, F31: edits under load, files that are no good, and a gateway that is stopped, killed and started again."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.upstream import FakeUpstream, answers
from tests.runtime.gateway.harness import (
    CHAT,
    STREAM,
    Conf,
    GatewayProcess,
    Running,
    stack_document,
    until,
    words_of,
)

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

        async def is_quiet() -> dict[str, Any] | None:
            config = await gateway.config()
            in_flight = sum(endpoint["in_flight"] for endpoint in config["endpoints"])
            return config if config["is_current"] and not in_flight else None

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
                # A file that is read while it is written may count as a bad one; nobody notices.
                config = await until(is_quiet, what="the last edit is in force and nothing in flight")
                assert config["reloads"] >= EDITS
                assert [endpoint["state"] for endpoint in config["endpoints"]] == ["ready"] * len(config["endpoints"])
        finally:
            await gateway.stop()
    assert counts["streamed"] >= STREAMS and counts["answered"]


async def test_f27_a_broken_file_keeps_the_last_good_table_shows_itself_and_recovers(running: Running) -> None:
    conf, gateway, _, document = running
    before = await gateway.config()
    assert before["is_current"] is True

    async def is_broken() -> Any:
        config = await gateway.config()
        return config if not config["is_current"] else None

    for broken in (
        "",
        "stack: [",
        "# @package _global_\nstack: lab\nroels: {}\n",
        conf.stack_path.read_text()[:200],
        conf.stack_path.read_text().replace('"chat"', '"chat": 1, "chat"'),
    ):
        conf.stack_path.write_text(broken)
        config = await until(is_broken)
        assert config["problems"] and "lab.yaml" in config["problems"][0]["file"]
        assert config["routing_digest"] == before["routing_digest"]
        assert await gateway.ask("chat") == 200
        async with gateway.client() as client:
            assert "orchestrate_config_current 0.0" in (await client.get("/metrics")).text
            assert (await client.get("/ready")).json()["config_current"] is False
        conf.write_stack(document)
        await until(gateway.is_current)
    assert (await gateway.config())["problems"] == []
    assert "configuration not taken over" in gateway.log


async def test_f27_replaced_symlinked_and_removed_files_are_followed(running: Running) -> None:
    conf, gateway, _, document = running

    def saved(name: str, path: Path) -> None:
        path.write_text("# @package _global_\n" + json.dumps({**document, "aliases": {name: ["chat"]}}))

    beside = conf.stack_path.with_name(".lab.yaml.tmp")
    saved("renamed", beside)
    beside.replace(conf.stack_path)
    await gateway.answers_soon("renamed")

    elsewhere = conf.root / "versions" / "lab.v7"
    elsewhere.parent.mkdir()
    saved("linked", elsewhere)
    conf.stack_path.unlink()
    conf.stack_path.symlink_to(elsewhere)
    await gateway.answers_soon("linked")
    saved("behind-the-link", elsewhere)
    await gateway.answers_soon("behind-the-link")

    conf.stack_path.unlink()
    await until(gateway.is_behind)
    assert await gateway.ask("behind-the-link") == 200

    shutil.rmtree(conf.root)
    assert await gateway.ask("behind-the-link") == 200
    conf.stack_path.parent.mkdir(parents=True)
    saved("born-again", conf.stack_path)
    await gateway.answers_soon("born-again")
    saved("and-watched", conf.stack_path)
    await gateway.answers_soon("and-watched")


async def test_f31_term_lets_twenty_streams_finish_and_ends_with_0(running: Running) -> None:
    _, gateway, fake, _ = running
    fake.behave = answers(words=40, pause_s=0.03)
    async with gateway.client() as client:
        streams = [asyncio.create_task(client.post(CHAT_PATH, json=STREAM)) for _ in range(20)]
        await until(lambda: len(fake.seen) == 20)
        gateway.terminate()

        async def is_closed() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            except OSError:
                return True
            writer.close()
            return False

        await until(is_closed)
        for answer in await asyncio.gather(*streams):
            assert words_of(answer.text) == [f"w{index}" for index in range(40)]
            assert answer.text.endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(gateway.process.wait(), 60) == 0
    assert "Traceback" not in gateway.log


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
