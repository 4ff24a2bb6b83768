"""Pure: the OpenAPI document: the router's own routes, what each asks of a key, and what is said of each here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from runtime.gateway.openapi import anthropic_paths, gateway_paths, ollama_paths, openai_paths
from runtime.gateway.openapi.errors import MEANINGS, RETRIED, shape_of
from runtime.gateway.openapi.operations import ANY, EVENTS, JSON, SCOPED, Answer, Operation, Parameter
from runtime.gateway.openapi.shapes import COMPONENTS, schemas_of
from runtime.gateway.protocols.dialect import dialect_of
from runtime.gateway.security.scopes import Need, need_of

VERSION = "3.1.0"
OPERATIONS: tuple[Operation, ...] = (
    *openai_paths.OPERATIONS,
    *anthropic_paths.OPERATIONS,
    *ollama_paths.OPERATIONS,
    *gateway_paths.OPERATIONS,
)
"""Everything that is described, in the order of the document."""

_ABOUT = """One address for every model of a stack, in the words of OpenAI, Anthropic and Ollama.

Where the stack asks for keys, send `Authorization: Bearer KEY` or `x-api-key: KEY`; each operation names the scope that
it takes. Where it asks for none, everybody may ask models, and the machine itself may do everything.

Unknown parameters of a request are passed on or passed over; a parameter that cannot be taken is refused by name."""
RESPONSES = "#/components/responses/"
_PARAMETER = re.compile(r"<(\w+)(?::\w+)?>")


class UndocumentedRouteError(Exception):
    """A route is served that nobody has described, or one is described that is not served."""

    def __init__(self, undescribed: Iterable[tuple[str, str]], unserved: Iterable[tuple[str, str]]) -> None:
        said = [f"{method} {path} is not described" for method, path in undescribed]
        said += [f"{method} {path} is described and not served" for method, path in unserved]
        super().__init__(f"{'; '.join(said)}: mend OPERATIONS in runtime/gateway/openapi")


def document_of(routes: Iterable[tuple[str, str]], version: str, operations: Iterable[Operation] = OPERATIONS) -> bytes:
    """Write the document of a gateway that serves these routes, each a method and a path as the router knows it.

    Raises `UndocumentedRouteError` where these are not exactly what `operations` describes.
    """
    described = {(operation.method, operation.path): operation for operation in operations}
    served = set(routes)
    if served != described.keys():
        raise UndocumentedRouteError(sorted(served - described.keys()), sorted(described.keys() - served))
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in described.items():
        item = paths.setdefault(_PARAMETER.sub(r"{\1}", path), {})
        item[method.lower()] = _operation(operation)
    document = {
        "openapi": VERSION,
        "info": {"title": "orchestrate", "version": version, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas_of(list(dict.fromkeys(_shapes(described.values())))),
            "responses": dict(_errors(described.values())),
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def statuses(operation: Operation) -> dict[str, Answer | None]:
    """Return every status that an operation may answer with; None for errors."""
    need = need_of(operation.method, operation.path)
    errors = {*ANY, *(SCOPED if need != "open" else ()), *operation.errors}
    return {**dict.fromkeys(sorted(errors)), **operation.answers}


def _shapes(operations: Iterable[Operation]) -> Iterator[type[BaseModel]]:
    for operation in operations:
        yield shape_of(operation.path)
        if operation.body is not None:
            yield operation.body
        for answer in operation.answers.values():
            yield from (shape for shape in (answer.whole, answer.event) if shape is not None)


def _operation(operation: Operation) -> dict[str, Any]:
    need = need_of(operation.method, operation.path)
    found: dict[str, Any] = {
        "operationId": _id(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "security": _security(need),
    }
    if operation.description:
        found["description"] = operation.description
    if operation.parameters:
        found["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        content: dict[str, Any] = {"schema": _reference(operation.body)}
        if operation.example is not None:
            content["example"] = dict(operation.example)
        found["requestBody"] = {"required": True, "content": {JSON: content}}
    found["responses"] = {
        status: {"$ref": RESPONSES + _error_name(status, operation.path)}
        if answer is None
        else _answer(answer, operation)
        for status, answer in sorted(statuses(operation).items())
    }
    return found


def _id(operation: Operation) -> str:
    words = re.findall(r"[A-Za-z0-9]+", _PARAMETER.sub(r"\1", operation.path)) or ["root"]
    return "_".join([operation.method.lower(), *words])


def _security(need: Need) -> list[dict[str, list[str]]]:
    return [] if need == "open" else [{"bearer": [need]}, {"key": [need]}]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {"name": parameter.name, "in": parameter.where, "schema": dict(parameter.schema)}
    if parameter.description:
        found["description"] = parameter.description
    return found | ({"required": True} if parameter.where == "path" else {})


def _answer(answer: Answer, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if answer.whole is not None:
        content[JSON] = {"schema": _reference(answer.whole)}
    if answer.stream:
        content[answer.stream] = _stream(answer, operation)
    content |= {text: {"schema": {"type": "string"}} for text in answer.texts}
    names = (*_every(operation.path), *((*_RELAYED, *_NOTED) if answer.is_relayed else ()))
    found: dict[str, Any] = {"description": answer.description, "headers": _headers(names)}
    return found | ({"content": content} if content and operation.method != "HEAD" else {})


def _stream(answer: Answer, operation: Operation) -> dict[str, Any]:
    """Return how a stream is described: OpenAPI 3.1 has no word for it.

    Tools read the schema of server-sent events as that of each event; lines of JSON they do not take apart.
    """
    said = [_reference(shape) for shape in (answer.event, shape_of(operation.path)) if shape is not None]
    if answer.stream != EVENTS:
        return {"schema": {"type": "string"}, "x-event": {"anyOf": said}}
    data: dict[str, Any] = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": said}}
    if answer.has_mark:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    return {"schema": {"type": "object", "properties": {"data": data}}, "x-event": {"anyOf": said}}


def _errors(operations: Iterable[Operation]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the answers of every protocol that are errors, each once for all operations that may give it."""
    for operation in operations:
        for status, answer in statuses(operation).items():
            if answer is None:
                yield _error_name(status, operation.path), _error(status, operation.path)


def _error_name(status: str, path: str) -> str:
    return f"{shape_of(path).__name__}.{status}"


def _error(status: str, path: str) -> dict[str, Any]:
    names = [*_every(path), *_RELAYED]
    if status in RETRIED or "X" in status:
        names.append("retry-after")
    if status == "401":
        names.append("www-authenticate")
    content = {JSON: {"schema": _reference(shape_of(path))}}
    return {"description": MEANINGS[status], "headers": _headers(names), "content": content}


def _every(path: str) -> tuple[str, ...]:
    """Return the headers of every answer on a path."""
    name = dialect_of(path).id_header
    return (*_EVERY, name) if name else _EVERY


def _reference(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": COMPONENTS + shape.__name__}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(description: str, schema: Mapping[str, Any], *, is_required: bool = False) -> dict[str, Any]:
    return {"description": description, "schema": dict(schema)} | ({"required": True} if is_required else {})


_TOKEN = {"type": "string", "pattern": r"^[A-Za-z0-9._:-]{1,128}$"}
_NUMBER = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_HEADERS: Mapping[str, dict[str, Any]] = {
    "x-orchestrate-attempts": _header("How many endpoints were asked.", _NUMBER, is_required=True),
    "x-orchestrate-generation": _header("The apply that the routes in use come from.", _NUMBER, is_required=True),
    "x-orchestrate-request-id": _header("Under which the receipt is found.", _TOKEN, is_required=True),
    "x-orchestrate-endpoint": _header("Who has answered.", _TEXT),
    "x-orchestrate-fallback": _header("Who has answered in place of the one that was wanted.", _TEXT),
    "x-orchestrate-emulated": _header("What the gateway has done in the endpoint's place.", _TEXT),
    "x-orchestrate-dropped": _header("Parameters that were left out for the endpoint, as the files say.", _TEXT),
    "request-id": _header("The same id under Anthropic's name for it.", _TOKEN, is_required=True),
    "retry-after": _header("Seconds after which asking again may help.", {"type": "integer", "minimum": 1}),
    "www-authenticate": _header("How a key is sent.", _TEXT, is_required=True),
}
_EVERY = ("x-orchestrate-attempts", "x-orchestrate-generation", "x-orchestrate-request-id")
_RELAYED = ("x-orchestrate-endpoint", "x-orchestrate-fallback")
_NOTED = ("x-orchestrate-emulated", "x-orchestrate-dropped")
