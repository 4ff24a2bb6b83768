"""Hot reload: a real gateway process that watches real files."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.routing.breaker import Closed, Open
from schemas.stack import Helper, HelperModel, Stack
from tests.fakes.upstream import FakeUpstream, answers, refuses
from tests.runtime.gateway.harness import (
    CHAT,
    DEADLINE_S,
    STREAM,
    Conf,
    GatewayProcess,
    Running,
    gateway_process,
    local_gateway,
    service_document,
    stack_document,
    until,
    words_of,
)
from tests.runtime.gateway.harness import instance as entry

CHAT_PATH = "/v1/chat/completions"


async def settled(gateway: GatewayProcess) -> None:
    """Wait until the gateway has read the files once more after its start, which shows that it watches them."""

    async def has_reloaded() -> bool:
        async with gateway.client() as client:
            text = (await client.get("/metrics")).text
        return 'orchestrate_config_reloads_total{result="good"} 1.0' not in text

    await until(has_reloaded)


async def test_an_alias_answers_soon_after_the_file_is_saved_and_streams_go_on(running: Running) -> None:
    conf, gateway, fake, document = running
    await settled(gateway)
    fake.behave = answers(words=60, pause_s=0.02)
    async with gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        pieces = answer.aiter_text()
        text = await anext(pieces)
        fake.behave = answers()
        conf.write_stack({**document, "aliases": {"new": ["chat"]}})
        took_s = await gateway.answers_soon("new")
        assert took_s < 20.0, "half a second on an idle machine; tests share theirs"
        text += "".join([piece async for piece in pieces])
    assert words_of(text) == [f"w{index}" for index in range(60)]
    assert text.endswith("data: [DONE]\n\n")
    assert (await gateway.config())["pid"] == gateway.process.pid


SERVICES = {
    "stack": "lab",
    "nodes": {"here": {"reach": "local"}},
    "models": {"tiny": {"source": "path:/models/tiny"}},
    "services": {"chat": {"model": "tiny", "nodes": ["here"]}},
    "roles": {"chat": {"endpoints": {"main": {"service": "chat"}}}},
    "gateway": {"node": "here"},
}


def instance(fake: FakeUpstream, state: str = "ready", replica: int = 0) -> dict[str, str]:
    unit = f"chat-{replica}.0@abcdefabcdef"
    return {"unit": unit, "node": "here", "service": "chat", "model": "tiny", "url": fake.url, "state": state}


async def test_a_worker_that_comes_back_at_the_same_address_is_used_at_once(tmp_path: Path) -> None:
    conf = Conf(tmp_path)
    conf.write_stack(SERVICES)
    async with FakeUpstream() as fake:
        conf.write_routes(instances=[instance(fake)])
        async with gateway_process(conf) as gateway:
            await settled(gateway)
            fake.behave = refuses(500)
            for _ in range(3):
                assert await gateway.ask("chat") == 503
            fake.behave = answers()
            conf.write_stack({**SERVICES, "aliases": {"new": ["chat"]}})
            await gateway.answers_soon("new", 503)
            assert len(fake.seen) == 3, "an edited stack says nothing about the worker"
            # An apply that starts the worker again writes the same text, once the worker has answered.
            conf.write_routes(instances=[instance(fake)])
            await gateway.answers_soon("chat")
            (endpoint,) = (await gateway.config())["endpoints"]
            assert endpoint["state"] == "ready"


async def test_what_happens_to_one_service_closes_no_breaker_of_another(tmp_path: Path) -> None:
    async with FakeUpstream() as bad, FakeUpstream() as old, FakeUpstream() as new:
        async with local_gateway(tmp_path, service_document("a", "b")) as gateway:
            await gateway.publish(entry("a", bad.url), entry("b", old.url))
            bad.behave = refuses(500)
            async with gateway.client() as client:
                for _ in range(3):
                    assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 200
            assert isinstance(gateway.standing("a").breaker, Open)
            await gateway.publish(entry("a", bad.url), entry("b", old.url, "replacing"))
            await gateway.publish(entry("a", bad.url), entry("b", new.url))
            assert isinstance(gateway.standing("a").breaker, Open)
            await gateway.publish(entry("a", bad.url), entry("b", new.url))
            assert isinstance(gateway.standing("a").breaker, Closed), "nothing else changed: it was started again"


async def test_routes_bring_instances_and_take_them_away(tmp_path: Path) -> None:
    conf = Conf(tmp_path)
    async with FakeUpstream() as first, FakeUpstream() as second:
        conf.write_stack(SERVICES)
        async with gateway_process(conf, ORCHESTRATE_WORKER_TOKEN="token-of-workers") as gateway:
            async with gateway.client() as client:
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/ready")).status_code == 503
                answer = await client.post(CHAT_PATH, json=CHAT)
                assert answer.status_code == 503
                assert "not running" in answer.text
            conf.write_routes(instances=[instance(first)])
            await gateway.answers_soon("chat")
            assert first.seen[0].headers["authorization"] == "Bearer token-of-workers"
            assert first.seen[0].document["model"] == "tiny"

            conf.write_routes(generation=2, instances=[instance(first, "draining"), instance(second, replica=1)])
            await until(lambda: _generation(gateway, 2))
            count = len(first.seen)
            assert await gateway.ask("chat") == 200
            assert (len(first.seen), len(second.seen)) == (count, 1)

            conf.write_routes(generation=3, instances=[], overrides=["aliases.extra=[chat]"])
            await gateway.answers_soon("extra", 503)

            conf.routes_path.write_text('{"version": 1, "stack": "lab", "gen')
            await until(gateway.is_behind)
            config = await gateway.config()
            assert config["generation"] == 3
            assert config["problems"][0]["file"].endswith("routes.json")
            conf.write_routes(generation=4, stack="other")
            await until(lambda: _names_stack(gateway))
            conf.write_routes(generation=5, instances=[instance(second)])
            await gateway.answers_soon("chat")
            assert (await gateway.config())["generation"] == 5


async def _generation(gateway: GatewayProcess, generation: int) -> bool:
    return bool((await gateway.config())["generation"] == generation)


async def _names_stack(gateway: GatewayProcess) -> bool:
    return any("'other'" in problem["message"] for problem in (await gateway.config())["problems"])


async def test_a_start_with_bad_files_waits_for_good_ones(tmp_path: Path) -> None:
    conf = Conf(tmp_path)
    conf.stack_path.write_text("roles: [")
    conf.routes_path.write_text("nonsense")
    async with FakeUpstream() as fake, gateway_process(conf) as gateway:
        async with gateway.client() as client:
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/ready")).status_code == 503
            answer = await client.post(CHAT_PATH, json=CHAT)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "configuration_invalid"
            assert "lab.yaml" in answer.text and str(tmp_path) not in answer.text
            assert (await client.get("/v1/models")).status_code == 503
            assert (await client.get("/admin/config")).json()["is_current"] is False
        conf.write_stack(stack_document({"a": fake.url}))
        await gateway.answers_soon("chat")
        conf.routes_path.unlink()
        await until(gateway.is_current)


async def test_a_hundred_edits_under_streaming_load_lose_nothing(running: Running) -> None:
    conf, gateway, fake, document = running
    fake.behave = answers(words=20, pause_s=0.005)
    is_editing = True
    streamed = 0

    async def load() -> None:
        nonlocal streamed
        async with gateway.client() as client:
            while is_editing:
                answer = await client.post(CHAT_PATH, json=STREAM)
                assert answer.status_code == 200
                assert words_of(answer.text) == [f"w{index}" for index in range(20)]
                assert answer.text.endswith("data: [DONE]\n\n")
                streamed += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(load())
        for edit in range(100):
            conf.write_stack({**document, "aliases": {f"edit-{edit}": ["chat"]}})
            await asyncio.sleep(0.02)
        await gateway.answers_soon("edit-99")
        await until(lambda: streamed > 20, what="so many streams have ended well")
        is_editing = False
    config = await gateway.config()
    assert config["is_current"] and config["endpoints"][0]["state"] == "ready"


async def test_whatever_composing_or_building_does_the_last_good_table_stays(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await lab(answers())
    services = gateway.gateway.services
    table = services.live.table

    def explodes(*_: object, **__: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("runtime.gateway.reload.build_table", explodes)
    await gateway.reload({**gateway.document, "aliases": {"new": ["chat"]}})
    assert services.live.table is table
    assert "surprise" in services.live.problems[0].message
    monkeypatch.undo()
    await gateway.reload()
    assert services.live.problems == ()
    assert "new" in services.live.table.routes
    monkeypatch.setattr(services.reloader, "_compose", explodes)
    await gateway.reload()
    assert "RuntimeError: surprise" in services.live.problems[0].message
    async with gateway.client() as client:
        assert (await client.post(CHAT_PATH, json={**CHAT, "model": "new"})).status_code == 200


async def test_files_without_a_table_do_not_hide_that_a_worker_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeUpstream() as first, FakeUpstream() as second:
        async with local_gateway(tmp_path, SERVICES) as gateway:
            await gateway.publish(instance(first))
            services = gateway.gateway.services
            good = Stack.model_validate_json(json.dumps(SERVICES))
            helper = Helper(url="http://box:1", models={"m": HelperModel()}).model_copy(
                update={"url": "http://box:1:2"}
            )
            bad = good.model_copy(update={"helpers": {"box": helper}})
            monkeypatch.setattr(services.reloader, "_compose", lambda *_: bad)
            await gateway.publish(instance(second))
            assert services.live.table.generation == 2
            assert {target.identity.url for target in services.live.table.targets()} == {second.url}
            assert "building the routing table failed" in services.live.problems[0].message
            monkeypatch.undo()
            await gateway.reload()
            assert services.live.problems == ()


async def test_reload_on_demand_answers_with_its_result(running: Running) -> None:
    conf, gateway, _, document = running
    async with gateway.client() as client:
        conf.write_stack({**document, "aliases": {"at-once": ["chat"]}})
        report = (await client.post("/admin/config/reload")).json()
        assert "aliases.at-once" in report["routing"]
        conf.stack_path.write_text("oops: [")
        report = (await client.post("/admin/config/reload")).json()
        assert report["is_current"] is False and report["failed_reloads"] >= 1


async def test_what_is_being_read_is_read_to_its_end_although_who_asked_for_it_leaves(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = await lab(answers())
    services, compose, may_end = gateway.gateway.services, gateway.compose, threading.Event()
    composing: list[int] = []

    def composes_slowly(*arguments: Any) -> Stack:
        composing.append(len(composing))
        assert may_end.wait(DEADLINE_S)
        return compose(*arguments)

    monkeypatch.setattr(services.reloader, "_compose", composes_slowly)
    asked = asyncio.create_task(gateway.reload({**gateway.document, "aliases": {"new": ["chat"]}}))
    try:
        await until(lambda: composing, what="the files are read")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    finally:
        may_end.set()
    await until(lambda: "new" in services.live.table.routes, what="what was read is served")
    assert composing == [0]


async def test_an_unrelated_edit_keeps_an_open_breaker_and_a_new_url_starts_fresh(running: Running) -> None:
    conf, gateway, fake, document = running
    fake.behave = refuses(500)
    for _ in range(3):
        await gateway.ask("chat")
    seen = len(fake.seen)
    conf.write_stack({**document, "aliases": {"other": ["chat"]}})
    await gateway.answers_soon("other", 503)
    assert len(fake.seen) == seen == 3
    async with FakeUpstream() as fresh:
        conf.write_stack(stack_document({"a": fresh.url}))
        await gateway.answers_soon("chat")
