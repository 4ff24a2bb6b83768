"""Helpers asked over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from orchestrator.helpers.observe import BODY_LIMIT, observe
from orchestrator.observed import HelperSeen, HelperSilent
from orchestrator.readiness import client
from schemas.stack import Helper
from tests.fakes import engines
from tests.fakes.engines import FakeEngine, FakeOllama
from tests.fakes.upstream import FakeUpstream, stalls


def declared(url, *, api="openai", key=None, models=("m",)):
    fields = {"url": url, "api": api, "models": {name: {} for name in models}}
    return Helper.model_validate(fields | ({"key": key} if key else {}))


async def ask(helper, environ=None):
    async with client() as http:
        return (await observe(http, {"box": helper}, environ or {}))["box"]


@pytest.mark.parametrize("api", ["openai", "ollama", "tei", "infinity", "worker"])
@pytest.mark.parametrize("engine", sorted(engines.ENGINES))
async def test_a_program_is_found_out_whatever_the_files_say(engine, api):
    async with engines.ENGINES[engine]("some-model") as fake:
        seen = await ask(declared(fake.url, api=api))
    names = {"llama.cpp": "llama.cpp", "lm-studio": "lm studio", "mlx-lm": "mlx_lm.server", "local-ai": "localai"}
    assert isinstance(seen, HelperSeen)
    assert seen.engine == names.get(engine, engine)
    assert "some-model" in seen.present


async def test_a_declared_ollama_is_asked_three_questions_only():
    async with FakeOllama("m:latest", loaded=("m:latest",)) as fake:
        seen = await ask(declared(fake.url, api="ollama"))
    assert seen.loaded == {"m:latest"}
    assert sorted(request.path for request in fake.seen) == ["/api/ps", "/api/tags", "/api/version"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_url_may_end_with_v1(suffix):
    async with FakeEngine(engines.vllm("m")) as fake:
        seen = await ask(declared(fake.url + suffix))
    assert seen.engine == "vllm"


async def test_a_key_goes_to_its_own_helper_only():
    async with FakeEngine(engines.vllm("m"), key="sesame") as locked, FakeEngine(engines.vllm("m")) as open_one:
        helpers = {"a": declared(locked.url, key="${env:BOX_KEY}"), "b": declared(open_one.url)}
        async with client() as http:
            seen = await observe(http, helpers, {"BOX_KEY": "sesame"})
    assert seen["a"].engine == seen["b"].engine == "vllm"
    assert all("authorization" not in request.headers for request in open_one.seen)


async def test_a_wrong_or_missing_key_is_told():
    async with FakeEngine(engines.vllm("m"), key="sesame") as fake:
        wrong = await ask(declared(fake.url, key="other"))
        unset = await ask(declared(fake.url, key="${env:BOX_KEY}"))
    assert (wrong.kind, unset.kind) == ("key", "key")
    assert "sesame" not in wrong.reason
    assert "other" not in wrong.reason.replace("another", "")
    assert "BOX_KEY is not set" in unset.reason


async def test_a_redirect_is_not_followed_with_the_key():
    async def redirect(exchange):
        await exchange.answer(302, b"", location=f"{elsewhere.url}/v1/models")

    async with FakeEngine(engines.vllm("m")) as elsewhere, FakeUpstream(redirect) as fake:
        silent = await ask(declared(fake.url, key="sesame"))
    assert silent.kind == "stranger"
    assert elsewhere.seen == []


async def test_an_endless_list_is_not_read_to_its_end():
    async def flood(exchange):
        await exchange.begin_stream()
        while True:
            await exchange.chunk(b"x" * 65536)
            sent.append(65536)

    sent = []
    async with FakeUpstream(flood) as fake:
        silent = await ask(declared(fake.url, api="worker"))
    assert silent.kind == "stranger"
    assert sum(sent) < 40 * BODY_LIMIT


async def test_nobody_at_the_port_is_told():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        silent = await ask(declared(f"http://127.0.0.1:{held.getsockname()[1]}"))
    assert silent.kind == "refused"
    assert "its own loopback address only" in silent.reason


async def test_an_unknown_name_is_told(monkeypatch):
    monkeypatch.setenv("RES_OPTIONS", "attempts:1 timeout:1")  # a server of names that is busy is asked no second time
    silent = await ask(declared("http://no-such-host.invalid:1"))
    assert silent.kind == "unknown host"
    assert "no-such-host.invalid" in silent.reason


async def test_an_address_that_is_none_is_told():
    seen = await ask(declared("http://192.168.1.999:8000"))
    assert isinstance(seen, HelperSilent)
    assert "192.168.1.999" in seen.reason and "helpers.box.url" in seen.reason


async def test_a_web_server_is_no_inference_server():
    async def page(exchange):
        await exchange.answer(200, b"<html>welcome</html>", content_type="text/html")

    async with FakeUpstream(page) as fake:
        silent = await ask(declared(fake.url))
    assert isinstance(silent, HelperSilent)
    assert silent.kind == "stranger"


async def test_tls_to_a_plain_port_is_told():
    async def plain(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        silent = await ask(declared(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    assert silent.kind == "tls"


async def test_a_helper_that_stalls_delays_no_other():
    async with FakeUpstream(stalls) as stuck, FakeEngine(engines.vllm("m")) as well, client() as http:
        looking = asyncio.create_task(observe(http, {"a": declared(stuck.url), "b": declared(well.url)}, {}))
        seen = await asyncio.wait_for(looking, 60)
    assert seen["b"].engine == "vllm"
    assert isinstance(seen["a"], HelperSilent)
    assert "answers nothing" in seen["a"].reason


async def test_broken_json_is_survived():
    async def broken(exchange):
        await exchange.answer(200, b"[" * 100_000 if exchange.seen.path == "/props" else b'{"data": [')

    async with FakeUpstream(broken) as fake:
        assert (await ask(declared(fake.url))).kind == "stranger"


async def test_a_loading_llama_cpp_is_loading():
    async def loading(exchange):
        error = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
        await exchange.answer(503, json.dumps(error).encode())

    async with FakeUpstream(loading) as fake:
        assert (await ask(declared(fake.url))).kind == "loading"


async def test_a_llama_cpp_that_has_loaded_between_two_questions_is_not_without_models():
    async def loads_meanwhile(exchange):
        if exchange.seen.path == "/props":
            await exchange.answer(200, {"build_info": "b1", "default_generation_settings": {"n_ctx": 2048}})
        else:
            await exchange.answer(503, {"error": {"message": "Loading model", "code": 503}})

    async with FakeUpstream(loads_meanwhile) as fake:
        assert (await ask(declared(fake.url))).kind == "loading"
