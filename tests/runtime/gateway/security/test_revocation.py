"""Keys that come and go while the gateway serves."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from orchestrator.keys import KeysAt
from runtime.gateway.security.key_files import KeySource
from tests.fakes.upstream import FakeUpstream, answers, stalls
from tests.runtime.gateway.harness import CHAT, STREAM, Conf, GatewayProcess, gateway_process, stack_document, until
from tests.runtime.gateway.security.conftest import KEYED, Keyed

PATH = "/v1/chat/completions"


async def test_a_revoked_key_ends_its_open_stream_with_a_word_and_no_others(keyed: Keyed) -> None:
    keyed.fake.behave = answers(words=100_000, pause_s=0.01)
    stays, goes = keyed.bearer("admin"), keyed.bearer("inference")
    async with keyed.gateway.client() as client:
        async with (
            client.stream("POST", PATH, json=STREAM, headers=goes) as gone,
            client.stream("POST", PATH, json=STREAM, headers=stays) as kept,
        ):
            lines, others = gone.aiter_lines(), kept.aiter_lines()
            assert "data:" in await anext(lines)
            keyed.keys.revoke("inference")
            await keyed.gateway.reload()
            rest = [line async for line in lines if line]
            last = json.loads(rest[-1].removeprefix("data: "))
            assert (last["error"]["type"], last["error"]["code"]) == ("authentication_error", "revoked_api_key")
            assert "[DONE]" not in "".join(rest)
            await asyncio.wait_for(keyed.fake.seen[0].was_cut.wait(), 30)
            assert "data:" in await anext(others)
            assert not keyed.fake.seen[1].was_cut.is_set()
        refused = await client.post(PATH, json=CHAT, headers=goes)
        assert refused.json()["error"]["code"] == "invalid_api_key"
    await until(lambda: keyed.gateway.in_flight == 0)


async def test_a_revoked_key_ends_what_was_not_answered_yet_with_401(keyed: Keyed) -> None:
    keyed.fake.behave = stalls
    async with keyed.gateway.client() as client:
        for body in (CHAT, STREAM):
            key = keyed.keys.add(("inference",), name="soon")
            await keyed.gateway.reload()
            headers, seen = {"x-api-key": key.text}, len(keyed.fake.seen)
            asking = asyncio.create_task(client.post(PATH, json=body, headers=headers))
            await until(lambda seen=seen: len(keyed.fake.seen) > seen)
            keyed.keys.revoke("soon")
            await keyed.gateway.reload()
            answer = await asking
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "revoked_api_key")
            await asyncio.wait_for(keyed.fake.seen[-1].was_cut.wait(), 30)
        # The connection that was told so goes on.
        assert (await client.get("/v1/models", headers=keyed.bearer("inference"))).status_code == 200
    await until(lambda: keyed.gateway.in_flight == 0)


async def test_a_key_that_expires_ends_its_open_stream(keyed: Keyed) -> None:
    keyed.fake.behave = answers(words=100_000, pause_s=0.01)
    key = keyed.keys.add(("inference",), life_s=3.0)
    await keyed.gateway.reload()
    headers = {"x-api-key": key.text}
    async with keyed.gateway.client() as client:
        async with client.stream("POST", PATH, json=STREAM, headers=headers) as answer:
            text = (await answer.aread()).decode()
        assert "expired_api_key" in text
        refused = await client.post(PATH, json=CHAT, headers=headers)
        assert refused.json()["error"]["code"] == "expired_api_key"


async def test_a_client_that_leaves_is_no_revocation(keyed: Keyed) -> None:
    keyed.fake.behave = stalls
    guard: Any = keyed.gateway.gateway.services.guard
    async with keyed.gateway.client() as client:
        asking = asyncio.create_task(client.post(PATH, json=CHAT, headers=keyed.bearer("inference")))
        await until(lambda: keyed.fake.seen)
        asking.cancel()
        await asyncio.wait_for(keyed.fake.seen[0].was_cut.wait(), 30)
    await until(lambda: not guard._stays)


async def test_a_broken_keys_file_keeps_the_last_good_keys_and_a_missing_one_lets_nobody_in(keyed: Keyed) -> None:
    good = keyed.bearer("inference")
    path = keyed.keys.path
    text = path.read_text()

    async def status() -> tuple[int, str]:
        async with keyed.gateway.client() as client:
            config = (await client.get("/admin/config", headers={"x-api-key": str(keyed.gateway.token)})).json()
            answer = await client.get("/v1/models", headers=good)
            return answer.status_code, " ".join(str(problem) for problem in config["problems"])

    secret = keyed.made["inference"].text
    for broken in (
        text + "nonsense: [",
        text + "keys: {}\n",
        f"keys:\n  abcd: {{sha256: {secret}, scopes: [admin]}}\n",
    ):
        path.write_text(broken)
        await keyed.gateway.reload()
        code, problems = await status()
        assert code == 200
        assert "keys.yaml" in problems
        assert secret not in problems
    path.chmod(0o606)
    path.write_text(text)
    await keyed.gateway.reload()
    assert "chmod o-w" in (await status())[1]
    path.unlink()
    await keyed.gateway.reload()
    assert await status() == (401, "")
    path.write_text(text)
    await keyed.gateway.reload()
    assert await status() == (200, "")


async def test_keys_that_lead_out_of_the_configuration_are_not_read(keyed: Keyed, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "keys.yaml"
    keyed.keys.path.rename(elsewhere)
    keyed.keys.path.symlink_to(elsewhere)
    other = keyed.keys.path.parent / "other"
    other.mkdir()
    source = KeySource(keyed.keys.path.parent, "127.0.0.1", None, None)
    stack = keyed.gateway.compose(other, "lab", ())
    rules, problems = source.read(stack)
    assert not list(rules.keyring)
    assert "leads out" in problems[0].message


async def test_keys_that_cannot_be_read_in_any_way_leave_the_last_ones_and_the_routes(keyed: Keyed) -> None:
    source = KeySource(keyed.keys.path.parent, "127.0.0.1", None, None)
    stack = keyed.gateway.compose(keyed.keys.path.parent, "lab", ())
    before = list(source.read(stack)[0].keyring)
    keyed.keys.path.unlink()
    keyed.keys.path.symlink_to(keyed.keys.path)
    rules, problems = source.read(stack)
    assert before and list(rules.keyring) == before
    assert "cannot be read" in problems[0].message


async def test_a_process_takes_keys_over_within_five_seconds(conf: Conf, fake: FakeUpstream) -> None:
    conf.write_stack(stack_document({"a": fake.url}, gateway=KEYED))
    conf.write_routes()
    keys = KeysAt(conf.root, "keys.yaml")
    async with gateway_process(conf) as gateway, gateway.client() as client:
        assert (await client.get("/v1/models")).status_code == 401
        key = keys.add(("inference",))
        headers = {"x-api-key": key.text}

        async def is_let_in() -> bool:
            return (await client.get("/v1/models", headers=headers)).status_code == 200

        await until(is_let_in, what="the new key")
        fake.behave = answers(words=100_000, pause_s=0.01)
        async with client.stream("POST", PATH, json=STREAM, headers=headers) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            began = time.monotonic()
            keys.revoke(key.id)
            text = "".join([line async for line in lines])
        assert "revoked_api_key" in text
        assert time.monotonic() - began < 30, "a generous deadline; 5 s are promised"
        assert key.text not in gateway.log


@pytest.mark.slow
async def test_a_process_refuses_an_address_of_the_network_without_keys(conf: Conf, fake: FakeUpstream) -> None:
    conf.write_routes()
    for gateway_keys, is_served in (({}, False), ({"auth": "none", "exposed": "accepted"}, True), (KEYED, True)):
        conf.write_stack(stack_document({"a": fake.url}, gateway=gateway_keys))
        gateway = GatewayProcess(conf, bind="0.0.0.0")
        await gateway.start(is_awaited=is_served)
        try:
            if is_served:
                async with gateway.client() as client:
                    assert (await client.get("/health")).status_code == 200
            else:
                assert await asyncio.wait_for(gateway.process.wait(), 60) == 1
                assert "not listening" in gateway.log
                assert "ask for no keys" in gateway.log
        finally:
            await gateway.stop()


@pytest.mark.slow
async def test_a_gateway_elsewhere_follows_the_keys_that_are_brought_to_it(conf: Conf, fake: FakeUpstream) -> None:
    conf.write_stack(stack_document({"a": fake.url}, gateway=KEYED))
    conf.write_routes()
    brought = KeysAt(conf.routes_path.parent, "keys.yaml")
    own = KeysAt(conf.root, "keys.yaml").add(("inference",))
    async with gateway_process(conf, keys=brought.path) as gateway, gateway.client() as client:

        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers={"x-api-key": key})).status_code

        key = brought.add(("inference",))

        async def is_let_in() -> bool:
            return await status(key.text) == 200

        await until(is_let_in, what="the new key")
        assert await status(own.text) == 401
        brought.revoke(key.id)

        async def is_refused() -> bool:
            return await status(key.text) == 401

        await until(is_refused, what="its end")


@pytest.mark.slow
async def test_keys_that_are_taken_from_the_files_stay_asked_for_while_the_address_is_open(
    conf: Conf, fake: FakeUpstream
) -> None:
    keys = KeysAt(conf.root, "keys.yaml")
    key = keys.add(("admin",))
    headers = {"x-api-key": key.text}
    conf.write_stack(stack_document({"a": fake.url}, gateway=KEYED))
    conf.write_routes()
    async with gateway_process(conf, bind="0.0.0.0") as gateway, gateway.client() as client:
        conf.write_stack(stack_document({"a": fake.url}))  # good for loopback, which is where it is not

        async def is_told() -> bool:
            config = (await client.get("/admin/config", headers=headers)).json()
            return "ask for no keys" in str(config["problems"])

        await until(is_told, what="the problem")
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
