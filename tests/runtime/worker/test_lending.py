"""When a model is loaded and dropped, with an engine that ends and answers when the test says so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.worker.described import Described
from runtime.worker.errors import UnavailableError
from runtime.worker.gate import Gate
from runtime.worker.on_demand import place, residence
from runtime.worker.on_demand.attempts import ROOM_POLL_S
from runtime.worker.on_demand.hosting import Call
from runtime.worker.on_demand.lending import OnDemand
from runtime.worker.on_demand.registry import Entry, Registry
from runtime.worker.settings import OnDemand as Terms
from runtime.worker.settings import Settings
from runtime.worker.threads import Progress
from schemas import exits
from schemas.messages import WorkerReadiness, WorkerStatus
from tests.fakes.upstream import Exchange, FakeUpstream

DEADLINE_S = 60.0
GIB = 1 << 30
WAITS = Call(wait_s=DEADLINE_S)
SETTINGS = Settings("", "m", "127.0.0.1", 0, None)


class Engine:
    """Loads when `is_quick` or `finish` is called, and ends when it is drained, unless a batch holds it."""

    def __init__(self) -> None:
        self.gate = Gate(SETTINGS, lambda: 0)
        self.failure: str | None = None
        self.is_alive = False
        self.is_quick = True
        self.is_held = False
        self.drains = 0

    def start(self) -> None:
        self.is_alive = True
        self.gate.follow(Progress("ready" if self.is_quick else "loading"))

    def readiness(self) -> WorkerReadiness:
        return self.gate.readiness()

    def status(self) -> WorkerStatus:
        raise NotImplementedError

    def describe(self) -> Described | None:
        return Described(64, frozenset({"completion"})) if self.is_alive else None

    async def drain(self) -> None:
        self.drains += 1
        self.is_alive = self.is_held


@dataclass
class Bench:
    """An on-demand host, the engines that it made, and what it told the process."""

    root: Path
    engines: list[Engine] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    prepare: Callable[[Engine], None] = lambda _: None
    hosts: list[OnDemand[Engine]] = field(default_factory=list)

    def host(self, **changes: int) -> OnDemand[Engine]:
        """Return a host that needs 1 GiB of the 1 GiB that there is."""
        directory = self.root / "model"
        directory.mkdir(exist_ok=True)
        (self.root / "budget.json").write_text('{"memory_gib": 1, "set_aside_gib": 0}')
        terms = Terms("mine", str(self.root / "room"), str(self.root / "budget.json"), memory_bytes=GIB)
        settings = Settings(str(directory), "m", "127.0.0.1", 0, None, on_demand=terms, **changes)  # type: ignore[arg-type]
        host = OnDemand(settings, terms, self._make, self.codes.append)
        host.start("http://127.0.0.1:9")
        self.hosts.append(host)
        return host

    def _make(self, _: Callable[[], None]) -> Engine:
        engine = Engine()
        self.prepare(engine)
        self.engines.append(engine)
        return engine

    def entries(self) -> list[Entry]:
        """Return what the workers of the node tell each other."""
        return [Entry.from_json(path.read_bytes()) for path in (self.root / "room" / "workers").glob("*.json")]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for host in bench.hosts:
        await host.drain()


async def until(look: Callable[[], object], what: str) -> None:
    """Poll until `look` is true; fail at the deadline."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not look():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


def phase(host: OnDemand[Engine]) -> str:
    return host.readiness().phase


def key(bench: Bench) -> str:
    return bench.entries()[0].key


async def use(host: OnDemand[Engine], call: Call = WAITS) -> None:
    async with host.holding(call):
        pass


async def test_clients_that_wait_for_room_try_for_it_together_and_seldom(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[float] = []

    async def refuse(exchange: Exchange) -> None:
        asked.append(time.monotonic())
        await exchange.answer(409, {})

    host, other = bench.host(), Registry(bench.root / "room", None)
    async with FakeUpstream(refuse) as upstream:
        entry = Entry(
            service="other", model="o", pid=1, url=upstream.url, key="k", memory_bytes=GIB, phase="ready",
            is_idle=True, used_at=1.0,
        )  # fmt: skip
        other.write(entry)
        waiting = [asyncio.create_task(use(host)) for _ in range(5)]
        await until(lambda: len(asked) >= 2, "it was tried again")
        assert asked[1] - asked[0] >= ROOM_POLL_S
        other.close()
        await asyncio.gather(*waiting)
    assert caplog.text.count("no room:") == 1


async def test_no_more_wait_for_a_model_than_it_will_have_places(bench: Bench) -> None:
    def slow(engine: Engine) -> None:
        engine.is_quick = False

    bench.prepare = slow
    host = bench.host(max_batch=2, max_waiting=1)
    waiting = [asyncio.create_task(use(host)) for _ in range(3)]
    await until(lambda: bench.engines[0].is_alive, "the load begins")
    for call in (WAITS, Call()):
        with pytest.raises(UnavailableError) as refused:
            await use(host, call)
        assert refused.value.code == "queue_full"
    bench.engines[0].gate.follow(Progress("ready"))
    await asyncio.gather(*waiting)
    await use(host)
    assert bench.engines[0].gate.meter.refused == 2


async def test_a_batch_that_nobody_waits_for_any_more_delays_the_drop_and_ends_nothing(bench: Bench) -> None:
    host = bench.host()
    await use(host)
    bench.engines[0].is_held = True
    dropping = asyncio.create_task(host.unload(key(bench)))
    await until(lambda: bench.engines[0].drains, "the drop begins")
    back = asyncio.create_task(use(host))  # it came back meanwhile, and is served after the drop
    for _ in range(5):
        await asyncio.sleep(0)
        assert (phase(host), bench.entries()[0].memory_bytes) == ("unloading", GIB)
    bench.engines[0].is_alive = False
    await back
    assert await dropping, "who asked for the memory was given it, although the model is loaded again since"
    assert (len(bench.engines), bench.codes, phase(host)) == (2, [], "ready")


async def test_a_thread_that_never_ends_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "UNLOAD_S", 0.3)
    host = bench.host()
    await use(host)
    bench.engines[0].is_held = True
    assert await host.unload(key(bench)) is False
    assert bench.codes == [exits.FAILED]
    assert (phase(host), len(bench.engines)) == ("unloading", 1)  # the memory stays claimed until the process is gone
    await host.drain()
    assert host.is_alive  # the process must not wait for the interpreter's own exit


async def test_the_end_does_not_wait_for_a_drop_that_takes_long(bench: Bench) -> None:
    host = bench.host()
    await use(host)
    bench.engines[0].is_held = True
    dropping = asyncio.create_task(host.unload(key(bench)))
    await until(lambda: bench.engines[0].drains, "the drop begins")
    async with asyncio.timeout(30):
        await host.drain()
    assert not await dropping
    assert host.is_alive
    assert bench.codes == []


async def test_a_load_that_never_ends_ends_the_process_with_a_code_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(engine: Engine) -> None:
        engine.is_quick, engine.is_held = False, True

    monkeypatch.setattr(place, "longest_s", lambda _: 0.2)
    bench.prepare = stuck
    host = bench.host()
    waiting = asyncio.create_task(use(host))
    await until(lambda: bench.codes, "the process is told to end")
    assert bench.codes == [exits.LOAD_STUCK]
    assert "did not end within" in caplog.text
    await host.drain()
    with pytest.raises(UnavailableError) as refused:
        await waiting
    assert refused.value.code == "shutting_down"
    assert host.is_alive


async def test_neighbours_are_told_when_the_use_begins_and_ends_and_nothing_after_the_end(bench: Bench) -> None:
    host = bench.host()
    await use(host)
    (path,) = (bench.root / "room" / "workers").glob("*.json")
    async with host.holding(Call()):
        told = path.stat().st_ino
        assert not bench.entries()[0].is_idle
        for _ in range(3):
            async with host.holding(Call()):
                pass
        assert path.stat().st_ino == told  # every entry is a file of its own
        assert not bench.entries()[0].is_idle
    assert bench.entries()[0].is_idle
    async with host.holding(Call()):
        await host.drain()
    assert bench.entries() == []


async def test_an_idle_model_goes_when_less_is_left_to_those_on_demand_and_one_in_use_when_it_is_idle(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "LOOK_S", 0.01)
    host = bench.host()
    async with host.holding(WAITS):
        (bench.root / "budget.json").write_text('{"memory_gib": 1, "set_aside_gib": 0.5}')
        assert host.readiness().phase == "ready"
    await until(lambda: host.readiness().phase == "cold", "the model to go")
    assert bench.entries()[0].memory_bytes == 0
    (bench.root / "budget.json").write_text('{"memory_gib": 1, "set_aside_gib": 0}')
    async with host.holding(WAITS):
        assert len(bench.engines) > 1


async def test_what_a_load_has_shown_of_the_model_is_told_when_it_is_gone_too(bench: Bench) -> None:
    host = bench.host()
    assert (host.describe(), host.expires_at()) == (None, None)
    await use(host)
    assert host.describe() is not None
    assert host.expires_at() is None, "nothing drops it but another model"
    assert await host.unload(key(bench))
    assert (phase(host), host.describe()) == ("cold", Described(64, frozenset({"completion"})))
