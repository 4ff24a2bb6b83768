"""F08, F19 to F22, F28, F29 and F32: breakers and probes, over time, over reloads, and when our own code fails."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway import connections, prober
from runtime.gateway.routing.breaker import Closed, HalfOpen, Open, wait_s
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_LEFT, SUCCESS, judge_fault
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import RoutingTable
from schemas.stack import Stack
from tests.fakes.upstream import Exchange, FakeUpstream, answers, refuses, stalls
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, local_gateway, stack_document, until

CHAT_PATH = "/v1/chat/completions"
FAILED = judge_fault("refused", is_committed=False)
SOON = {"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.1, "max_reset_timeout_s": 0.1}}


async def ask(gateway: LocalGateway, body: dict[str, Any] = CHAT) -> httpx.Response:
    async with gateway.client() as client:
        return await client.post(CHAT_PATH, json=body)


def probes(fake: FakeUpstream) -> int:
    return sum(seen.headers.get("x-request-id") == "probe" for seen in fake.seen)


def table(endpoints: dict[str, str], **more: Any) -> RoutingTable:
    stack = Stack.model_validate_json(json.dumps(stack_document(endpoints, **more)))
    return build_table(stack, None, environ={}, worker_token=None)


class Clock:
    """A clock that tests set, and the pool of one endpoint that goes by it."""

    def __init__(self, **breaker: Any) -> None:
        self.now = 1000.0
        self.table = table({"a": "http://h1:1"}, chat={"breaker": breaker})
        self.pool = Pool(lambda: self.now, lambda: 0.0)
        self.pool.adopt(self.table)

    @property
    def standing(self) -> Any:
        (standing,) = self.pool.standings.values()
        return standing

    def lease(self) -> Lease | None:
        found = self.pool.lease(self.table.routes["chat"], ())
        return found if isinstance(found, Lease) else None

    def fail(self, times: int = 3) -> None:
        for _ in range(times):
            lease = self.lease()
            assert lease is not None
            lease.finish(FAILED)


async def test_f08_a_wedged_endpoint_stays_out_until_it_gives_a_token(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "PROBE_S", 0.15)

    async def wedged(exchange: Exchange) -> None:
        # Its health page says 200 all the time; nothing comes of asking for a token.
        if exchange.seen.path == "/health":
            await exchange.answer(200, {"status": "ok"})
        else:
            await stalls(exchange)

    endpoints = {
        "a": {"helper": "a", "model": "model-a", "priority": 1, "timeout_s": 0.15},
        "b": {"helper": "b", "model": "model-b", "priority": 2},
    }
    gateway, (bad, good) = await lab(wedged, answers(), chat={**SOON, "endpoints": endpoints})
    assert (await ask(gateway, STREAM)).headers["x-orchestrate-endpoint"] == "b"
    async with httpx.AsyncClient(base_url=bad.url, trust_env=False) as client:
        for _ in range(10):
            seen = probes(bad)
            await until(lambda seen=seen: probes(bad) > seen, what="another probe")
            assert (await client.get("/health")).status_code == 200
            assert not isinstance(gateway.standing("a").breaker, Closed)
            assert (await ask(gateway, STREAM)).headers["x-orchestrate-endpoint"] == "b"

    async def wedged_report() -> dict[str, Any] | None:
        (report, _) = (await gateway.config())["endpoints"]
        return report if report["state"] == report["health"] == "wedged" else None

    # A probe that found no connection in its short time tells nothing of that; the next one does.
    report = await until(wedged_report)
    assert not report["is_serving"]
    assert report["probe"]["outcome"] == "no first content"
    assert report["probe"]["age_s"] < 20
    monkeypatch.setattr(prober, "PROBE_S", 30.0)
    await gateway.reload(stack_document({"a": bad.url, "b": good.url}, chat=SOON))  # from now on in no hurry
    bad.behave = answers()
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed))
    answer = await ask(gateway, STREAM)
    assert answer.headers["x-orchestrate-endpoint"] == "a"
    (report, _) = (await gateway.config())["endpoints"]
    assert (report["state"], report["health"], report["probe"]["outcome"]) == ("ready", "ready", "ok")
    assert len(good.seen) == 11


def test_f19_of_a_hundred_at_once_one_is_the_trial() -> None:
    clock = Clock(reset_timeout_s=10.0)
    clock.fail()
    clock.now += 10.0
    (trial,) = [lease for lease in (clock.lease() for _ in range(100)) if lease is not None]
    trial.finish(SUCCESS)
    assert isinstance(clock.standing.breaker, Closed)


@pytest.mark.slow
async def test_f19_of_a_hundred_clients_at_once_one_reaches_the_endpoint(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.2}})
    gateway.gateway.prober.close()
    await ask(gateway)
    is_open = asyncio.Event()

    async def gated(exchange: Exchange) -> None:
        await is_open.wait()
        await answers()(exchange)

    fake.behave = gated
    await until(lambda: wait_s(gateway.standing("a").breaker, gateway.gateway.services.now()) == 0)
    before = len(fake.seen)
    async with gateway.client() as client:
        asked = [asyncio.create_task(client.post(CHAT_PATH, json=STREAM)) for _ in range(100)]
        await until(lambda: sum(task.done() for task in asked) == 99 and len(fake.seen) > before)
        assert len(fake.seen) == before + 1
        is_open.set()
        codes = sorted([(await task).status_code for task in asked])
    assert codes == [200, *[503] * 99]
    assert isinstance(gateway.standing("a").breaker, Closed)


def test_f20_a_trial_that_hangs_or_is_cancelled_leaves_nothing_stuck() -> None:
    clock = Clock(reset_timeout_s=10.0)
    clock.fail()
    clock.now += 10.0
    cancelled = clock.lease()
    assert cancelled is not None
    cancelled.finish(CLIENT_LEFT)
    hung = clock.lease()
    assert hung is not None, "the next request may be the trial at once"
    assert clock.lease() is None
    clock.now += hung.target.timeouts.total_s
    assert clock.lease() is not None, "a lease has an end"
    assert isinstance(clock.standing.breaker, HalfOpen)


async def test_f20_a_client_that_leaves_in_the_middle_of_the_trial_gives_it_back(lab: Any) -> None:
    gateway, (fake,) = await lab(refuses(500), chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 0.2}})
    gateway.gateway.prober.close()
    await ask(gateway)
    fake.behave = stalls
    standing = gateway.standing("a")
    await until(lambda: wait_s(standing.breaker, gateway.gateway.services.now()) == 0)
    before = len(fake.seen)
    async with gateway.client() as client:
        trial = asyncio.create_task(client.post(CHAT_PATH, json=STREAM))
        await until(lambda: len(fake.seen) > before)
        assert isinstance(standing.breaker, HalfOpen)
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
    await until(lambda: standing.in_flight == 0)
    fake.behave = answers()
    assert (await ask(gateway)).status_code == 200
    assert isinstance(standing.breaker, Closed)


def test_f21_a_late_result_of_an_earlier_generation_is_ignored() -> None:
    clock = Clock(reset_timeout_s=10.0)
    late = [clock.lease() for _ in range(4)]
    clock.fail()
    for lease, verdict in zip(late[:2], (SUCCESS, FAILED), strict=True):
        assert lease is not None
        before = clock.standing.breaker
        lease.finish(verdict)
        assert clock.standing.breaker is before
    clock.now += 10.0
    trial = clock.lease()
    assert trial is not None
    for lease, verdict in zip(late[2:], (SUCCESS, FAILED), strict=True):
        assert lease is not None
        lease.finish(verdict)
        assert isinstance(clock.standing.breaker, HalfOpen), "the trial alone decides"
    trial.finish(FAILED)
    assert clock.standing.breaker.streak == 2
    assert clock.standing.in_flight == 0


def test_f22_ten_minutes_of_flapping_open_it_for_longer_each_time() -> None:
    """It answers each trial and fails at once afterwards."""
    clock = Clock(reset_timeout_s=10.0, max_reset_timeout_s=80.0, failure_threshold=2)
    began, opened_s, trials = clock.now, [], []
    while clock.now - began < 600.0:
        clock.fail(2)
        opened_s.append(wait_s(clock.standing.breaker, clock.now))
        until_ = clock.now + opened_s[-1]
        for _ in range(10):
            assert clock.lease() is None, "nobody is let through before its time"
            clock.now += opened_s[-1] / 10.1
        clock.now = until_
        found = [lease for lease in (clock.lease() for _ in range(5)) if lease is not None]
        trials.append(len(found))
        found[0].finish(SUCCESS)
        clock.now += 1.0
    assert opened_s[:5] == [10.0, 20.0, 40.0, 80.0, 80.0]
    assert set(opened_s[4:]) == {80.0}
    assert set(trials) == {1}, "one in each period"


def test_f22_failed_trials_open_it_for_longer_each_time() -> None:
    clock = Clock(reset_timeout_s=10.0, max_reset_timeout_s=80.0)
    clock.fail()
    began, opened_s = clock.now, []
    while clock.now - began < 600.0:
        opened_s.append(wait_s(clock.standing.breaker, clock.now))
        clock.now += opened_s[-1]
        (trial,) = [lease for lease in (clock.lease() for _ in range(5)) if lease is not None]
        trial.finish(FAILED)
    assert opened_s[:5] == [10.0, 20.0, 40.0, 80.0, 80.0]
    assert set(opened_s[4:]) == {80.0}


async def test_f28_another_url_starts_with_a_fresh_breaker_at_once(lab: Any) -> None:
    gateway, _ = await lab(refuses(500), answers(), chat={"breaker": {"failure_threshold": 1}})
    assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "b"
    assert isinstance(gateway.standing("a").breaker, Open)
    async with FakeUpstream() as fresh:
        document = json.loads(json.dumps(gateway.document))
        document["helpers"]["a"]["url"] = fresh.url
        await gateway.reload(document)
        assert (await ask(gateway)).headers["x-orchestrate-endpoint"] == "a"


async def test_f29_another_threshold_keeps_the_state(lab: Any) -> None:
    gateway, (bad, _) = await lab(refuses(500), answers(), chat={"breaker": {"failure_threshold": 3}})

    async def with_threshold(threshold: int) -> None:
        document = json.loads(json.dumps(gateway.document))
        document["roles"]["chat"]["breaker"]["failure_threshold"] = threshold
        await gateway.reload(document)

    for _ in range(2):
        await ask(gateway)
    await with_threshold(5)
    assert gateway.counted("a") == (0, 2)
    for failures in (3, 4):
        await ask(gateway)
        assert gateway.counted("a") == (0, failures)
    await ask(gateway)
    state = gateway.standing("a").breaker
    assert isinstance(state, Open)
    await with_threshold(50)
    assert gateway.standing("a").breaker is state, "what is open stays open"
    assert len(bad.seen) == 5


def test_f32_an_hour_that_the_clock_jumps_is_time_that_passed_and_no_more() -> None:
    clock = Clock(reset_timeout_s=10.0)
    clock.fail(2)
    late = clock.lease()
    clock.now += 3600.0
    assert late is not None
    late.finish(SUCCESS, tokens=5)
    assert isinstance(clock.standing.breaker, Closed)
    clock.fail(3)
    clock.now += 3600.0
    trial = clock.lease()
    assert trial is not None
    trial.finish(SUCCESS)
    assert isinstance(clock.standing.breaker, Closed)
    assert clock.standing.in_flight == 0


async def test_f32_a_name_that_moves_is_resolved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loopback addresses go by one name here; connections that are kept for long are the reason to look again."""
    monkeypatch.setattr(connections, "LONGEST_AGE_S", -1.0)
    async with FakeUpstream() as old, FakeUpstream() as new:
        document = stack_document({"a": f"http://localhost:{old.port}"})
        async with local_gateway(tmp_path, document) as gateway:
            assert (await ask(gateway)).status_code == 200
            port = old.port
            await old.stop()
            await new.stop()
            await new.start(port, "127.0.0.2")
            loop, resolve = asyncio.get_running_loop(), asyncio.get_running_loop().getaddrinfo

            async def moved(host: Any, *arguments: Any, **more: Any) -> Any:
                return await resolve("127.0.0.2" if host in ("localhost", b"localhost") else host, *arguments, **more)

            monkeypatch.setattr(loop, "getaddrinfo", moved)
            assert (await ask(gateway)).status_code == 200
            assert len(new.seen) == 1


async def test_f32_a_poller_that_raises_is_started_again_and_reported(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "RESTART_S", 0.05)
    gateway, (fake,) = await lab(refuses(500), chat=SOON)
    pool, leased = gateway.gateway.services.pool, gateway.gateway.services.pool.lease_probe

    def explodes(*_: object) -> None:
        pool.lease_probe = leased
        raise RuntimeError("surprise")

    pool.lease_probe = explodes
    await ask(gateway)
    await until(lambda: probes(fake) > 0)
    async with gateway.client() as client:
        assert "orchestrate_probe_restarts_total 1.0" in (await client.get("/metrics")).text
    fake.behave = answers()
    await until(lambda: isinstance(gateway.standing("a").breaker, Closed))
