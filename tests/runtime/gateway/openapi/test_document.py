"""The OpenAPI document: it describes what is served, no more and no less, and is as strict as the parsers are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from runtime.gateway.adapters.ranking import parse_rerank
from runtime.gateway.adapters.vectors import parse_embeddings
from runtime.gateway.bodies import FORBIDDEN, KNOWN, parse_chat, parse_completion, read_document
from runtime.gateway.errors import ApiError
from runtime.gateway.openapi.document import OPERATIONS, UndocumentedRouteError, document_of, statuses
from runtime.gateway.openapi.errors import shape_of
from runtime.gateway.openapi.operations import Operation
from runtime.gateway.protocols.anthropic.request import parse_count, parse_messages
from runtime.gateway.protocols.dialect import dialect_of
from runtime.gateway.protocols.ollama import fields, requests
from runtime.gateway.protocols.responses.request import parse_response
from runtime.gateway.security.scopes import NEEDS
from schemas.on_demand import Loading
from tests.runtime.gateway.harness import local_gateway, stack_document
from tests.runtime.gateway.openapi.described import document, resolved, validator
from tests.runtime.gateway.openapi.relations import is_relation


def show(raw: bytes) -> object:
    return fields.model(read_document(raw), "model", "name")


def ollama(parse: Callable[[dict[str, Any], str], object]) -> Callable[[bytes], object]:
    """Return what reads the body of one of Ollama's paths as its handler does."""

    def read(raw: bytes) -> object:
        document = read_document(raw)
        return parse(document, fields.model(document))

    return read


PARSERS: dict[str, Callable[[bytes], object]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/v1/responses": lambda raw: parse_response(raw, "resp_1", 1),
    "/v1/embeddings": parse_embeddings,
    "/v1/rerank": parse_rerank,
    "/v2/rerank": parse_rerank,
    "/rerank": parse_rerank,
    "/v1/messages": parse_messages,
    "/v1/messages/count_tokens": parse_count,
    "/api/chat": ollama(requests.chat),
    "/api/generate": ollama(requests.generate),
    "/api/embed": ollama(requests.embed),
    "/api/embeddings": ollama(requests.embeddings),
    "/api/show": show,
}
"""What reads the bodies of each path that models answer."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 21, 0.5, 2**70),
    *("", "text", "base64", "none", "required", "low", "5m", "data:image/png;base64,AA=="),
    *([], [1], [-1], [0.5], ["text"], [""], [None], [[1]], [[]], [["text"]], ["text", 1], [{}]),
    *({}, {"text": "x"}, {"type": "text"}, {"type": "function", "function": {"name": "f"}}),
)
"""One of every kind, and those that parsers know. JSON Schema takes 1.0 for a whole number; the parsers do not."""


ALSO: dict[str, dict[str, Any]] = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}
"""What a parameter needs beside it to mean something."""
SPELLINGS: tuple[Callable[[str], str], ...] = (
    *(str.upper, str.title, lambda name: name.replace("s", "\u017f", 1), lambda name: name.replace("k", "\u212a")),
    *(lambda name: name.upper() + "s", lambda name: "X" + name),
)
"""Other names that readers take for the same, and two that they do not."""
ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens")
"""Paths whose bodies are made anew, parameter by parameter."""
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PART = {"type": "text", "text": "x"}
FILE = {"url": "data:image/png;base64,AA=="}
PICTURE = {"type": "image_url", "image_url": "data:image/png;base64,AA=="}
MORE: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        *({"messages": [{"role": "user", "content": each}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [each]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"type": "text", "text": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{**PICTURE, "x_url": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{**PART, "image_url": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"image_url": {"url": each}}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{**PICTURE, "X_URL": each}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"image_url": {**FILE, "URL": each}}]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{**PICTURE, "image_url": {"Url": each}}]}]} for each in VALUES),
        *(
            {"messages": [{"role": "user", "content": "x", key: "x"}]}
            for key in ("Content", "ROLE", "Name", "tool_call")
        ),
        {"messages": [{"role": "user", "content": "x", "tool_call\u017f": []}]},
        *({"messages": [{"role": "assistant", "tool_calls": each}]} for each in VALUES),
        *({"messages": [{"role": "assistant", "tool_calls": [{"function": each}]}]} for each in VALUES),
        *({"tools": [{"type": "function", "function": each}]} for each in VALUES),
        *({"tools": [TOOL], "tool_choice": each} for each in VALUES),
    ],
    "/v1/messages": [
        *({"messages": [{"role": each, "content": "x"}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": each}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [each]}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": [{"type": "image", "source": each}]}]} for each in VALUES),
        *({"system": [{"type": "text", "text": each}]} for each in VALUES),
        *({"tools": [{"name": each, "input_schema": {}}]} for each in VALUES),
        *({"tools": [{"name": "f", "input_schema": each}]} for each in VALUES),
        *({"thinking": {"type": "enabled", "budget_tokens": each}} for each in VALUES),
        *({"thinking": {"type": each}} for each in VALUES),
        *({"output_config": {"effort": each}} for each in VALUES),
        *({"output_config": {"format": each}} for each in VALUES),
        *({"metadata": {"user_id": each}} for each in VALUES),
        *({"tool_choice": {"type": each}} for each in VALUES),
    ],
    "/v1/responses": [
        *({"input": [{"role": each, "content": "x"}]} for each in VALUES),
        *({"input": [{"role": "user", "content": each}]} for each in VALUES),
        *({"input": [{"role": "user", "content": [each]}]} for each in VALUES),
        *({"input": [{"role": "user", "content": [{"type": "input_text", "text": each}]}]} for each in VALUES),
        *({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": each}]}]} for each in VALUES),
        *({"tools": [{"type": "function", "name": each}]} for each in VALUES),
        *({"tools": [{"type": "function", "name": "f", "strict": each}]} for each in VALUES),
        *({"text": {"format": each}} for each in VALUES),
        *({"text": {"verbosity": each}} for each in VALUES),
        *({"reasoning": {"effort": each}} for each in VALUES),
        *({"metadata": {"key": each}} for each in VALUES),
    ],
    "/api/chat": [
        *({"messages": [{"role": each, "content": "x"}]} for each in VALUES),
        *({"messages": [{"role": "user", "content": each}]} for each in VALUES),
        *({"messages": [{"role": "user", "images": each}]} for each in VALUES),
        *({"messages": [{"role": role, "tool_calls": each}]} for role in ("user", "assistant") for each in VALUES),
        *({"messages": [{"role": "user", "tool_calls": [each]}]} for each in VALUES),
        *({"messages": [{"role": "assistant", "thinking": each}]} for each in VALUES),
        *({"tools": [{"function": each}]} for each in VALUES),
        *({"options": {key: each}} for key in ("temperature", "top_k", "seed", "stop", "mirostat") for each in VALUES),
    ],
}
"""What is inside of parameters, by path."""


def order(operation: Operation) -> int:
    """Return the place of an operation in the document, where the methods of a path stand together."""
    return [each.path for each in OPERATIONS].index(operation.path)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_a_route_without_a_description_and_a_description_without_a_route_are_refused() -> None:
    with pytest.raises(UndocumentedRouteError, match="GET /nobody/has/described is not described"):
        document_of({*NEEDS, ("GET", "/nobody/has/described")}, "0")
    with pytest.raises(UndocumentedRouteError, match="GET /health is described and not served"):
        document_of(set(NEEDS) - {("GET", "/health")}, "0")


async def test_the_document_is_served_and_describes_what_the_router_knows(tmp_path: Path) -> None:
    async with local_gateway(tmp_path, stack_document({})) as gateway, gateway.client() as client:
        answers = [await client.get("/openapi.json") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].headers["content-type"] == "application/json"
    assert answers[0].json()["paths"] == document()["paths"] == answers[1].json()["paths"]


def test_everything_that_is_referred_to_is_there() -> None:
    for reference in references(document()):
        assert resolved({"$ref": reference})
    for name, schema in document()["components"]["schemas"].items():
        assert "__" not in name, "two types have one name"
        Draft202012Validator.check_schema(schema)


def test_every_operation_has_a_name_a_scope_and_its_errors() -> None:
    described = [(path, name, each) for path, item in document()["paths"].items() for name, each in item.items()]
    names = [operation["operationId"] for _, _, operation in described]
    assert len(names) == len(set(names)) == len(OPERATIONS)
    for (path, method, operation), known in zip(described, sorted(OPERATIONS, key=order), strict=True):
        need = NEEDS[method.upper(), known.path]
        assert [next(iter(each.values())) for each in operation["security"]] == ([] if need == "open" else [[need]] * 2)
        assert {"400", "413", "500"} <= set(operation["responses"])
        assert (need == "open") == ("401" not in operation["responses"])
        in_path = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_examples_and_errors_are_as_described(operation: Operation) -> None:
    if operation.body is not None:
        assert operation.example is not None
        validator(operation.body.__name__).validate(operation.example)
    dialect, shape = dialect_of(operation.path), validator(shape_of(operation.path).__name__)
    for loading in (None, Loading(phase="loading", progress=0.5)):
        shape.validate(json.loads(dialect.error(400, "no", code="c", param="p", loading=loading, request_id="r")))
        shape.validate(json.loads(dialect.error(503, "no")))
    assert all(answer is not None for status, answer in statuses(operation).items() if status.startswith("2"))


def test_every_body_that_models_answer_has_its_parser_here() -> None:
    assert set(PARSERS) == {
        each.path for each in OPERATIONS if each.body and NEEDS[each.method, each.path] == "inference"
    }


def is_described(shape: str, body: dict[str, Any]) -> bool:
    """Tell whether a body is one that the document describes; part by part, which is ten times as fast."""
    schema = document()["components"]["schemas"][shape]
    names = validator(schema.get("propertyNames", {}))
    return set(schema["required"]) <= body.keys() and all(
        names.is_valid(key) and (key not in schema["properties"] or is_good(shape, key, json.dumps(value)))
        for key, value in body.items()
    )


@cache
def is_good(shape: str, key: str, value: str) -> bool:
    return validator(document()["components"]["schemas"][shape]["properties"][key]).is_valid(json.loads(value))


@pytest.mark.parametrize("path", PARSERS)
def test_the_document_is_as_strict_as_the_parser(path: str) -> None:
    operation = next(each for each in OPERATIONS if each.path == path)
    assert operation.body is not None and operation.example is not None
    good = dict(operation.example)
    shape, differences = operation.body.__name__, []
    bodies = [{key: value for key, value in good.items() if key != left_out} for left_out in ("", *good)]
    names = [field.alias or name for name, field in operation.body.model_fields.items()]
    bodies += [{**good, **ALSO.get(key, {}), key: value} for key in names for value in VALUES]
    bodies += [{**good, "some_unknown_parameter": value} for value in VALUES]
    bodies += [{**good, key: value} for key in sorted(FORBIDDEN) for value in ("text", {})]
    if path.startswith("/v") and path not in ANTHROPIC:
        bodies += [{**good, name: 1} for key in KNOWN for name in {each(key) for each in SPELLINGS} - KNOWN]
    bodies += [{**good, **more} for more in MORE.get(path, ())]
    for body in bodies:
        try:
            PARSERS[path](json.dumps(body).encode())
            said = ""
        except ApiError as error:
            assert error.status == 400
            said = error.message
        if is_described(shape, body) == bool(said) and not is_relation(said):
            changed = {key: value for key, value in body.items() if key not in good or good[key] != value}
            differences.append(f"{changed or sorted(body)}: parser: {said or 'accepted'}")
    assert not differences, "\n".join(differences)
