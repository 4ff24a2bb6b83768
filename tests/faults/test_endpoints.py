"""F01 to F16: what endpoints and the network do wrong, and exactly what clients and breakers see of it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed, Open
from tests.fakes.fault_proxy import FaultProxy, Faults
from tests.fakes.upstream import (
    ROLE,
    FakeUpstream,
    answers,
    refuses,
    streams,
    word,
)
from tests.ports import free_port
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, local_gateway, stack_document, until, words_of

CHAT_PATH = "/v1/chat/completions"
SHORT_S = 0.3
"""How long a test waits for what never comes: no endpoint that answers has so short a limit."""
PAUSE_S = 3.0
"""A limit between two tokens that an endpoint of this process keeps while it answers, however busy the machine is."""
ALL = [f"w{index}" for index in range(60)]


class Lab:
    """A gateway before a bad endpoint, `a`, behind a fault proxy, and a good one, `b`."""

    def __init__(self, gateway: LocalGateway, bad: FakeUpstream, good: FakeUpstream, proxy: FaultProxy) -> None:
        self.gateway = gateway
        self.bad, self.good, self.proxy = bad, good, proxy

    async def ask(self, body: dict[str, Any] = STREAM) -> httpx.Response:
        async with self.gateway.client() as client:
            return await client.post(CHAT_PATH, json=body)

    @property
    def failures(self) -> int:
        return self.gateway.counted("a")[1]

    async def limit(self, *, first_token_s: float | None = None, idle_s: float | None = None) -> None:
        """Give the bad endpoint so long to its first token, and every endpoint so long between two of them."""
        document = json.loads(json.dumps(self.gateway.document))
        role = document["roles"]["chat"]
        if first_token_s is not None:
            await self.ask()  # which leaves a connection: to make one would count as well
            role["endpoints"]["a"]["timeout_s"] = first_token_s
        if idle_s is not None:
            role["timeouts"] = {"idle_s": idle_s}
        await self.gateway.reload(document)


@pytest.fixture
async def faulty(tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        bad, good = [await stack.enter_async_context(FakeUpstream(answers(words=60))) for _ in range(2)]
        proxy = await stack.enter_async_context(FaultProxy(bad.port))
        document = stack_document({"a": proxy.url, "b": good.url})
        yield Lab(await stack.enter_async_context(local_gateway(tmp_path, document)), bad, good, proxy)


def ending(answer: httpx.Response) -> dict[str, Any]:
    """Return the error that a stream ends with, which is no proper end."""
    assert answer.text.count('"error"') == 1
    assert "[DONE]" not in answer.text
    error: dict[str, Any] = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))["error"]
    return error


async def is_answered_by_the_next(faulty: Lab) -> None:
    """Assert that a client sees one normal stream, of the good endpoint."""
    answer = await faulty.ask()
    assert answer.status_code == 200
    assert (answer.headers["x-orchestrate-endpoint"], answer.headers["x-orchestrate-attempts"]) == ("b", "2")
    assert words_of(answer.text) == ALL
    assert answer.text.count('"role"') == 1
    assert answer.text.count("[DONE]") == 1
    assert "error" not in answer.text


async def test_f01_a_closed_port_costs_exactly_the_threshold(tmp_path: Path) -> None:
    async with FakeUpstream() as good:
        document = stack_document({"a": f"http://127.0.0.1:{free_port()}", "b": good.url})
        async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
            for failures in (1, 2, 3):
                answer = await client.post(CHAT_PATH, json=CHAT)
                assert answer.status_code == 200
                assert answer.headers["x-orchestrate-attempts"] == "2"
                state = gateway.standing("a").breaker
                assert isinstance(state, Open if failures == 3 else Closed)
            answer = await client.post(CHAT_PATH, json=CHAT)
            assert answer.headers["x-orchestrate-attempts"] == "1", "no connection is made to it"
            assert gateway.standing("a").breaker.cause == "failures in a row"


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port whose queue of connections is full: Linux drops the packets of further ones."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", free_port()))
        listening.listen(0)
        for _ in range(8):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def test_f02_dropped_packets_cost_one_connect_timeout_an_attempt(tmp_path: Path) -> None:
    async with FakeUpstream() as good:
        with full_backlog() as port:
            chat = {"timeouts": {"connect_s": SHORT_S}}
            document = stack_document({"a": f"http://127.0.0.1:{port}", "b": good.url}, chat=chat)
            async with local_gateway(tmp_path, document) as gateway, gateway.client() as client:
                attempts = [
                    (await client.post(CHAT_PATH, json=CHAT)).headers["x-orchestrate-attempts"] for _ in range(4)
                ]
                assert attempts == ["2", "2", "2", "1"]
                assert gateway.standing("a").last_error.startswith("connect timeout")
                assert isinstance(gateway.standing("a").breaker, Open)


async def test_f03_a_link_that_goes_down_ends_the_stream_at_the_limit_between_tokens(faulty: Lab) -> None:
    await faulty.limit(idle_s=PAUSE_S)
    faulty.proxy.faults = Faults(stall_after=21)  # the role and 20 words
    answer = await faulty.ask()
    assert words_of(answer.text) == ALL[:20]
    assert "stalled" in ending(answer)["message"]
    assert faulty.failures == 1, "counted once"
    assert faulty.gateway.in_flight == 0


async def test_f04_a_reset_before_the_headers_is_not_seen(faulty: Lab) -> None:
    faulty.proxy.faults = Faults(resets=True)
    await is_answered_by_the_next(faulty)
    assert faulty.failures == 1


@pytest.mark.parametrize(
    "pieces", [(), (ROLE,), (b": waiting\n\n",) * 3], ids=["f05-headers", "f06-role-only", "f07-comments-only"]
)
async def test_silence_after_headers_is_not_seen(faulty: Lab, pieces: tuple[bytes, ...]) -> None:
    await faulty.limit(first_token_s=SHORT_S)
    faulty.bad.behave = streams(*pieces, then="silence")
    await is_answered_by_the_next(faulty)
    assert faulty.failures == 1
    assert faulty.gateway.standing("a").last_error.startswith("no first content")


async def test_f05_a_black_hole_is_not_seen_either(faulty: Lab) -> None:
    await faulty.limit(first_token_s=SHORT_S)
    faulty.proxy.faults = Faults(is_black_hole=True)
    await is_answered_by_the_next(faulty)
    assert faulty.failures == 1


@pytest.mark.parametrize("faults", [Faults(cut_after=21), Faults(stall_after=21)], ids=["f09-cut", "f10-stalled"])
async def test_a_stream_that_breaks_off_ends_with_an_error_after_exactly_its_tokens(
    faulty: Lab, faults: Faults
) -> None:
    await faulty.limit(idle_s=PAUSE_S)
    faulty.proxy.faults = faults
    answer = await faulty.ask()
    assert words_of(answer.text) == ALL[:20]
    assert "broke off" in ending(answer)["message"]
    assert answer.headers["x-orchestrate-attempts"] == "1"
    assert not faulty.good.seen, "nobody else is asked"
    assert faulty.failures == 1


async def test_f11_one_malformed_event_costs_no_token_of_the_others(faulty: Lab) -> None:
    faulty.proxy.faults = Faults(corrupt=31)
    answer = await faulty.ask()
    documents = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    assert len(documents) == 61, "the role, 59 words and the end; one came as it was"
    assert answer.text.count("data: [") == 2
    assert words_of(answer.text) == [*ALL[:29], *ALL[30:]]
    assert answer.text.rstrip().endswith("data: [DONE]")
    assert faulty.failures == 0
    assert not faulty.good.seen


async def test_f12_an_end_without_a_finish_is_an_error_and_a_failure(faulty: Lab) -> None:
    faulty.bad.behave = streams(ROLE, word(0), word(1))
    answer = await faulty.ask()
    assert words_of(answer.text) == ["w0", "w1"]
    assert "ended early" in ending(answer)["message"]
    assert faulty.failures == 1


async def test_f12_only_a_missing_done_is_put_right(faulty: Lab) -> None:
    faulty.proxy.faults = Faults(drops_done=True)
    answer = await faulty.ask()
    assert words_of(answer.text) == ALL
    assert answer.text.count("[DONE]") == 1
    assert faulty.failures == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 500 No\r\ncontent-type: text/html\r\ncontent-length: 14\r\n\r\n<html>oh</html",
        b"HTTP/1.1 502 No\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["html-500", "empty-502"],
)
async def test_f13_broken_errors_are_not_seen_while_somebody_can_answer(faulty: Lab, raw: bytes) -> None:
    faulty.proxy.faults = Faults(raw=raw)
    await is_answered_by_the_next(faulty)
    assert faulty.failures == 1
    faulty.good.behave = refuses(500, b"<html>", content_type="text/html")
    answer = await faulty.ask()
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "html" not in answer.text
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_f14_a_hundred_refusals_open_nothing_and_pass_unchanged(tmp_path: Path, status: int) -> None:
    document = {"error": {"message": "No, thank you.", "type": "invalid_request_error", "param": "n", "code": "no"}}
    async with FakeUpstream(refuses(status, document)) as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url})) as gateway, gateway.client() as client:
            for _ in range(100):
                answer = await client.post(CHAT_PATH, json=CHAT)
                assert (answer.status_code, answer.json()) == (status, document)
            assert gateway.counted("a") == (0, 0)
            assert len(fake.seen) == 100


@pytest.mark.parametrize(
    ("status", "headers", "message", "least_s"),
    [(429, {"retry_after": "60"}, "slow down", 50), (503, {}, "server busy", 0.1)],
    ids=["f15-retry-after", "f16-busy"],
)
async def test_who_has_enough_to_do_is_skipped_and_not_failed(
    faulty: Lab, status: int, headers: dict[str, str], message: str, least_s: float
) -> None:
    faulty.bad.behave = refuses(status, {"error": {"message": message, "type": "t", "code": None}}, **headers)
    await is_answered_by_the_next(faulty)
    standing = faulty.gateway.standing("a")
    left_s = standing.busy_until - faulty.gateway.gateway.services.now()
    assert left_s > least_s or status == 503
    assert faulty.failures == 0
    if status == 429:
        assert (await faulty.ask()).headers["x-orchestrate-attempts"] == "1", "it is not even asked"
        assert len(faulty.bad.seen) == 1
        (report, _) = (await faulty.gateway.config())["endpoints"]
        assert report["health"] == "saturated"
    else:
        faulty.bad.behave = answers(words=60)
        await until(lambda: _is_by(faulty, "a"), what="it is asked again once its second is over")


async def _is_by(faulty: Lab, endpoint: str) -> bool:
    return (await faulty.ask()).headers["x-orchestrate-endpoint"] == endpoint


@pytest.mark.parametrize("whole", [CHAT, STREAM], ids=["json", "stream"])
async def test_latency_alone_breaks_nothing(faulty: Lab, whole: dict[str, Any]) -> None:
    faulty.proxy.faults = Faults(latency_s=0.05)
    answer = await faulty.ask(whole)
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "a")
    assert faulty.proxy.connections >= 1
