"""What the admin API tells of endpoints, and what people do to them by hand there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway import isolations
from runtime.gateway.routing import by_hand as hands
from runtime.gateway.routing.breaker import Closed, Isolated, Open
from schemas.admin import EndpointsReport, EndpointStatistics
from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses, stalls
from tests.runtime.gateway.harness import (
    CHAT,
    STREAM,
    LocalGateway,
    instance,
    local_gateway,
    service_document,
    stack_document,
    until,
)

CHAT_PATH = "/v1/chat/completions"
ONCE = {"breaker": {"failure_threshold": 1}}


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json=body)


async def endpoints(gateway: LocalGateway) -> dict[str, EndpointStatistics]:
    async with gateway.client() as client:
        answer = await client.get("/admin/endpoints")
    assert answer.status_code == 200
    return {found.endpoint: found for found in EndpointsReport.from_json(answer.content).endpoints}


async def by_hand(gateway: LocalGateway, verb: str, **choice: str) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(f"/admin/endpoints/{verb}", json=choice)


async def test_each_endpoint_tells_what_it_did(lab: Any) -> None:
    gateway, _ = await lab(refuses(500), answers(), chat=ONCE)
    before = await endpoints(gateway)
    assert {name: found.health for name, found in before.items()} == {"a": "unknown", "b": "unknown"}
    assert (before["a"].latency_s, before["a"].last_success_age_s, before["a"].breaker.cause) == (None, None, None)
    for body in (CHAT, STREAM):
        assert (await ask(gateway, body)).status_code == 200
    await until(lambda: gateway.in_flight == 0)
    found = await endpoints(gateway)
    bad, good = found["a"], found["b"]
    assert (bad.health, bad.failures, bad.answers) == ("alive", 1, 0)
    assert (bad.breaker.state, bad.breaker.streak) == ("open", 1)
    assert bad.breaker.retry_s is not None
    assert 0 < bad.breaker.retry_s <= 66
    assert [(change.state, change.cause) for change in bad.breaker.history] == [
        ("open", "failures in a row: server error")
    ]
    assert bad.last_error == "server error (status 500)"
    assert bad.last_error_age_s is not None
    assert (good.health, good.failures, good.answers, good.in_flight) == ("ready", 0, 2, 0)
    assert (good.roles, good.role, good.model) == (("chat/b",), "chat", "model-b")
    assert good.breaker.state == "closed"
    assert good.latency_s is not None
    assert 0 < good.latency_s.p50 <= good.latency_s.p95
    assert good.first_content_s is not None
    assert good.tokens_per_s is not None
    assert good.tokens_per_s > 0


async def test_an_isolated_endpoint_gets_nothing_until_somebody_closes_it_whatever_is_reloaded(lab: Any) -> None:
    gateway, (first, _) = await lab(answers(), answers())
    answer = await by_hand(gateway, "isolate", endpoint="a")
    assert answer.status_code == 200
    (told,) = EndpointsReport.from_json(answer.content).endpoints
    assert (told.endpoint, told.breaker.state, told.breaker.cause) == ("a", "isolated", "by hand")
    assert told.breaker.retry_s is None
    await gateway.reload({**gateway.document, "aliases": {"edit": ["chat"]}})
    for _ in range(3):
        assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert not first.seen
    (report, _) = (await gateway.config())["endpoints"]
    assert report["state"] == "isolated"
    async with gateway.client() as client:
        metrics = (await client.get("/metrics")).text
    assert 'orchestrate_breaker_state{endpoint="a"' in metrics
    assert 'orchestrate_breaker_changes_total{endpoint="a"' in metrics
    assert (await by_hand(gateway, "close", endpoint="a", role="chat")).status_code == 200
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_without_others_an_isolated_endpoint_is_a_reason_and_not_a_404(lab: Any) -> None:
    gateway, _ = await lab(answers())
    await by_hand(gateway, "isolate", endpoint="a")
    answer = await ask(gateway)
    assert answer.status_code == 503
    assert "a: isolated" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_probe_by_hand_closes_the_breaker_of_who_answers(lab: Any) -> None:
    gateway, (fake, _) = await lab(refuses(500), answers(), chat=ONCE)
    await ask(gateway)
    (still,) = EndpointsReport.from_json((await by_hand(gateway, "probe", endpoint="a")).content).endpoints
    assert still.probe is not None
    assert (still.breaker.state, still.breaker.streak, still.probe.outcome) == ("open", 2, "server error")
    fake.behave = answers()
    (now,) = EndpointsReport.from_json((await by_hand(gateway, "probe", endpoint="a")).content).endpoints
    assert now.probe is not None
    assert (now.breaker.state, now.health, now.probe.outcome) == ("closed", "ready", "ok")
    assert isinstance(gateway.standing("a").breaker, Closed)


async def test_a_probe_by_hand_shows_whether_an_isolated_endpoint_is_well_and_leaves_it_out(lab: Any) -> None:
    gateway, _ = await lab(answers(), answers())
    await by_hand(gateway, "isolate", endpoint="a")
    (found,) = EndpointsReport.from_json((await by_hand(gateway, "probe", endpoint="a")).content).endpoints
    assert found.probe is not None
    assert (found.breaker.state, found.probe.outcome) == ("isolated", "ok")


async def test_two_trials_at_once_are_refused(lab: Any) -> None:
    gateway, (fake, _) = await lab(refuses(500), answers(), chat=ONCE)
    await ask(gateway)
    fake.behave = stalls
    before = len(fake.seen)
    first = asyncio.create_task(by_hand(gateway, "probe", endpoint="a"))
    await until(lambda: len(fake.seen) > before)
    second = await by_hand(gateway, "probe", endpoint="a")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "trial_under_way")
    fake.behave = refuses(500)  # for the trial that the gateway makes itself now
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await until(lambda: gateway.in_flight == 0)
    assert isinstance(gateway.standing("a").breaker, Open), "who asked has left, and nothing is stuck"


@pytest.mark.parametrize(
    ("choice", "status", "words"),
    [
        ({"endpoint": "aa"}, 404, "did you mean 'a'?"),
        ({"endpoint": "nobody"}, 404, "there are: a, b."),
        ({"endpoint": "a", "role": "code"}, 404, "in the role 'code'"),
        ({"endpoint": "a", "instance": "10.0.0.1:1"}, 404, "not at '10.0.0.1:1'"),
        ({}, 400, "endpoint"),
        ({"endpoint": 5}, 400, "endpoint"),
        ({"endpoint": "a", "url": "http://x"}, 400, "url"),
    ],
)
async def test_what_is_not_there_is_named(lab: Any, choice: dict[str, Any], status: int, words: str) -> None:
    gateway, _ = await lab(answers(), answers())
    for verb in ("isolate", "close", "probe"):
        answer = await by_hand(gateway, verb, **choice)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert words in error["message"]


async def test_a_name_in_several_roles_needs_its_role_and_replicas_go_together(lab: Any) -> None:
    gateway, _ = await lab(answers())
    async with FakeUpstream() as other:
        document = json.loads(json.dumps(stack_document({"a": gateway.document["helpers"]["a"]["url"]})))
        document["helpers"]["b"] = {"url": other.url, "models": {"model-b": {}}}
        document["roles"]["code"] = {"endpoints": {"a": {"helper": "b", "model": "model-b"}}}
        await gateway.reload(document)
        answer = await by_hand(gateway, "isolate", endpoint="a")
        assert answer.status_code == 404
        assert "Several roles have an endpoint 'a': chat, code." in answer.json()["error"]["message"]
        assert (await by_hand(gateway, "isolate", endpoint="a", role="code")).status_code == 200
        assert (await ask(gateway)).status_code == 200
        document["roles"]["code"]["endpoints"]["a"] = {"helper": "a", "model": "model-a"}
        await gateway.reload(document)
        answer = await by_hand(gateway, "isolate", endpoint="a")
        (found,) = EndpointsReport.from_json(answer.content).endpoints
        assert found.roles == ("chat/a", "code/a"), "one endpoint in two roles"
        where = f"127.0.0.1:{other.port}"
        answer = await by_hand(gateway, "close", endpoint="a", instance=where)
        assert where in answer.json()["error"]["message"]


async def test_in_a_panic_an_open_endpoint_is_asked_where_the_files_say_so(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"breaker": {"failure_threshold": 1, "panic": "try"}})
    assert (await ask(gateway)).status_code == 503
    state = gateway.standing("a").breaker
    assert isinstance(state, Open)
    assert (await ask(gateway)).status_code == 503
    assert len(fake.seen) == 2, "it is asked all the same"
    assert gateway.standing("a").breaker is state
    fake.behave = answers()
    assert (await ask(gateway)).status_code == 200
    assert isinstance(gateway.standing("a").breaker, Closed)


async def test_an_isolated_endpoint_is_left_alone_by_the_next_process_too(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as first, FakeUpstream(answers()) as second:
        document = stack_document({"a": first.url, "b": second.url})
        async with local_gateway(tmp_path, document) as gateway:
            await by_hand(gateway, "isolate", endpoint="a")
        async with local_gateway(tmp_path, document) as gateway:
            found = (await endpoints(gateway))["a"]
            assert (found.breaker.state, found.breaker.cause) == ("isolated", "by hand")
            assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
            assert not first.seen
            await by_hand(gateway, "close", endpoint="a")
        async with local_gateway(tmp_path, document) as gateway:
            assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_what_has_left_the_stack_is_not_isolated_when_it_comes_back(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as first, FakeUpstream(answers()) as second:
        both, one = stack_document({"a": first.url, "b": second.url}), stack_document({"b": second.url})
        async with local_gateway(tmp_path, both) as gateway:
            await by_hand(gateway, "isolate", endpoint="a")
            await gateway.reload(one)
        async with local_gateway(tmp_path, both) as gateway:
            assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_an_isolated_worker_is_left_alone_when_it_comes_back_from_being_replaced(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as first, FakeUpstream(answers()) as second:
        document = service_document("a", "b")
        there = instance("b", second.url)
        async with local_gateway(tmp_path, document) as gateway:
            await gateway.publish(instance("a", first.url), there)
            await by_hand(gateway, "isolate", endpoint="a")
            await gateway.publish(instance("a", first.url, "replacing"), there)
        async with local_gateway(tmp_path, document) as gateway:
            # The process before was told, and this one begins while the worker is away.
            await gateway.publish(there)
            await gateway.publish(instance("a", first.url), there)
            assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
            assert (await endpoints(gateway))["a"].breaker.state == "isolated"
            await by_hand(gateway, "close", endpoint="a")
            assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_two_processes_of_one_gateway_lose_nothing_that_either_was_told(tmp_path: Path) -> None:
    async with FakeUpstream(answers()) as first, FakeUpstream(answers()) as second:
        document = stack_document({"a": first.url, "b": second.url})
        async with local_gateway(tmp_path, document) as old, local_gateway(tmp_path, document) as new:
            await by_hand(old, "isolate", endpoint="a")
            await by_hand(new, "isolate", endpoint="b")
            await old.reload()
            await new.reload()
            for gateway in (old, new):
                states = {name: found.breaker.state for name, found in (await endpoints(gateway)).items()}
                assert states == {"a": "isolated", "b": "isolated"}
            await by_hand(new, "close", endpoint="a")
            await old.reload()
            assert (await ask(old)).headers["x-orchestrate-endpoint"] == "a"
        async with local_gateway(tmp_path, document) as gateway:
            states = {name: found.breaker.state for name, found in (await endpoints(gateway)).items()}
            assert states == {"a": "closed", "b": "isolated"}


@pytest.fixture
def unwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Keep what is isolated from being written until this is called."""
    monkeypatch.setattr(isolations, "BUSY_S", 600.0)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with contextlib.ExitStack() as held:
        held.callback(os.close, handle)
        yield held.close


async def test_an_endpoint_that_leaves_the_stack_while_it_is_isolated_is_not_found(
    tmp_path: Path, unwritten: Callable[[], None]
) -> None:
    async with FakeUpstream(answers()) as fake:
        both, one = stack_document({"a": fake.url, "b": fake.url}), stack_document({"b": fake.url})
        async with local_gateway(tmp_path, both) as gateway:
            isolating = asyncio.create_task(by_hand(gateway, "isolate", endpoint="a"))
            await until(lambda: isinstance(gateway.standing("a").breaker, Isolated), what="it is isolated")
            reloading = asyncio.create_task(gateway.reload(one))
            await until(lambda: "a" not in {target.name for target in gateway.gateway.services.live.table.targets()})
            unwritten()
            answer = await isolating
            await reloading
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "endpoint_not_found")


async def test_replicas_that_leave_the_stack_while_they_are_probed_are_left_out(tmp_path: Path) -> None:
    answered = asyncio.Event()

    async def answers_late(exchange: Exchange) -> None:
        await answered.wait()
        await answers()(exchange)

    async with FakeUpstream(answers_late) as slow, FakeUpstream(answers()) as other:
        document = service_document("a")
        first, second = instance("a", slow.url), instance("a", other.url, replica=1)
        async with local_gateway(tmp_path, document) as gateway:
            await gateway.publish(first, second)
            probing = asyncio.create_task(by_hand(gateway, "probe", endpoint="a"))
            await until(lambda: slow.seen, what="the first replica is asked")
            await gateway.publish(first)
            answered.set()
            answer = await probing
            assert answer.status_code == 200
            assert [one["instance"] for one in answer.json()["endpoints"]] == [slow.url.removeprefix("http://")]
            assert not other.seen


async def test_a_process_that_stands_still_keeps_no_other_from_reading_its_files(
    tmp_path: Path, unwritten: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolations, "BUSY_S", 0.05)
    async with FakeUpstream(answers()) as fake, local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway:
        assert (await by_hand(gateway, "isolate", endpoint="a")).status_code == 200
        await gateway.reload({**gateway.document, "aliases": {"new": ["chat"]}})
        assert "new" in gateway.gateway.services.live.table.routes
        assert not tmp_path.joinpath("isolated.json").exists()
        unwritten()
        await gateway.reload()
        assert json.loads(tmp_path.joinpath("isolated.json").read_text())["isolated"][0]["model"] == "model-a"


async def test_who_leaves_while_it_is_written_undoes_nothing_that_comes_after(
    tmp_path: Path, unwritten: Callable[[], None]
) -> None:
    async with FakeUpstream(answers()) as fake, local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway:
        services = gateway.gateway.services
        (identity,) = services.pool.standings
        hands.isolate(services.pool, identity)
        leaves = asyncio.create_task(services.isolations.save())
        for _ in range(5):
            await asyncio.sleep(0)  # a thread has begun, or is about to
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        closing = asyncio.create_task(by_hand(gateway, "close", endpoint="a"))
        await until(lambda: isinstance(gateway.standing("a").breaker, Closed), what="the breaker is closed")
        unwritten()
        assert (await closing).status_code == 200
        assert (await ask(gateway)).status_code == 200
        assert json.loads(tmp_path.joinpath("isolated.json").read_text()) == {"isolated": []}


@pytest.mark.parametrize("text", ["", "[]", '{"isolated": [{}]}', '{"isolated": [{"port": "x"}]}', "\x00"])
async def test_a_file_of_isolations_that_makes_no_sense_keeps_nobody_from_serving(tmp_path: Path, text: str) -> None:
    tmp_path.joinpath("isolated.json").write_text(text)
    async with FakeUpstream(answers()) as fake, local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway:
        assert (await ask(gateway)).status_code == 200
        assert (await by_hand(gateway, "isolate", endpoint="a")).status_code == 200
        assert json.loads(tmp_path.joinpath("isolated.json").read_text())["isolated"][0]["model"] == "model-a"
