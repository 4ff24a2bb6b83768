"""Bad requests in the words of every protocol: refused in its own shape, by name, and the next one is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from runtime.gateway.openapi.document import OPERATIONS
from runtime.gateway.openapi.errors import shape_of
from runtime.gateway.openapi.operations import Operation
from runtime.gateway.security.scopes import NEEDS
from tests.fakes.everything import answer_everything
from tests.fakes.upstream import FakeUpstream
from tests.runtime.gateway.harness import LocalGateway, local_gateway
from tests.runtime.gateway.openapi.described import check, document, validator
from tests.runtime.gateway.test_bodies import BAD_JSON

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = {each.path: each for each in OPERATIONS if each.body and NEEDS[each.method, each.path] == "inference"}
"""Every path that models answer."""
ONE_OF_EACH = ("/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses", "/v1/messages", "/api/chat")
"""Paths that read their bodies in ways of their own."""
KINDS: tuple[Any, ...] = (None, True, 0, -7, 0.5, 2**70, "", "text", [], ["text"], [[1]], {}, {"a": {"b": [None]}})
"""Values of every type."""
TOOLS = {
    "/v1/chat/completions": {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    "/v1/responses": {"type": "function", "name": "f", "parameters": {"type": "object"}},
    "/v1/messages": {"name": "f", "input_schema": {"type": "object"}},
    "/v1/messages/count_tokens": {"name": "f", "input_schema": {"type": "object"}},
    "/api/chat": {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
}
"""A tool, in the words of the paths that know tools."""
URL = "http://169.254.169.254/latest/meta-data"
"""What a client must not be able to have fetched from inside of the network."""
PICTURES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]},
        "messages[0].content[0].image_url",
    ),
    "/v1/responses": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]},
        "input[0].content[0].image_url",
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}]},
        "messages[0].content[0].source",
    ),
    "/api/chat": ({"messages": [{"role": "user", "content": "?", "images": [URL]}]}, "messages[0].images[0]"),
    "/api/generate": ({"prompt": "?", "images": [URL]}, "images[0]"),
}
"""A picture that is an address, by path, and the parameter that it is."""
CONFLICTS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"stream_options": {"include_usage": True}},
        {"max_tokens": 1, "max_completion_tokens": 2},
        {"top_logprobs": 2},
        {"tool_choice": "required"},
        {"tools": [TOOLS["/v1/chat/completions"]], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
    "/v1/completions": [{"stream_options": {"include_usage": True}}, {"max_tokens": 1, "max_completion_tokens": 2}],
    "/v1/responses": [
        {"stream_options": {}},
        {"tool_choice": "required"},
        {"previous_response_id": "resp_1"},
        {"background": True},
        {"input": []},
    ],
    "/v1/embeddings": [{"stream": True}],
    "/v1/rerank": [{"stream": True}],
    "/v1/messages": [{"tool_choice": {"type": "any"}}, {"tool_choice": {"type": "tool", "name": "f"}, "tools": []}],
    "/api/generate": [{"raw": True, "system": "You are."}, {"suffix": "end", "images": ["iVBORw0KGgoA"]}],
}
"""Parameters that contradict each other, or that ask for what is not there."""

Served = tuple[LocalGateway, FakeUpstream, httpx.AsyncClient]


def stack(url: str) -> dict[str, Any]:
    """Return a stack with a role of each kind behind one endpoint."""
    roles = ("chat", "embedding", "reranking")
    return {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "helpers": {"all": {"url": url, "models": {f"model-{kind}": {"kind": kind} for kind in roles}}},
        "roles": {role: {"endpoints": {role: {"helper": "all", "model": f"model-{role}"}}} for role in roles},
        "gateway": {"node": "here"},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with FakeUpstream(answer_everything) as fake:
        async with local_gateway(tmp_path_factory.mktemp("bad"), stack(fake.url)) as gateway:
            async with gateway.client() as client:
                yield gateway, fake, client


def good(path: str, **more: Any) -> dict[str, Any]:
    return {**(ASKED[path].example or {}), **more}


def names_of(operation: Operation) -> list[str]:
    assert operation.body is not None
    return [field.alias or name for name, field in operation.body.model_fields.items()]


async def refused(served: Served, path: str, raw: bytes | dict[str, Any], named: str = "", **headers: str) -> str:
    """Post what is wrong; check that it is refused as described, without asking anybody, and return the message."""
    _, fake, client = served
    seen = len(fake.seen)
    content = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    answer = await client.post(path, content=content, headers=headers)
    said = f"{content[:200]!r}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code == 400, said
    check(answer, path)
    assert len(fake.seen) == seen, "nobody is asked"
    error = answer.json()["error"]
    message: str = error if isinstance(error, str) else error["message"]
    assert named in message, said
    if named and isinstance(error, dict) and "param" in error:
        assert named in error["param"], said
    return message


async def accepted(served: Served, path: str, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    """Post what is good and check that it is answered as described."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await served[2].post(path, content=content, headers=headers)
    assert answer.status_code == 200, f"{content[:300]!r}: {answer.text[:300]}"
    check(answer, path)
    return answer


@pytest.mark.parametrize("path", ASKED)
async def test_what_is_no_json_is_refused(served: Served, path: str) -> None:
    whole = json.dumps(good(path)).encode()
    broken = [
        whole[: len(whole) // 3],
        whole[:-1],
        whole + b"}",
        b"\x1f\x8b" + whole,
        b"",
        b"[]",
        b'{"model": "ch\xff"}',
    ]
    for raw in (*broken, *(BAD_JSON if path in ONE_OF_EACH else ())):
        await refused(served, path, raw)
    await accepted(served, path, whole)


@pytest.mark.parametrize("path", ASKED)
async def test_a_deep_body_is_refused(served: Served, path: str) -> None:
    for levels in (65, 1000, 100_000) if path in ONE_OF_EACH else (1000,):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            inner = opening * levels + b"1" + closing * levels
            await refused(served, path, json.dumps(good(path)).encode()[:-1] + b', "unknown": ' + inner + b"}")
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ASKED)
async def test_a_parameter_of_a_wrong_type_is_refused_by_name(served: Served, path: str) -> None:
    operation = ASKED[path]
    assert operation.body is not None
    properties = document()["components"]["schemas"][operation.body.__name__]["properties"]
    for name in names_of(operation):
        bad = [value for value in KINDS if not validator(properties[name]).is_valid(value)]
        for value in (bad[0], bad[-1]) if bad else ():
            await refused(served, path, good(path, **{name: value}), name)
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ASKED)
async def test_unknown_parameters_are_tolerated_whatever_they_are(served: Served, path: str) -> None:
    for index in range(0, len(KINDS), 4):
        unknown = {f"unknown {place}": value for place, value in enumerate(KINDS[index : index + 4])}
        await accepted(served, path, good(path, **unknown))


@pytest.mark.parametrize("path", ASKED)
async def test_a_parameter_that_is_null_is_as_if_it_was_not_there(served: Served, path: str) -> None:
    names = [name for name in names_of(ASKED[path]) if name not in good(path)]
    await accepted(served, path, good(path, **dict.fromkeys(names)))
    for name in names[::4]:
        await accepted(served, path, good(path, **{name: None}))


@pytest.mark.parametrize("path", CONFLICTS)
async def test_parameters_that_contradict_each_other_are_refused_by_name(served: Served, path: str) -> None:
    for more in CONFLICTS[path]:
        message = await refused(served, path, good(path, **more))
        assert any(name in message for name in more), message
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ASKED)
async def test_a_model_that_is_not_there_is_told(served: Served, path: str) -> None:
    client = served[2]
    for nobody in ("nobody", "nobody:latest", "../../etc/passwd", "a" * 256, "\ud800", "\x00", "http://[::1]/"):
        answer = await client.post(path, content=json.dumps(good(path, model=nobody)).encode())
        assert answer.status_code == 404, answer.text
        check(answer, path)
    without = {key: value for key, value in good(path).items() if key != "model"}
    for body in (
        without,
        good(path, model=None),
        good(path, model=""),
        good(path, model=7),
        good(path, model="a" * 257),
    ):
        await refused(served, path, body, "model")
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ASKED)
async def test_a_wrong_method_is_told_the_right_one(served: Served, path: str) -> None:
    client = served[2]
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = await client.request(method, path, content=json.dumps(good(path)).encode())
        assert answer.status_code == 405, answer.text
        assert "POST" in answer.headers["allow"]
        validator(shape_of(path).__name__).validate(answer.json())
    assert (await client.head(path)).status_code == 405
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ASKED)
async def test_json_is_read_whatever_it_is_called(served: Served, path: str) -> None:
    """`curl -d` calls it a form, and Ollama's own documentation has its readers type that."""
    kinds = (
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "application/octet-stream",
        "nonsense",
        "",
    )
    for kind in kinds:
        await accepted(served, path, good(path), **{"content-type": kind})
    form = {"content-type": "application/x-www-form-urlencoded"}
    await refused(served, path, b"model=chat&messages=hello", **form)
    part = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nchat\r\n--x--\r\n'
    await refused(served, path, part, **{"content-type": "multipart/form-data; boundary=x"})


@pytest.mark.parametrize("path", ASKED)
async def test_a_body_that_breaks_off_harms_nobody(served: Served, path: str) -> None:
    gateway, fake, _ = served
    seen, whole = len(fake.seen), json.dumps(good(path)).encode()
    for head, sent in (
        (b"content-length: %d" % (len(whole) + 1), whole),
        (b"transfer-encoding: chunked", b"%x\r\n%b" % (len(whole), whole[:-1])),
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b\r\n\r\n%b" % (path.encode(), head, sent))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert len(fake.seen) == seen
    await accepted(served, path, whole)


@pytest.mark.parametrize("path", TOOLS)
async def test_ten_thousand_tools_are_read(served: Served, path: str) -> None:
    tools = [json.loads(json.dumps(TOOLS[path]).replace('"f"', f'"f{index}"')) for index in range(10_000)]
    if path in ("/v1/chat/completions", "/v1/messages"):
        await accepted(served, path, good(path, tools=tools))
    await refused(served, path, good(path, tools=[*tools, "no tool"]), "tools[10000]")


@pytest.mark.parametrize("path", PICTURES)
async def test_a_picture_that_is_an_address_is_refused(served: Served, path: str) -> None:
    body, named = PICTURES[path]
    for url in (URL, URL.replace("http", "https"), URL.upper()):
        changed = json.loads(json.dumps(body).replace(URL, url))
        await refused(served, path, good(path, **changed), named)
    await accepted(served, path, good(path))


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"])
async def test_what_the_stack_files_manage_is_refused_with_the_reason(served: Served, path: str) -> None:
    for raw in (b"{}", b"", b"nonsense", json.dumps({"model": "chat"}).encode()):
        answer = await served[2].request("DELETE" if path == "/api/delete" else "POST", path, content=raw)
        assert answer.status_code == 403
        assert "stack files" in answer.json()["error"]


async def test_paths_with_parameters_tell_their_methods_too(served: Served) -> None:
    for path, allowed in (("/v1/responses/resp_1", "DELETE, GET, POST"), ("/api/blobs/sha256:0", "HEAD, POST")):
        for method in ("PUT", "TRACE"):
            answer = await served[2].request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_unknown_paths_are_told_in_the_words_of_their_protocol(served: Served) -> None:
    for path in ("/v1/nope", "/v1/messages/nope", "/api/nope", "/nope"):
        answer = await served[2].post(path, content=b"{}")
        assert answer.status_code == 404
        validator(shape_of(path).__name__).validate(answer.json())
