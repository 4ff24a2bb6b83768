"""A role's ladder: down when what is above is lost, up again when it returns, and its fallbacks below it all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed, Open
from tests.fakes.upstream import (
    ROLE,
    Behaviour,
    FakeUpstream,
    answers,
    refuses,
    stalls,
    streams,
    word,
)
from tests.ports import free_port
from tests.runtime.gateway.harness import (
    CHAT,
    ROOT,
    STREAM,
    LocalGateway,
    instance,
    local_gateway,
    service_document,
    until,
    words_of,
)

CHAT_PATH = "/v1/chat/completions"
QUICK = {"breaker": {"failure_threshold": 2, "reset_timeout_s": 0.3, "minimum_calls": 1000}}


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT, model: str = "chat") -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json={**body, "model": model})


async def who(gateway: LocalGateway) -> str:
    """Return the endpoint that answers."""
    answer = await ask(gateway)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-orchestrate-endpoint"])


def requests(fake: FakeUpstream) -> int:
    """Return how many requests of clients a fake has seen."""
    return sum(seen.headers["x-request-id"] != "probe" for seen in fake.seen)


async def serving(gateway: LocalGateway, role: str = "chat") -> list[str]:
    report = await gateway.config()
    return [one["name"] for one in report["endpoints"] if one["role"] == role and one["is_serving"]]


class Ladder:
    """A gateway whose role `chat` has a group, a single node and a helper, each a fake of its own."""

    def __init__(self, gateway: LocalGateway, group: FakeUpstream, single: FakeUpstream, helper: FakeUpstream) -> None:
        self.gateway = gateway
        self.group, self.single, self.helper = group, single, helper

    async def publish(self, *names: str) -> None:
        urls = {"group": self.group.url, "single": self.single.url}
        await self.gateway.publish(*(instance(name, urls[name]) for name in names))


@pytest.fixture
async def ladder(tmp_path: Path) -> AsyncIterator[Ladder]:
    async with AsyncExitStack() as stack:
        group, single, helper = [await stack.enter_async_context(FakeUpstream()) for _ in range(3)]
        document = service_document("group", "single", chat=QUICK)
        document["helpers"] = {"helper": {"url": helper.url, "models": {"model-helper": {}}}}
        document["roles"]["chat"]["endpoints"]["helper"] = {"helper": "helper", "model": "model-helper", "priority": 3}
        gateway = await stack.enter_async_context(local_gateway(tmp_path, document))
        found = Ladder(gateway, group, single, helper)
        await found.publish("group", "single")
        yield found


async def test_the_ladder_is_walked_down_as_rungs_are_lost_and_up_as_they_return(ladder: Ladder) -> None:
    gateway = ladder.gateway
    assert await who(gateway) == "group"
    assert await serving(gateway) == ["group"]
    await ladder.group.stop()
    for _ in range(2):
        assert await who(gateway) == "single"
    await until(lambda: isinstance(gateway.standing("group").breaker, Open), what="it is open, between its probes")
    assert (await ask(gateway)).headers["x-orchestrate-attempts"] == "1", "a dead rung costs nothing more"
    assert await serving(gateway) == ["single"]
    await ladder.single.stop()
    for _ in range(3):
        assert await who(gateway) == "helper"
    assert await serving(gateway) == ["helper"]
    # At the same address: a probe finds it, and no client's request is risked for that.
    before = requests(ladder.helper)
    await ladder.single.start(ladder.single.port)
    await until(lambda: isinstance(gateway.standing("single").breaker, Closed), what="the probe closes the breaker")
    assert await who(gateway) == "single"
    assert requests(ladder.helper) == before
    # At another address, as after an apply: a new endpoint with a fresh breaker.
    async with FakeUpstream() as fresh:
        ladder.group = fresh
        await ladder.publish("group", "single")
        assert await who(gateway) == "group"
        assert await serving(gateway) == ["group"]


async def test_a_rung_that_is_withdrawn_from_the_routes_is_walked_past_without_an_attempt(ladder: Ladder) -> None:
    await ladder.publish("single")
    answer = await ask(ladder.gateway)
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("single", "1")
    await ladder.publish()
    assert await who(ladder.gateway) == "helper"
    await ladder.publish("group", "single")
    assert await who(ladder.gateway) == "group"


async def test_clients_are_not_risked_while_a_rung_is_down_for_long(ladder: Ladder) -> None:
    gateway = ladder.gateway
    ladder.group.behave = refuses(500)
    for _ in range(2):
        await ask(gateway)
    assert requests(ladder.group) == 2
    async with asyncio.timeout(60):
        while len(ladder.group.seen) < 5:
            assert await who(gateway) == "single"
    assert requests(ladder.group) == 2, "the trials were probes"


async def test_a_lost_rank_before_content_is_invisible_and_in_mid_stream_honest(ladder: Ladder) -> None:
    """A rank that is killed ends the group's process: its connections are cut, with or without a word."""
    gateway = ladder.gateway
    lost: list[Behaviour] = [
        streams(ROLE, then="reset"),
        streams(ROLE, then="hang up"),
        streams(ROLE),
    ]
    for behave in lost:
        ladder.group.behave = behave
        answer = await ask(gateway, STREAM)
        assert words_of(answer.text) == ["w0", "w1", "w2"]
        assert answer.headers["x-orchestrate-endpoint"] == "single"
        assert answer.text.count('"role"') == 1
        ladder.group.behave = answers()
        await until(lambda: _is_back(gateway))
    seen = requests(ladder.single)
    for then in ("reset", "hang up", "end"):
        before = gateway.standing("group").breaker
        ladder.group.behave = streams(ROLE, word(0), word(1), then=then)
        answer = await ask(gateway, STREAM)
        assert words_of(answer.text) == ["w0", "w1"]
        assert answer.text.count('"error"') == 1
        assert "[DONE]" not in answer.text
        last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
        assert "broke off" in last["error"]["message"]
        assert gateway.counted("group") == (before.generation, 1), "counted once"
        ladder.group.behave = answers()
        await until(lambda: _is_back(gateway))
    assert requests(ladder.single) == seen, "nobody else is asked to go on"


async def _is_back(gateway: LocalGateway) -> bool:
    return await who(gateway) == "group" and gateway.standing("group").breaker.failures == 0


async def test_a_killed_group_is_told_of_at_once_and_the_ladder_carries_on_until_it_is_replaced(tmp_path: Path) -> None:
    """With real processes: KILL in mid-stream, then a new group at another address."""

    async def spawn(words: int) -> tuple[asyncio.subprocess.Process, str]:
        port = free_port()
        argv = (sys.executable, "-m", "tests.fakes.upstream", "--port", str(port))
        process = await asyncio.create_subprocess_exec(*argv, "--words", str(words), "--pause-s", "0.01", cwd=ROOT)
        await until(lambda: can_connect(port))
        return process, f"http://127.0.0.1:{port}"

    async def can_connect(port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    processes = []
    try:
        async with (
            FakeUpstream() as single,
            local_gateway(tmp_path, service_document("group", "single")) as gateway,
            gateway.client() as client,
        ):
            group, url = await spawn(words=2000)
            processes.append(group)
            await gateway.publish(instance("group", url), instance("single", single.url))
            async with client.stream("POST", CHAT_PATH, json=STREAM) as answer:
                pieces = answer.aiter_text()
                text = await anext(pieces)
                group.kill()
                async with asyncio.timeout(60):
                    text += "".join([piece async for piece in pieces])
            assert text.count('"error"') == 1 and "[DONE]" not in text
            assert gateway.standing("group").breaker.failures == 1
            for _ in range(4):
                assert await who(gateway) == "single"
            # The whole group is replaced; its entry goes, then the new one comes.
            await gateway.publish(instance("single", single.url))
            assert await who(gateway) == "single"
            fresh, url = await spawn(words=3)
            processes.append(fresh)
            await gateway.publish(instance("group", url), instance("single", single.url))
            assert await who(gateway) == "group"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_a_group_that_hangs_is_left_after_its_time(ladder: Ladder) -> None:
    document = service_document("group", "single")
    document["roles"]["chat"]["endpoints"]["group"]["timeout_s"] = 0.3
    await ladder.gateway.reload(document)
    ladder.group.behave = stalls
    assert (await ask(ladder.gateway, STREAM)).headers["x-orchestrate-endpoint"] == "single"


# --- fallbacks


async def test_a_service_is_fallen_back_to_when_all_tiers_are_exhausted(tmp_path: Path) -> None:
    document = service_document("main", "second", extra=("spare",), chat={"fallback": {"local": "spare"}, **QUICK})
    async with (
        FakeUpstream(refuses(500)) as main,
        FakeUpstream(refuses(500)) as second,
        FakeUpstream() as spare,
        local_gateway(tmp_path, document) as gateway,
    ):
        urls = {"main": main.url, "second": second.url, "spare": spare.url}
        await gateway.publish(*(instance(name, url) for name, url in urls.items()))
        for body in (CHAT, STREAM):
            answer = await ask(gateway, body)
            assert answer.status_code == 200
            assert answer.headers["x-orchestrate-endpoint"] == "spare"
            assert answer.headers["x-orchestrate-fallback"] == "spare"
            assert answer.headers["x-orchestrate-attempts"] == "3"
        assert spare.seen[0].document["model"] == "model-spare"
        answer = await ask(gateway)
        assert answer.headers["x-orchestrate-attempts"] == "1", "open breakers are not asked"
        report = await gateway.config()
        shown = [(one["name"], one["priority"], one["is_serving"]) for one in report["endpoints"]]
        assert shown == [("main", 1, False), ("second", 2, False), ("spare", None, True)]
        main.behave = answers()
        await until(lambda: isinstance(gateway.standing("main").breaker, Closed))
        answer = await ask(gateway)
        assert answer.headers["x-orchestrate-endpoint"] == "main"
        assert "x-orchestrate-fallback" not in answer.headers
        spare.behave = main.behave = refuses(500)
        assert (await ask(gateway)).status_code == 503


async def test_roles_fall_back_to_roles_in_a_row_with_settings_of_their_own(tmp_path: Path) -> None:
    document = service_document(
        "one",
        extra=("two", "three"),
        chat={"fallback": {"role": "second"}, "limits": {"attempts": 1}},
        roles={
            "second": {"endpoints": {"b": {"service": "two"}}, "fallback": {"role": "third"}, "timeout_s": 0.3},
            "third": {"endpoints": {"c": {"service": "three"}}},
        },
        aliases={"short": ["one", "chat"]},
    )
    async with (
        FakeUpstream(refuses(500)) as one,
        FakeUpstream(stalls) as two,
        FakeUpstream() as three,
        local_gateway(tmp_path, document) as gateway,
    ):
        urls = {"one": one.url, "two": two.url, "three": three.url}
        await gateway.publish(*(instance(name, url) for name, url in urls.items()))
        answer = await ask(gateway, STREAM)
        assert answer.headers["x-orchestrate-endpoint"] == "c"
        assert answer.headers["x-orchestrate-fallback"] == "third"
        assert answer.headers["x-orchestrate-attempts"] == "3"
        assert [requests(fake) for fake in (one, three)] == [1, 1]
        assert requests(two) <= 1, "it may be given up before it has read the request"
        answer = await ask(gateway, STREAM, "short")
        assert answer.headers["x-orchestrate-endpoint"] == "c", "an alias has the fallbacks of its roles"
        # Who asks for a model or a service wants that one.
        for exact in ("one", "model-one"):
            assert (await ask(gateway, model=exact)).status_code == 503


async def test_a_role_may_fall_back_to_a_service_of_its_own_name(tmp_path: Path) -> None:
    limited = {"fallback": {"local": "chat"}, "limits": {"attempts": 1}}
    document = service_document("main", extra=("chat",), chat=limited)
    async with (
        FakeUpstream(refuses(500)) as main,
        FakeUpstream() as spare,
        local_gateway(tmp_path, document) as gateway,
    ):
        await gateway.publish(instance("main", main.url), instance("chat", spare.url))
        answer = await ask(gateway)
        assert answer.headers["x-orchestrate-endpoint"] == answer.headers["x-orchestrate-fallback"] == "chat"
        assert answer.headers["x-orchestrate-attempts"] == "2"


async def test_without_a_fallback_it_stays_an_error(tmp_path: Path) -> None:
    document = service_document("main", extra=("spare",), chat={"fallback": "error"})
    async with FakeUpstream() as spare, local_gateway(tmp_path, document) as gateway:
        await gateway.publish(instance("spare", spare.url))
        assert (await ask(gateway)).status_code == 503
        assert spare.seen == []


# --- replicas


async def test_replicas_share_the_load_and_a_lost_one_is_replaced_within_one_request(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeUpstream()) for _ in range(3)]
        gateway = await stack.enter_async_context(local_gateway(tmp_path, service_document("main")))
        await gateway.publish(*(instance("main", fake.url, replica=number) for number, fake in enumerate(fakes)))
        for _ in range(30):
            assert (await ask(gateway)).status_code == 200
        assert [len(fake.seen) for fake in fakes] == [10, 10, 10]
        # Slow ones get less.
        fakes[0].behave = answers(pause_s=0.5)
        await asyncio.gather(*(ask(gateway) for _ in range(12)))
        for fake in fakes:
            fake.behave = answers()
            fake.seen.clear()
        await fakes[0].stop()
        attempts = Counter([(await ask(gateway)).headers["x-orchestrate-attempts"] for _ in range(30)])
        assert set(attempts) <= {"1", "2"}
        assert attempts["2"] <= 3, "others are preferred to it, then its breaker keeps it out"
        assert len(fakes[1].seen) + len(fakes[2].seen) == 30


@pytest.mark.slow
async def test_a_lost_replica_is_shown_although_no_client_asks_it_any_more(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as good,
        FakeUpstream() as lost,
        local_gateway(tmp_path, service_document("main")) as gateway,
    ):
        await gateway.publish(instance("main", lost.url), instance("main", good.url, replica=1))
        await lost.stop()
        for _ in range(10):
            assert (await ask(gateway)).status_code == 200
        states: dict[str, tuple[str, bool]] = {}

        async def is_shown() -> bool:
            report = await gateway.config()
            states.update({one["url"]: (one["state"], one["is_serving"]) for one in report["endpoints"]})
            return states[lost.url] == ("unready", False)

        await until(is_shown, within_s=60, what="probes show what no client asks for any more")
        assert states[good.url] == ("ready", True)
