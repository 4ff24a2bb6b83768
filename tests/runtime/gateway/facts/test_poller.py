"""Servers are asked about their models, beside the requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.api import ollama as ollama_api
from runtime.gateway.facts import names, poller
from runtime.gateway.facts.known import Facts
from runtime.gateway.routing.table import EndpointIdentity
from tests.fakes import engines
from tests.fakes.engines import FakeEngine
from tests.fakes.upstream import Exchange, FakeUpstream
from tests.ports import free_port
from tests.runtime.gateway.harness import (
    CHAT,
    LocalGateway,
    instance,
    local_gateway,
    service_document,
    stack_document,
    until,
)

SHOWN = {"capabilities": ["completion", "tools"], "model_info": {"general.architecture": "llama"}}


def ollama(*models: str, loaded: tuple[str, ...] = ()) -> dict[str, Any]:
    return engines.ollama(*models, loaded=loaded) | {"/api/show": dict.fromkeys(models, SHOWN)}


def facts(gateway: LocalGateway, model: str) -> Facts:
    book = gateway.gateway.services.facts
    return next((known for identity, known in book.known.items() if identity.model == model), Facts())


async def known(gateway: LocalGateway, model: str) -> Facts:
    await until(lambda: facts(gateway, model).is_known, what=f"something is known of {model}")
    return facts(gateway, model)


async def now(gateway: LocalGateway) -> None:
    """Ask all servers once more."""
    await gateway.gateway.services.fact_poller.refresh(0.0, 60.0)


def document(**helpers: FakeUpstream) -> dict[str, Any]:
    """Return a stack with Ollama boxes, each with the model `model-NAME`, in the role `chat` and the alias `any`."""
    made = stack_document({name: fake.url for name, fake in helpers.items()})
    for helper in made["helpers"].values():
        helper["api"] = "ollama"
    return made | {"aliases": {"any": [f"model-{name}" for name in helpers]}}


async def test_the_models_list_says_what_the_servers_say(tmp_path: Path) -> None:
    vllm, bert = FakeEngine(engines.vllm("model-a")), FakeEngine(engines.tei("model-b"))
    async with vllm, bert, FakeUpstream() as silent:
        made = stack_document({"a": vllm.url, "c": silent.url})
        made["helpers"]["b"] = {"url": bert.url, "api": "tei", "models": {"model-b": {"kind": "embedding"}}}
        made["roles"]["embedding"] = {"endpoints": {"b": {"helper": "b", "model": "model-b"}}}
        async with local_gateway(tmp_path, made, asks_servers=True) as gateway, gateway.client() as client:
            await known(gateway, "model-a")
            await known(gateway, "model-b")
            rows = {row["id"]: row for row in (await client.get("/v1/models")).json()["data"]}
            assert (rows["chat"]["context_length"], rows["chat"]["max_model_len"]) == (32768, 32768)
            assert (rows["model-b"]["context_length"], rows["model-b"]["capabilities"]) == (512, ["embedding"])
            assert "context_length" not in rows["model-c"], "nobody knows, nobody guesses"
            assert {"id", "object", "created", "owned_by"} <= rows["model-c"].keys()
            one = (await client.get("/v1/models/model-a")).json()
            assert one == rows["model-a"]


async def test_an_alias_prefers_whose_model_is_in_memory_as_that_changes(tmp_path: Path) -> None:
    first, second = FakeEngine(ollama("model-a")), FakeEngine(ollama("model-b", loaded=("model-b",)))

    async def answered_by(gateway: LocalGateway) -> str:
        async with gateway.client() as client:
            answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "any"})
            assert answer.status_code == 200
            return answer.headers["x-orchestrate-endpoint"]

    async with first, second:
        async with local_gateway(tmp_path, document(a=first, b=second), asks_servers=True) as gateway:
            services = gateway.gateway.services
            assert (await known(gateway, "model-a")).is_loaded is False
            assert (await known(gateway, "model-b")).is_loaded is True
            assert await answered_by(gateway) == "b"
            first.documents, second.documents = ollama("model-a", loaded=("model-a",)), ollama("model-b")
            await now(gateway)
            assert [held.name for held in names.loaded(services.live.table, services.facts)] == ["model-a"]  # type: ignore[arg-type]
            assert await answered_by(gateway) == "a"
            first.documents = ollama("model-a")
            await now(gateway)
            assert await answered_by(gateway) == "a", "where none is loaded, the first of them loads it"


async def test_a_load_that_a_request_shows_is_looked_at_soon(tmp_path: Path) -> None:
    async with FakeEngine(ollama("model-a")) as fake:
        async with local_gateway(tmp_path, document(a=fake), asks_servers=True) as gateway, gateway.client() as client:
            assert (await known(gateway, "model-a")).is_loaded is False
            fake.documents = ollama("model-a", loaded=("model-a",))
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            await until(lambda: facts(gateway, "model-a").is_loaded, what="the load is seen")


async def test_a_load_that_a_request_shows_is_told_to_who_asks_right_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_api, "ASKED_S", 60.0)
    monkeypatch.setattr(ollama_api, "FRESH_S", 3600.0)
    monkeypatch.setattr(poller, "SOON_S", 3600.0)
    async with FakeEngine(ollama("model-a")) as fake:
        async with local_gateway(tmp_path, document(a=fake), asks_servers=True) as gateway, gateway.client() as client:
            assert (await known(gateway, "model-a")).is_loaded is False
            assert (await client.get("/api/ps")).json()["models"] == []
            fake.documents = ollama("model-a", loaded=("model-a",))
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert [one["name"] for one in (await client.get("/api/ps")).json()["models"]] == ["model-a:latest"]


async def test_a_server_is_asked_once_for_all_its_models_and_what_stays_the_same_is_not_asked_again(
    tmp_path: Path,
) -> None:
    async with FakeEngine(ollama("model-a", "model-b")) as fake:
        made = document(a=fake)
        made["helpers"]["a"]["models"]["model-b"] = {}
        async with local_gateway(tmp_path, made, asks_servers=True) as gateway:
            await known(gateway, "model-b")
            await now(gateway)
            asked = fake.questions
            assert asked == ["/api/tags", "/api/ps", "/api/show", "/api/show", "/api/tags", "/api/ps"]
            assert fake.seen == [], "nothing was generated for it"


async def test_facts_and_questions_survive_reloads_and_end_with_their_table(tmp_path: Path) -> None:
    async with FakeEngine(ollama("model-a")) as fake, FakeEngine(engines.vllm("model-b")) as other:
        async with local_gateway(tmp_path, document(a=fake), asks_servers=True) as gateway:
            await known(gateway, "model-a")
            for number in range(30):
                await gateway.reload({**gateway.document, "aliases": {f"edit-{number}": ["chat"]}})
                assert facts(gateway, "model-a").is_known
            await until(lambda: tasks().count("FactPoller._run") == 1, what="the earlier ones have ended")
            assert fake.questions.count("/api/tags") == 1, "a reload is no reason to ask again"
            await gateway.reload(stack_document({"b": other.url}))
            assert (await known(gateway, "model-b")).context_length == 32768
            assert not facts(gateway, "model-a").is_known
            await until(lambda: not fake.open_connections, what="no connection is left")
        await until(lambda: not tasks(), what="no task is left")


async def test_servers_that_are_dead_stuck_or_mad_are_unknown_and_hold_up_nobody(tmp_path: Path) -> None:
    async def hangs(exchange: Exchange) -> None:
        await exchange.silence()

    async def raves(exchange: Exchange) -> None:
        await exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[[[[[[[[[")

    stuck, mad, well = FakeEngine({"/v1/models": hangs}), FakeEngine({"/v1/models": raves}), engines.vllm("model-d")
    async with stuck, mad, FakeEngine(well) as good:
        urls = {"a": f"http://127.0.0.1:{free_port()}", "b": stuck.url, "c": mad.url, "d": good.url}
        async with local_gateway(tmp_path, stack_document(urls), asks_servers=True) as gateway:
            assert (await known(gateway, "model-d")).context_length == 32768
            poller = gateway.gateway.services.fact_poller

            async def have_all_been_asked() -> bool:
                await poller.refresh(0.0, 0.2)
                return bool(stuck.questions and good.questions) and len(mad.questions) >= 2

            await until(have_all_been_asked, what="all were asked, the mad one again")
            for model in ("model-a", "model-b", "model-c"):
                assert facts(gateway, model) == Facts()


async def test_details_that_could_not_be_shown_are_asked_for_again(tmp_path: Path) -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.answer(500, {"error": "out of memory"})

    documents = ollama("model-a")
    async with FakeEngine(documents | {"/api/show": {"model-a": fails}}) as fake:
        async with local_gateway(tmp_path, document(a=fake), asks_servers=True) as gateway:
            assert not (await known(gateway, "model-a")).can
            fake.documents = documents
            await now(gateway)
            assert "tools" in facts(gateway, "model-a").can
            await now(gateway)
            assert fake.questions.count("/api/show") == 2, "what was shown is kept"


async def test_a_server_that_ends_is_no_longer_said_to_hold_a_model(tmp_path: Path) -> None:
    fake = FakeEngine(ollama("model-a", loaded=("model-a",)))
    await fake.start()
    async with local_gateway(tmp_path, document(a=fake), asks_servers=True) as gateway:
        assert (await known(gateway, "model-a")).is_loaded
        await fake.stop()
        await now(gateway)
        gone = facts(gateway, "model-a")
        assert (gone.is_loaded, gone.context_length) == (None, 4096)
        assert facts(gateway, "model-a").expires_at is None


async def test_a_server_that_loads_is_asked_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "INTERVAL_S", 3600.0)
    monkeypatch.setattr(poller, "LOADING_S", 0.05)

    async def loads(exchange: Exchange) -> None:
        await exchange.answer(503, {"error": {"message": "Loading model", "code": 503}})

    loaded = engines.llama_cpp("model-a")
    listed = engines.openai_list("model-a", owner="llamacpp", meta=None)
    async with FakeEngine({"/v1/models": listed, "/props": loads}) as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url}), asks_servers=True) as gateway:
            assert (await known(gateway, "model-a")).is_loaded is False
            fake.documents = loaded
            await until(lambda: facts(gateway, "model-a").is_loaded, what="the load is seen")
            assert facts(gateway, "model-a").context_length == 4096


async def test_a_worker_that_was_started_anew_at_its_address_is_asked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "INTERVAL_S", 3600.0)

    def worker(context: int) -> dict[str, Any]:
        return {"/v1/models": engines.openai_list("model-a", owner="orchestrate", context_length=context)}

    async with FakeEngine(worker(2048)) as fake:
        async with local_gateway(tmp_path, service_document("a"), asks_servers=True) as gateway:
            await gateway.publish(instance("a", fake.url))
            assert (await known(gateway, "model-a")).context_length == 2048
            fake.documents = worker(4096)
            await gateway.publish(instance("a", fake.url))
            await until(lambda: facts(gateway, "model-a").context_length == 4096, what="its context is known")


async def test_who_wants_to_know_how_it_is_now_does_not_get_what_was_asked_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "INTERVAL_S", 3600.0)
    told = asyncio.Event()

    async def tells_late(exchange: Exchange) -> None:
        await told.wait()
        await exchange.answer(200, engines.openai_list("model-a", owner="vllm", max_model_len=1))

    async with FakeEngine({"/v1/models": tells_late}) as fake:
        async with local_gateway(tmp_path, stack_document({"a": fake.url}), asks_servers=True) as gateway:
            await until(lambda: fake.questions, what="it is asked")
            asking = asyncio.create_task(now(gateway))
            await asyncio.sleep(0)
            fake.documents = engines.vllm("model-a")
            told.set()
            await asking
            assert facts(gateway, "model-a").context_length == 32768


async def test_a_table_may_change_at_any_moment_of_a_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeEngine(engines.vllm("model-a")) as fake, FakeEngine(engines.vllm("model-b")) as other:
        async with local_gateway(tmp_path, stack_document({"a": fake.url}), asks_servers=True) as gateway:
            await known(gateway, "model-a")
            first = gateway.gateway.services.live.table
            await gateway.reload(stack_document({"b": other.url}))
            await known(gateway, "model-b")
            second = gateway.gateway.services.live.table
            poller = gateway.gateway.services.fact_poller
            assert first is not None and second is not None
            for turns in range(150):
                for table in (first, second):
                    poller.adopt(table)
                    for _ in range(turns % 50):
                        await asyncio.sleep(0)
            await until(lambda: tasks().count("FactPoller._run") == 1, what="the earlier ones have ended")
            assert facts(gateway, "model-a") == Facts(), "what came too late is not kept"
            assert not [record for record in caplog.records if "failed" in record.message]


async def test_a_key_goes_to_its_server_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BOX_KEY", "secret-of-the-box")
    async with FakeEngine(engines.vllm("model-a"), key="secret-of-the-box") as keyed, FakeUpstream() as other:
        made = stack_document({"a": keyed.url, "b": other.url})
        made["helpers"]["a"]["key"] = "${env:BOX_KEY}"
        async with local_gateway(tmp_path, made, asks_servers=True) as gateway:
            assert (await known(gateway, "model-a")).context_length == 32768
            assert not [identity for identity in _identities(gateway) if "secret" in repr(identity)]


def tasks() -> list[str]:
    running = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    return [name for name in running if name.startswith("FactPoller")]


def _identities(gateway: LocalGateway) -> list[EndpointIdentity]:
    return list(gateway.gateway.services.facts.known)
