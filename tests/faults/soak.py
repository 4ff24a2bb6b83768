"""I/O: a soak: a gateway before endpoints that go wrong at random, edited all the time, and clients that come and go.

`python -m tests.faults.soak [--seconds 600] [--seed 1]`. Whatever happens, a client gets a whole answer of one
endpoint, or an error in the API's own shape; and when all is quiet again, nothing is left of what has happened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.upstream import (
    DONE,
    FINISH,
    ROLE,
    Behaviour,
    Exchange,
    FakeUpstream,
    chunk_document,
    completion,
    event,
    refuses,
    resets,
    stalls,
)
from tests.runtime.gateway.harness import LocalGateway, local_gateway, stack_document, until

NAMES = ("a", "b", "c")
WORDS = 20
CLIENTS = 24
PATH = "/v1/chat/completions"
RESTART = b": restart\n"
"""Says in a stream that the answer begins anew, at another endpoint."""
QUIET_S = 60.0
"""How long the gateway may take to come to rest."""
SPARE_DESCRIPTORS = 40
"""Idle connections to endpoints, which the gateway keeps for a while."""


class SoakError(AssertionError):
    """A promise was broken; says which."""


def said(name: str, index: int) -> bytes:
    return event(chunk_document({"content": f"{name}{index} "}))


def well(name: str, rng: random.Random) -> Behaviour:
    """Answer properly, slowly or at once."""

    async def behave(exchange: Exchange) -> None:
        pause_s = rng.choice((0.0, 0.0, 0.002, 0.01))
        if exchange.seen.document.get("stream") is not True:
            await asyncio.sleep(pause_s * WORDS)
            await exchange.answer(200, completion(exchange.seen.path, "".join(f"{name}{i} " for i in range(WORDS))))
            return
        await exchange.begin_stream()
        await exchange.chunk(ROLE)
        for index in range(WORDS):
            await asyncio.sleep(pause_s)
            await exchange.chunk(said(name, index))
        await exchange.chunk(FINISH + DONE)
        await exchange.end_stream()

    return behave


def breaks_off(name: str, rng: random.Random) -> Behaviour:
    """Begin an answer and go wrong in the middle."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for index in range(rng.randrange(WORDS)):
            await exchange.chunk(said(name, index))
        match rng.choice(("reset", "silence", "hang up", "garbage", "no finish")):
            case "reset":
                exchange.reset()
            case "silence":
                await exchange.silence()
            case "garbage":
                await exchange.chunk(b"data: {half an event")
                exchange.hang_up()
            case "no finish":
                await exchange.end_stream()
            case _:
                exchange.hang_up()

    return behave


def behaviours(name: str, rng: random.Random) -> list[Behaviour]:
    """Return what an endpoint may do; most of the time it is well."""
    bad = [
        breaks_off(name, rng),
        breaks_off(name, rng),
        refuses(500, b"<html>oops</html>", content_type="text/html"),
        refuses(429, retry_after="1"),
        refuses(503, {"error": {"message": "server busy", "type": "t", "code": None}}),
        refuses(404, {"error": {"message": "model not found", "type": "t", "code": "model_not_found"}}),
        refuses(400),
        stalls,
        resets,
    ]
    return [well(name, rng)] * len(bad) * 2 + bad


def document(fakes: dict[str, FakeUpstream], rng: random.Random) -> dict[str, Any]:
    """Return one of many valid stacks with these endpoints."""
    listed = [name for name in NAMES if rng.random() < 0.9] or ["a"]
    rng.shuffle(listed)
    return stack_document(
        {name: fakes[name].url for name in listed},
        chat={
            "timeouts": {"connect_s": 1.0, "first_token_s": 1.0, "idle_s": 1.0, "total_s": 4.0, "queue_s": 2.0},
            "limits": {"max_in_flight": rng.choice((2, 8, 64)), "queue": rng.choice((0, 4, 64))},
            "breaker": {"failure_threshold": rng.choice((1, 3, 5)), "reset_timeout_s": rng.choice((1, 2))},
            **({"midstream": rng.choice(("restart", "continue"))} if rng.random() < 0.3 else {}),
        },
        aliases={"other": ["chat"]} if rng.random() < 0.5 else {},
    )


def judge_stream(raw: bytes) -> str:
    """Return what a stream that was read to its end is; raises `SoakError` where it is neither whole nor honest."""
    *abandoned, last = raw.split(RESTART)
    for part in abandoned:
        _words(part)
    words = _words(last)
    data = [part[6:] for part in last.decode().split("\n\n") if part.startswith("data: ")]
    is_failed = any(part.startswith('{"error"') for part in data)
    is_done = data[-1:] == ["[DONE]"]
    if is_done == is_failed:
        raise SoakError(f"neither whole nor honest: {data[-2:]}")
    if is_done and len(words) != WORDS:
        raise SoakError(f"cut short, and told to be whole: {words}")
    return "streamed" if is_done else "error in the stream"


def _words(raw: bytes) -> list[str]:
    """Return the words of one endpoint's answer; raises `SoakError` where they are not as it said them."""
    data = [part[6:] for part in raw.decode().split("\n\n") if part.startswith("data: {")]
    contents = [choice["delta"].get("content") for part in data for choice in _choices(part)]
    words = [content.strip() for content in contents if content]
    if len({word[0] for word in words}) > 1:
        raise SoakError(f"an answer of two endpoints: {words}")
    if words != [f"{words[0][0]}{index}" for index in range(len(words))]:
        raise SoakError(f"words are lost or doubled: {words}")
    return words


def _choices(part: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(part).get("choices", [])
    except ValueError:
        return []  # what an endpoint garbled is passed on as it came
    return found


def judge_whole(answer: httpx.Response) -> str:
    """Return what an answer that is no stream is; raises `SoakError` where it is none."""
    document = answer.json()
    if answer.status_code == 200:
        words = document["choices"][0]["message"]["content"].split()
        if words != [f"{words[0][0]}{index}" for index in range(WORDS)]:
            raise SoakError(f"no whole answer: {words}")
        return "answered"
    if not isinstance(document["error"]["message"], str):
        raise SoakError(f"no error of the API: {document}")
    return f"status {answer.status_code}"


class Soak:
    """One run."""

    def __init__(self, gateway: LocalGateway, fakes: dict[str, FakeUpstream], seed: int) -> None:
        self._gateway = gateway
        self._fakes = fakes
        self._rng = random.Random(seed)
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Let everything go wrong for so long, then look whether nothing is left of it; raises `SoakError`."""
        await self._one_of_each()
        tasks, descriptors = len(asyncio.all_tasks()), _descriptors()
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        client = httpx.AsyncClient(base_url=self._gateway.url, timeout=60, trust_env=False, limits=limits)
        async with client, asyncio.TaskGroup() as group:
            group.create_task(self._endpoints(end))
            group.create_task(self._edits(end))
            for _ in range(CLIENTS):
                group.create_task(self._client(client, end))
        await self._rest(tasks, descriptors)

    async def _one_of_each(self) -> None:
        """Answer something first, so that what every process needs once is there when things are counted."""
        async with self._gateway.client() as client:
            for is_stream in (True, False):
                await client.post(PATH, json=_question(is_stream))

    async def _endpoints(self, end: float) -> None:
        while time.monotonic() < end:
            name = self._rng.choice(NAMES)
            self._fakes[name].behave = self._rng.choice(behaviours(name, self._rng))
            await asyncio.sleep(self._rng.uniform(0.02, 0.3))

    async def _edits(self, end: float) -> None:
        async with self._gateway.client() as client:
            while time.monotonic() < end:
                await asyncio.sleep(self._rng.uniform(0.05, 0.4))
                match self._rng.randrange(4):
                    case 0:
                        name = self._rng.choice(NAMES)
                        verb = self._rng.choice(("isolate", "close", "close", "close", "probe"))
                        await client.post(f"/admin/endpoints/{verb}", json={"endpoint": name})
                        self.counts[f"{verb} by hand"] += 1
                    case _:
                        await self._gateway.reload(document(self._fakes, self._rng))
                        self.counts["edits"] += 1

    async def _client(self, client: httpx.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            self.counts[await self._ask(client)] += 1

    async def _ask(self, client: httpx.AsyncClient) -> str:
        is_stream, leaves = self._rng.random() < 0.7, self._rng.random() < 0.15
        limit_s = self._rng.uniform(0.0, 0.3) if leaves else 60.0
        try:
            async with asyncio.timeout(limit_s), client.stream("POST", PATH, json=_question(is_stream)) as answer:
                raw = await answer.aread()
        except TimeoutError:
            if not leaves:
                raise SoakError("no end of an answer within a minute") from None
            return "left"
        if is_stream and answer.status_code == 200:
            return judge_stream(raw)
        return judge_whole(answer)

    async def _rest(self, tasks: int, descriptors: int) -> None:
        """Wait until all is quiet, and look whether anything was left behind."""
        for name, fake in self._fakes.items():
            fake.behave = well(name, random.Random(0))
        services = self._gateway.gateway.services
        calm: dict[str, Callable[[], bool]] = {
            "requests in flight": lambda: self._gateway.in_flight == 0,
            "requests in queues": lambda: not sum(services.queues.depths.values()),
            "held requests": lambda: not sum(services.holds.held.values()),
            "tasks": lambda: len(asyncio.all_tasks()) <= tasks + len(NAMES) + 2,  # a probe may be on its way
            "descriptors": lambda: _descriptors() <= descriptors + SPARE_DESCRIPTORS,
        }
        for what, is_calm in calm.items():
            await until(is_calm, within_s=QUIET_S, what=f"no {what} left")
        await self._gateway.reload(stack_document({name: fake.url for name, fake in self._fakes.items()}))
        async with self._gateway.client() as client:
            for name in NAMES:
                await client.post("/admin/endpoints/close", json={"endpoint": name})
            for is_stream in itertools.islice(itertools.cycle((True, False)), 20):
                answer = await client.post(PATH, json=_question(is_stream))
                if answer.status_code != 200:
                    raise SoakError(f"not well again when all endpoints are: {answer.text}")


def _question(is_stream: bool) -> dict[str, Any]:
    return {
        "model": "chat",
        "messages": [{"role": "user", "content": "go on"}],
        **({"stream": True} if is_stream else {}),
    }


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else 0


async def soak(place: Path, seconds: float, seed: int) -> Counter[str]:
    """Run a soak; return what happened how often. Raises `SoakError`."""
    async with contextlib.AsyncExitStack() as stack:
        fakes = {name: await stack.enter_async_context(FakeUpstream(well(name, random.Random(seed)))) for name in NAMES}
        first = stack_document({name: fake.url for name, fake in fakes.items()})
        gateway = await stack.enter_async_context(local_gateway(place, first))
        run = Soak(gateway, fakes, seed)
        await run.run(seconds)
        return run.counts


def main() -> int:
    """Run and print what happened; return 0, or 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        try:
            counts = asyncio.run(soak(Path(place), given.seconds, given.seed))
        except* SoakError as group:
            broken += [str(error) for error in group.exceptions]
    if broken:
        print(f"seed {given.seed}: BROKEN: {broken[0]}")
        return 1
    print(f"seed {given.seed}, {given.seconds:g} s: every promise was kept")
    for what, count in counts.most_common():
        print(f"{count:>8} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
