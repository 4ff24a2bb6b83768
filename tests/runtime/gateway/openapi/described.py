"""Pure: whether an answer is what the OpenAPI document says of its operation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from runtime.gateway.openapi.document import document_of
from runtime.gateway.security.scopes import NEEDS


@cache
def document() -> dict[str, Any]:
    """Return the document."""
    found: dict[str, Any] = json.loads(document_of(NEEDS, "0.1.0"))
    return found


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference refers to, or the value itself where it is none."""
    if "$ref" not in value:
        return value
    found: Any = document()
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": document()["components"]})


def validator(schema: Mapping[str, Any] | str) -> Draft202012Validator:
    """Return the validator of a schema of the document, or of the shape of a name."""
    found = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    return _validator(json.dumps(found))


def check(answer: httpx.Response, path: str) -> None:
    """Assert that an answer has a status, headers and content that are described; `path` is the operation's."""
    operation = document()["paths"][path][answer.request.method.lower()]
    responses, status = operation["responses"], str(answer.status_code)
    where = f"{answer.request.method} {path}: {status} {answer.text[:300]}"
    key = status if status in responses else f"{status[0]}XX"
    assert key in responses, f"undescribed status: {where}"
    described = resolved(responses[key])
    for name, reference in described["headers"].items():
        header = resolved(reference)
        assert name in answer.headers or not header.get("required"), f"no {name}: {where}"
        if name in answer.headers:
            text = answer.headers[name]
            value = int(text) if header["schema"]["type"] == "integer" else text
            validator(header["schema"]).validate(value)
    content = described.get("content", {})
    media = answer.headers.get("content-type", "")
    found = next((each for kind, each in content.items() if media.split(";")[0] == kind.split(";")[0]), None)
    assert found is not None, f"undescribed content type {media}: {where}"
    if media.startswith("application/json"):
        validator(found["schema"]).validate(answer.json())
    elif "x-event" in found:
        for event in events(answer.text, media):
            validator(found["x-event"]).validate(event)


def events(text: str, media: str) -> list[Any]:
    """Return the JSON documents of a stream."""
    if media.startswith("application/x-ndjson"):
        return [json.loads(line) for line in text.splitlines()]
    data = re.findall(r"^data: (\{.*)$", text, re.MULTILINE)
    return [json.loads(each) for each in data]
