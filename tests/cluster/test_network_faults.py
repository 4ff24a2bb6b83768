"""F02 and F03 with a real network: packets that vanish, a cable that is pulled, a host that is gone.

The gateway is in the test's own process; the bad endpoint, `a`, on a host of a lab, the good one, `b`, beside the
gateway.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Open
from tests.cluster.lab import REPOSITORY, Host, Lab, poll
from tests.fakes.upstream import FakeUpstream, answers
from tests.runtime.gateway.harness import CHAT, STREAM, LocalGateway, local_gateway, stack_document, until, words_of

CHAT_PATH = "/v1/chat/completions"
PORT = 8000
CONNECT_S = 3.0
QUIET_S = 6.0
"""The limits of the first token and between two tokens: `a` sends one every 20 ms."""
OPEN_S = 60.0
"""How long a breaker stays open: longer than any test here, which closes it by hand."""
MANY = 100_000
"""Words of a stream that nobody reads to its end."""


class Pair:
    """A gateway before `a` on another host and `b` on this one."""

    def __init__(self, host: Host, gateway: LocalGateway, good: FakeUpstream) -> None:
        self.host, self.gateway, self.good = host, gateway, good
        self.bad: subprocess.Popen[bytes] | None = None

    def start_bad(self, *, words: int) -> None:
        """Run `a` on its host."""
        arguments = ("--host", self.host.address, "--port", str(PORT), "--words", str(words), "--pause-s", "0.02")
        program = (sys.executable, "-m", "tests.fakes.upstream")
        self.bad = self.host.popen(*program, *arguments, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        poll(self._is_listening)

    def _is_listening(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host.address, PORT), timeout=1):
            return True
        return False

    async def ask(self, body: dict[str, Any]) -> httpx.Response:
        async with self.gateway.client() as client:
            return await client.post(CHAT_PATH, json=body)

    async def made(self, answer: httpx.Response) -> list[tuple[str, str]]:
        """Return who was asked for an answer, and what came of it."""
        async with self.gateway.client() as client:
            receipt = (await client.get(f"/admin/receipts/{answer.headers['x-orchestrate-request-id']}")).json()
        return [(each["endpoint"], each["outcome"]) for each in receipt["attempts"]]


@pytest.fixture
async def pair(lab: Lab, tmp_path: Path) -> AsyncIterator[Pair]:
    host = lab.add("one")
    timeouts = {"connect_s": CONNECT_S, "first_token_s": QUIET_S, "idle_s": QUIET_S}
    chat = {"timeouts": timeouts, "breaker": {"reset_timeout_s": OPEN_S}}
    async with FakeUpstream(answers()) as good:
        document = stack_document({"a": f"http://{host.address}:{PORT}", "b": good.url}, chat=chat)
        (tmp_path / "gateway").mkdir()
        async with local_gateway(tmp_path / "gateway", document) as gateway:
            made = Pair(host, gateway, good)
            yield made
            if made.bad is not None:
                made.bad.kill()
                made.bad.wait()


async def test_f02_dropped_packets_cost_one_connect_timeout_an_attempt_until_the_breaker_opens(pair: Pair) -> None:
    pair.start_bad(words=3)
    pair.host.run("nft", f"add table ip faults; add chain ip faults in {{ type filter hook input priority 0; }}; "
                  f"add rule ip faults in tcp dport {PORT} drop")  # fmt: skip
    for number in (1, 2, 3):
        begun = time.monotonic()
        answer = await pair.ask(CHAT if number == 2 else STREAM)
        assert time.monotonic() - begun >= CONNECT_S
        assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
        assert await pair.made(answer) == [("a", "connect timeout"), ("b", "ok")]
    assert isinstance(pair.gateway.standing("a").breaker, Open)
    assert pair.gateway.standing("a").stats.failures == 3
    assert await pair.made(await pair.ask(CHAT)) == [("b", "ok")], "nobody tries to connect any more"
    pair.host.run("nft", "flush table ip faults")
    async with pair.gateway.client() as client:
        assert (await client.post("/admin/endpoints/close", json={"endpoint": "a"})).status_code == 200

    async def is_back() -> bool:
        return (await pair.ask(CHAT)).headers["x-orchestrate-endpoint"] == "a"

    await until(is_back, what="it is asked again")


def pull_the_cable(host: Host) -> None:
    host.cut()


def switch_off(host: Host) -> None:
    # Its processes must not say goodbye.
    host.cut()
    host.shut_down()


@pytest.mark.parametrize("lose", [pull_the_cable, switch_off])
async def test_a_host_that_is_lost_between_two_requests_is_not_seen_by_clients(
    pair: Pair, lose: Callable[[Host], None]
) -> None:
    pair.start_bad(words=3)
    assert (await pair.ask(CHAT)).headers["x-orchestrate-endpoint"] == "a"
    lose(pair.host)
    answer = await pair.ask(STREAM)  # over the connection that was kept, where nothing says that it is dead
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "b")
    assert words_of(answer.text) == ["w0", "w1", "w2"]
    assert answer.text.endswith("data: [DONE]\n\n")
    (lost, last) = await pair.made(answer)
    assert lost[0] == "a"
    assert lost[1] in {"no first content", "connect timeout", "unreachable"}
    assert last == ("b", "ok")
    assert pair.gateway.counted("a")[1] == 1


@pytest.mark.parametrize("lose", [pull_the_cable, switch_off])
async def test_f03_a_host_that_is_lost_in_mid_stream_is_told_and_counted_once(
    pair: Pair, lose: Callable[[Host], None]
) -> None:
    pair.start_bad(words=MANY)
    got = b""
    async with pair.gateway.client() as client, client.stream("POST", CHAT_PATH, json=STREAM) as answer:
        assert answer.headers["x-orchestrate-endpoint"] == "a"
        is_lost = False
        async for piece in answer.aiter_bytes():
            got += piece
            if not is_lost and b'"w5 "' in got:
                is_lost = True
                lose(pair.host)
    events = got.decode().split("\n\n")
    assert events[-1] == ""
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert "The endpoint 'a' broke off in the middle of its answer: stalled." in error["message"]
    assert "[DONE]" not in got.decode()
    words = words_of(got.decode())
    assert words == [f"w{index}" for index in range(len(words))], "whole events, in their order, none missing"
    assert len(words) > 5
    await until(lambda: pair.gateway.in_flight == 0)
    assert pair.gateway.counted("a")[1] == 1
    assert not pair.good.seen, "nobody else is asked"
